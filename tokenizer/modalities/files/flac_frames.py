"""FLAC by its last frame: how many samples there are, whatever its header says.

Writers to a pipe leave 0 for their number. Left out: decoding (`sound_files.py`), and FLAC within Ogg.
"""

from typing import BinaryIO, NamedTuple

from tokenizer.modalities.files.mpeg_frames import after_id3, read_at
from tokenizer.modalities.files.sound_arrays import REPLACE

# Bytes at the end that are searched for the last frame.
TAIL = 1 << 21
_BLOCKS = {1: 192, **{2 + i: 576 << i for i in range(4)}, **{8 + i: 256 << i for i in range(8)}}


class Frame(NamedTuple):
    """A frame's header: where it begins, the first sample's number (or the frame's), and how many it has."""

    at: int
    number: int
    samples: int
    counts_samples: bool


def flac_patches(file: BinaryIO, size: int, name: str) -> dict[int, bytes]:
    """The number of samples as it is to be read, by its place in the file, where the header has it wrong.

    Raises `ValueError` if the header does not say it and the last frame is not whole, and if a whole frame
    ends the file too soon: it is cut between frames, or another sound follows upon the first.
    """
    start = after_id3(file, 0)
    head = read_at(file, start, 42)
    if head[:4] != b"fLaC" or len(head) < 42 or head[4] & 0x7F != 0:
        return {}
    block, field = int.from_bytes(head[10:12]), int.from_bytes(head[21:26])
    promised = field & (1 << 36) - 1
    count = min(size, 1 << 16 if promised else TAIL)
    tail = read_at(file, size - count, count)
    tail = tail[:-128] if tail[-128:-125] == b"TAG" else tail
    frame = _last_frame(tail)
    samples = frame.number * (1 if frame.counts_samples else block) + frame.samples if frame else 0
    if samples == promised > 0:
        return {}
    if frame is None or crc16(tail[frame.at :]) != 0:
        if promised:
            return {}  # whether it is truncated is found where its last samples are decoded
        raise ValueError(
            f"{name}: is truncated or damaged: its header does not say how long it is, and it does not end "
            "with a whole frame; convert it anew, with: ffmpeg -i X.flac Y.flac"
        )
    if samples < promised and (frame.counts_samples or head[8:10] == head[10:12]):
        raise ValueError(
            f"{name}: is truncated, or several sounds in one file: its header promises {promised} samples, "
            f"its last frame ends at {samples}; {REPLACE}"
        )
    if samples <= promised:
        return {}
    return {start + 21: (field - promised + samples).to_bytes(5)}


def _last_frame(tail: bytes) -> Frame | None:
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        if tail[at + 1 : at + 2] in (b"\xf8", b"\xf9") and (frame := _header(tail, at)):
            return frame
    return None


def _header(data: bytes, at: int) -> Frame | None:
    """The header at a place of the data, if there is one with the right checksum."""
    head = data[at : at + 16].ljust(16, b"\0")
    block, rate = head[2] >> 4, head[2] & 15
    if block == 0 or rate == 15 or head[3] >> 4 > 10 or head[3] & 1:
        return None
    ones = 8 - (head[4] ^ 0xFF).bit_length()  # the number is written as in UTF-8
    if ones in (1, 8):
        return None
    more = max(0, ones - 1)  # bytes after its first
    number = head[4] & 0x7F >> ones
    for byte in head[5 : 5 + more]:
        number = number << 6 | byte & 0x3F
    end = 5 + more
    samples = _BLOCKS.get(block, 0)
    if block in (6, 7):
        samples = int.from_bytes(head[end : end + block - 5]) + 1
        end += block - 5
    end += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if crc8(head[: end + 1]) != 0:
        return None
    return Frame(at, number, samples, head[1] == 0xF9)


def _table(polynomial: int, bits: int) -> list[int]:
    """What a byte does to a checksum of `bits`."""
    table = []
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> bits - 1 else 0)
        table.append(value & (1 << bits) - 1)
    return table


_CRC8, _CRC16 = _table(0x107, 8), _table(0x18005, 16)


def crc8(data: bytes) -> int:
    """Of a header; 0 if its checksum comes last and is right."""
    crc = 0
    for byte in data:
        crc = _CRC8[crc ^ byte]
    return crc


def crc16(data: bytes) -> int:
    """Of a frame; 0 if its checksum comes last and is right."""
    crc = 0
    for byte in data:
        crc = (crc << 8 ^ _CRC16[crc >> 8 ^ byte]) & 0xFFFF
    return crc
