"""MPEG sound (MP1, MP2, MP3) by the headers of its frames: how many samples they hold, and whether to count.

libsndfile takes the length from a Xing or Info frame; without one it guesses by the size of the first frame,
and drops what lies beyond. Left out: decoding (`sound_files.py`).
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import BinaryIO, NamedTuple

PIECE = 1 << 20
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
# kbit/s by (version 1?, layer), for the codes 1 to 14; code 0 (any rate) cannot be walked through.
_KBPS = {
    (True, 1): range(32, 449, 32),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


class FrameKind(NamedTuple):
    """What all frames of a stream share. version: 3 is MPEG 1, 2 is 2, 0 is 2.5."""

    version: int
    layer: int
    rate: int
    mono: bool

    @property
    def samples(self) -> int:
        """Of a frame, per channel."""
        return 384 if self.layer == 1 else 576 if self.layer == 3 and self.version != 3 else 1152

    def __str__(self) -> str:
        return f"{self.rate} Hz {'mono' if self.mono else 'stereo'}"


@lru_cache(maxsize=64)
def _lengths(kind: FrameKind) -> dict[int, int]:
    """Bytes of a frame by the second and third byte of its header, as one number."""
    lengths = {}
    for (code, kbps), padded in product(enumerate(_KBPS[kind.version == 3, kind.layer], 1), (0, 1)):
        if kind.layer == 1:
            length = (12_000 * kbps // kind.rate + padded) * 4
        else:
            length = kind.samples // 8 * 1000 * kbps // kind.rate + padded
        for bare, private in product((0, 1), (0, 1)):  # without a checksum, and a bit for whatever use
            second = 0xE0 | kind.version << 3 | (4 - kind.layer) << 1 | bare
            third = code << 4 | _RATES[kind.version].index(kind.rate) << 2 | padded << 1 | private
            lengths[second << 8 | third] = length
    return lengths


@dataclass(frozen=True)
class Count:
    """Frames counted: they lie in bytes `start : stop` and hold `samples`.

    whole: each follows upon the one before. If not, the decoder has to say where it finds the next, and
    `samples` is about right only.
    """

    start: int
    stop: int
    samples: int
    whole: bool


def count_samples(file: BinaryIO, size: int, name: str) -> Count | None:
    """The samples of a file of MPEG frames; None if its Xing frame can be believed, or it has no frames.

    Raises `ValueError` where the rate or the number of channels changes, at which decoding would end.
    """
    stop = size - _tags_at_end(file, size)
    start, kind = _first_frame(file, after_id3(file, 0), stop)
    if kind is None:
        return None
    head = read_at(file, start, 2048)
    length = _lengths(kind)[head[1] << 8 | head[2]]
    promised = _xing(head[:length], kind)
    if promised is not None:
        frames, bytes_ = promised
        if frames and bytes_ and _first_frame(file, start + bytes_, stop)[0] >= stop:
            return None  # no frame lies beyond
        start += length
    count = _walk(file, start, stop, kind, name)
    if promised is not None and 0 < count.samples <= promised[0] * kind.samples:
        return None  # truncated or not: that is found where its last samples are decoded
    # Frames of this kind hold no sound but a count, which decoders of other makes skip or do not.
    return Count(start, count.stop, count.samples, count.whole and head[36:40] != b"VBRI")


def _xing(frame: bytes, kind: FrameKind) -> tuple[int, int] | None:
    """Frames and bytes that a Xing or Info frame promises, 0 where it does not; None for another frame."""
    place = 4 + ((17 if kind.mono else 32) if kind.version == 3 else (9 if kind.mono else 17))
    if kind.layer != 3 or frame[place : place + 4] not in (b"Xing", b"Info"):
        return None
    flags, fields = int.from_bytes(frame[place + 4 : place + 8]), frame[place + 8 :]
    frames = int.from_bytes(fields[:4]) if flags & 1 else 0
    fields = fields[4:] if flags & 1 else fields
    return frames, int.from_bytes(fields[:4]) if flags & 2 else 0


def _walk(file: BinaryIO, start: int, stop: int, kind: FrameKind, name: str) -> Count:
    lengths, at, frames, whole = _lengths(kind), start, 0, True
    base, data = start, b""
    while at + 4 <= stop:
        k = at - base
        if k + 4 > len(data):
            base, k, data = at, 0, read_at(file, at, min(PIECE, stop - at))
            if len(data) < 4:
                break
        length = lengths.get(data[k + 1] << 8 | data[k + 2]) if data[k] == 255 else None
        if length is not None and (data[k + 3] >> 6 == 3) == kind.mono:
            if at + length > stop:
                break  # cut; without a promise of it, what is whole is what there is
            at, frames = at + length, frames + 1
        elif (after := after_id3(file, at)) > at:
            at = after
        elif (found := _first_frame(file, at, stop, kind)[0]) < stop and _kind_at(file, at, stop) is None:
            at, whole = found, False
        elif (other := _first_frame(file, at, stop, ends=False)[1]) is not None:
            raise ValueError(
                f"{name}: changes from {kind} to {other} after {frames * kind.samples / kind.rate:.1f} s, "
                "where decoding ends; split it there, or convert it: ffmpeg -i X.mp3 X.wav"
            )
        else:
            break  # no frame lies beyond
    return Count(start, stop, frames * kind.samples, whole)


def _first_frame(
    file: BinaryIO, at: int, stop: int, kind: FrameKind | None = None, ends: bool = True
) -> tuple[int, FrameKind | None]:
    """Where the next frame (of `kind`) with others behind it begins, and its kind; if none does, `stop`.

    ends: the end of the file may stand for the others.
    """
    while at < stop:
        data = read_at(file, at, min(PIECE >> 4, stop - at))
        place = data.find(b"\xff")
        while place >= 0:
            found = _kind_at(file, at + place, stop if ends else 1 << 62, data[place : place + 4])
            if found is not None and kind in (None, found):
                return at + place, found
            place = data.find(b"\xff", place + 1)
        at += len(data) or stop
    return stop, None


def _kind_at(file: BinaryIO, at: int, stop: int, head: bytes = b"") -> FrameKind | None:
    """The kind of the frame at a place, if it is one: two more follow upon it, or the end does."""
    head = head if len(head) == 4 else read_at(file, at, 4)
    first = kind = _kind_of(head)
    for _ in range(2):
        if kind is None or kind != first:
            return None
        at += _lengths(kind)[head[1] << 8 | head[2]]
        if at >= stop:
            return first
        head = read_at(file, at, 4)
        kind = _kind_of(head)
    return first if kind == first else None


def _kind_of(head: bytes) -> FrameKind | None:
    if len(head) < 4 or head[0] != 255 or head[1] < 0xE0:
        return None
    version, layer, code, rate = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or code in (0, 15) or rate == 3:
        return None
    return FrameKind(version, layer, _RATES[version][rate], head[3] >> 6 == 3)


def after_id3(file: BinaryIO, at: int) -> int:
    """Where a run of ID3v2 tags ends; `at` if there is none."""
    while len(head := read_at(file, at, 10)) == 10 and head[:3] == b"ID3" and max(head[6:]) < 128:
        at += 10 + sum(b << s for b, s in zip(head[6:], (21, 14, 7, 0), strict=True))
        at += 10 if head[5] & 0x10 else 0  # the footer
    return at


def _tags_at_end(file: BinaryIO, size: int) -> int:
    """Bytes of an ID3v1 tag and of an APE tag before it."""
    tags = 128 if size > 128 and read_at(file, size - 128, 3) == b"TAG" else 0
    foot = read_at(file, max(0, size - tags - 32), 32)
    if foot[:8] == b"APETAGEX":
        tags += int.from_bytes(foot[12:16], "little") + (32 if foot[23] & 0x80 else 0)
    return min(tags, size)


def read_at(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)
