"""PNG and WAV that are broken below their first checks: taken apart, changed and put together with lengths
and checksums that fit again.

Left out: what breaks any bytes (mutators.py).
"""

import random
import struct
import zlib

from tests.helpers.mutators import BORDERS, WIDE, broken_bytes

# PNG

PNG = b"\x89PNG\r\n\x1a\n"
SIDES = (*BORDERS, 9, 31, 100, 300, 8000, 10**4, 10**5)


def broken_png(data: bytes, rng: random.Random) -> bytes:
    """A PNG with a change of its bytes, or of its parts with their checksums made to fit again."""
    if rng.random() < 0.25:
        return broken_bytes(data, rng)
    chunks = png_chunks(data)
    for _ in range(rng.choice((1, 1, 2))):
        i = rng.randrange(len(chunks))
        rng.choice(PNG_CHANGES)(chunks, i, rng)
        if not chunks:
            break
    return PNG + b"".join(png_chunk(*c) for c in chunks)


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], len(PNG)
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunks.append((kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    body = kind + payload
    return struct.pack(">I", len(payload)) + body + struct.pack(">I", zlib.crc32(body))


Chunks = list[tuple[bytes, bytes]]


# 20 MB of zeros.
BOMB = zlib.compress(bytes(20_000_000))


def _header_field(chunks: Chunks, i: int, rng: random.Random) -> None:
    """Another width, height, depth, type of colour, compression, filter or interlacing."""
    kind, payload = chunks[0]
    if kind != b"IHDR" or len(payload) != 13:
        return
    fields = list(struct.unpack(">IIBBBBB", payload))
    for _ in range(rng.choice((1, 1, 2))):
        k = rng.randrange(7)
        fields[k] = rng.choice(SIDES) if k < 2 else rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 255))
    chunks[0] = kind, struct.pack(">IIBBBBB", *fields)


def _payload(chunks: Chunks, i: int, rng: random.Random) -> None:
    chunks[i] = chunks[i][0], broken_bytes(chunks[i][1], rng)


def _pixels(chunks: Chunks, i: int, rng: random.Random) -> None:
    """Other bytes of pixels, packed again, so that what unpacks them is passed."""
    k = next((k for k, c in enumerate(chunks) if c[0] == b"IDAT"), None)
    if k is not None:
        try:
            raw = zlib.decompress(chunks[k][1])
        except zlib.error:
            return
        raw = rng.choice(
            (broken_bytes(raw, rng), broken_bytes(raw, rng), b"", raw * 50, raw[: len(raw) // 2])
        )
        chunks[k] = b"IDAT", BOMB if rng.random() < 0.1 else zlib.compress(raw)


def _extra(chunks: Chunks, i: int, rng: random.Random) -> None:
    """One more part of a kind that readers look into."""
    chunks.insert(
        min(len(chunks), max(1, i)),
        rng.choice(
            (
                (b"tEXt", b"key\0" + b"x" * 5000),
                (b"zTXt", b"key\0\0" + BOMB),
                (b"zTXt", b"key\0\7" + BOMB),
                (b"iTXt", b"key\0\1\0\0\0" + BOMB),
                (b"iCCP", b"name\0\0" + BOMB),
                (b"iCCP", b"name"),
                (b"tRNS", rng.randbytes(rng.randrange(9))),
                (b"PLTE", rng.randbytes(rng.randrange(800))),
                (b"gAMA", b"\0" * 4),
                (b"cHRM", b"\0"),
                (b"sRGB", b""),
                (b"pHYs", bytes(9)),
                (b"tIME", b"\xff" * 7),
                (b"eXIf", b"MM\0*" + rng.randbytes(40)),
                (b"eXIf", b"II*\0\10\0\0\0\1\0\x12\1\3\0\xff\xff\xff\xff\6\0\0\0"),
                (b"acTL", struct.pack(">II", rng.choice(BORDERS), 0)),
                (b"fcTL", rng.randbytes(26)),
                (b"fdAT", rng.randbytes(20)),
                (b"IEND", b""),
                (b"IDAT", b""),
                (b"abCD", b"x"),
                (b"ABCD", b"x"),
            )
        ),
    )


def _drop(chunks: Chunks, i: int, rng: random.Random) -> None:
    del chunks[i]


def _twice(chunks: Chunks, i: int, rng: random.Random) -> None:
    chunks[i:i] = [chunks[i]] * rng.choice((1, 1, 200))


def _order(chunks: Chunks, i: int, rng: random.Random) -> None:
    chunks.append(chunks.pop(i))


def _no_picture(chunks: Chunks, i: int, rng: random.Random) -> None:
    """Bytes that are not PNG at all are made by `broken_bytes`; here a part gets a name that is none."""
    chunks[i] = rng.choice((b"\0\0\0\0", b"idat", b"IHDR", b"IEND")), chunks[i][1]


PNG_CHANGES = (
    *(_header_field, _header_field, _payload, _payload, _pixels, _pixels),
    *(_extra, _extra, _drop, _twice, _order, _no_picture),
)

# WAV

FORMAT_FIELDS = ("H", "H", "I", "I", "H", "H")  # format, channels, rate, bytes per second, block, bits
FORMATS = (0, 1, 2, 3, 6, 7, 17, 49, 0x50, 0x55, 0x674F, 0xFFFE, 0xFFFF)
RATES = (*BORDERS, 8000, 44_100, 48_000, 16_001, 384_000, 999)


def broken_wav(data: bytes, rng: random.Random) -> bytes:
    """A WAV with a change of its bytes, or of the fields and lengths of its header."""
    way = rng.randrange(6)
    if way == 0:
        return broken_bytes(data, rng)
    if way == 1:
        return broken_bytes(data, rng, first=44)
    changed = bytearray(data)
    start = data.find(b"fmt ")
    for _ in range(rng.choice((1, 1, 1, 2))):
        if way < 4 and start >= 0:
            k = rng.randrange(6)
            values = (FORMATS, (0, 1, 2, 3, 8, 64, 1024, 1025, 65535), RATES, WIDE, BORDERS, range(65))[k]
            at = start + 8 + sum(struct.calcsize(f) for f in FORMAT_FIELDS[:k])
            put(changed, at, FORMAT_FIELDS[k], rng.choice(values))
        else:
            names = [n for n in (b"RIFF", b"RF64", b"fmt ", b"fact", b"data", b"ds64", b"LIST") if n in data]
            at = data.find(rng.choice(names)) + 4
            old = struct.unpack_from("<I", data, at)[0]
            put(changed, at, "I", rng.choice((*WIDE, old + 1, max(0, old - 1), old * 2, old // 2)))
    return bytes(changed)


def put(data: bytearray, at: int, kind: str, value: int) -> None:
    """An integer at a place, cut to its width and to the end of the data."""
    size = struct.calcsize(kind)
    data[at : at + size] = struct.pack("<" + kind, value % (1 << 8 * size))
