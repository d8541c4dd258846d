"""Files that hold several sounds, one after the other (`cat a.wav b.wav`): they are refused by name, since
libsndfile reads the first alone.

Left out: MPEG frames, all of which are read; headerless ends as of VOC and NIST, whose second header is read
as samples; and FLAC of another length behind, which its last frame tells (`flac_frames.py`).
"""

import re
from typing import BinaryIO

from tokenizer.modalities.files.mpeg_frames import after_id3, read_at

# What a file of sound begins with: the bytes, and others at a place behind.
_BEGINNINGS = (
    *((riff, 8, b"WAVE") for riff in (b"RIFF", b"RIFX", b"RF64")),
    *((b"FORM", 8, kind) for kind in (b"AIFF", b"AIFC")),
    (b"riff", 24, b"wave"),
    (b"caff\0\1", 8, b"desc"),
    (b".snd", 4, b"\0\0"),
    (b"dns.", 6, b"\0\0"),
    (b"fLaC", 5, b"\0\0\x22"),
    (b"OggS", 4, b"\0\2"),
)
_LONGEST = 28
# What comes first in FLAC, perhaps as the last of its metadata, and a page of Ogg at which a stream begins.
_FLAC, _OGG = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22"), re.compile(rb"OggS\x00\x02")
_PIECE = 1 << 20
OGG_FIX = "split it, or convert it: ffmpeg -i X.ogg X.wav"


def several(name: str, fix: str = "keep each in a file of its own") -> ValueError:
    return ValueError(
        f"{name}: holds several sounds, one after the other, of which only the first could be read; {fix}"
    )


def begins_sound(file: BinaryIO, at: int) -> bool:
    head = read_at(file, at, _LONGEST)
    return any(head.startswith(magic) and head[k:].startswith(more) for magic, k, more in _BEGINNINGS)


def check_alone(file: BinaryIO, size: int, name: str) -> None:
    """`ValueError` if another sound follows upon one of FLAC or Ogg. Reads all of the file: what says where
    the first one ends is in the other's place.
    """
    at = after_id3(file, 0)
    magic = read_at(file, at, 4)
    if magic == b"fLaC" and _occurs(_FLAC, file, _after_metadata(file, at + 4, size)):
        raise several(name)
    if magic == b"OggS":
        while (head := read_at(file, at, 27 + 255))[:4] == b"OggS" and len(head) > 27 and head[5] & 2:
            at += 27 + head[26] + sum(head[27 : 27 + head[26]])  # streams that go on at once begin together
        if _occurs(_OGG, file, at):
            raise several(name, OGG_FIX)


def _after_metadata(file: BinaryIO, at: int, size: int) -> int:
    """Where the first frame of FLAC begins."""
    while at < size:
        head = read_at(file, at, 4)
        at += 4 + int.from_bytes(head[1:])
        if head[0] & 0x80:
            break
    return at


def _occurs(wanted: re.Pattern[bytes], file: BinaryIO, at: int) -> bool:
    """Whether there is a `wanted`, of 8 bytes at most, from `at` on."""
    before = b""
    file.seek(at)
    while data := file.read(_PIECE):
        if wanted.search(before + data):
            return True
        before = data[-7:]
    return False
