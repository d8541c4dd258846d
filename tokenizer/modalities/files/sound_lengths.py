"""Lengths that headers of sound files cannot know or have wrong, set right by what is there.

Writers to a pipe, recorders that were killed and speech services leave 0, the largest number or a round one
for the length, or count the header too; a file with such a length is read to its end. One that is shorter
than a header could rightly promise stays as it is, to be named as truncated. Left out: MPEG frames
(`mpeg_frames.py`), frames of FLAC (`flac_frames.py`), and decoding (`sound_files.py`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from io import SEEK_CUR, SEEK_END, SEEK_SET, RawIOBase
from typing import Any, BinaryIO, Literal, NamedTuple

from tokenizer.modalities.files.flac_frames import flac_patches
from tokenizer.modalities.files.mpeg_frames import read_at
from tokenizer.modalities.files.several_sounds import begins_sound, several
from tokenizer.modalities.files.sound_arrays import REPLACE

# Where lengths lie that no sound has: about 2^31, about 2^32, and round ones from a billion on.
_AROUND = (range(0x7FFFF000, 0x80001000), range(0xFFFFF000, 1 << 32))
_ROUND_FROM, _ROUND = 10**9, (10**8, 1 << 24)
MAX_FILLING = 1 << 20
_TAGS = (b"ID3", b"TAG", b"APETAGEX")
_W64 = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"


class View(RawIOBase):
    """Bytes `start : stop` of a file, with others at the places of `patches`, and an end `promised` later.

    The decoder of MPEG frames takes a length from that end and reads until nothing comes; only a tag may be
    asked for there, of which there is none.
    """

    def __init__(
        self,
        file: BinaryIO,
        start: int,
        stop: int,
        patches: Mapping[int, bytes] | None = None,
        promised: int = 0,
    ) -> None:
        self._file, self._start, self._stop, self._patches = file, start, stop, patches or {}
        self._end, self._at = max(promised, stop - start), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        place = offset + {SEEK_SET: 0, SEEK_CUR: self._at, SEEK_END: self._end}[whence]
        # libsndfile asks for place -1 after an error, and nothing can be raised into its callbacks.
        self._at = place if place >= 0 else self._at
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        into = memoryview(buffer).cast("B")
        size = self._stop - self._start
        if self._at >= size:
            count = max(0, min(len(into), self._end - self._at)) if self._at >= self._end - 128 else 0
            into[:count] = bytes(count)
        else:
            self._file.seek(self._start + self._at)
            data = self._file.read(min(len(into), size - self._at))
            count = len(data)
            into[:count] = data
            for place, new in self._patches.items():
                first, last = max(place, self._at), min(place + len(new), self._at + count)
                if first < last:
                    into[first - self._at : last - self._at] = new[first - place : last - place]
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class Chunk(NamedTuple):
    """A part of a file: where its length is written, where it begins, and how many bytes it claims."""

    id: bytes
    field: int
    body: int
    claimed: int


@dataclass(frozen=True)
class Format:
    """How a container writes its chunks. extra: what a length counts beyond the samples, or leaves out."""

    first: int  # where the first chunk begins
    id_bytes: int
    length_bytes: int
    order: Literal["big", "little"]
    align: int
    data: bytes  # the id of the chunk of samples
    extra: int = 0  # bytes of that chunk before the samples
    counts: int = 0  # bytes of id and length that a length counts
    outer: int | None = 4  # where the length of the whole is written
    outer_leaves: int = 8  # bytes at the start that it leaves out

    def chunks(self, file: BinaryIO, size: int) -> Iterator[Chunk]:
        """The chunks from the first on, as long as they lie within the file."""
        at, head_bytes = self.first, self.id_bytes + self.length_bytes
        while at + head_bytes <= size:
            head = read_at(file, at, head_bytes)
            claimed = max(0, int.from_bytes(head[self.id_bytes :], self.order) - self.counts)
            yield Chunk(head[: self.id_bytes], at + self.id_bytes, at + head_bytes, claimed)
            at += head_bytes + claimed
            at += -at % self.align

    def packed(self, value: int) -> bytes:
        return value.to_bytes(self.length_bytes, self.order)


_RIFF = Format(12, 4, 4, "little", 2, b"data")
FORMATS = {
    b"RIFF": _RIFF,
    b"RIFX": Format(12, 4, 4, "big", 2, b"data"),
    b"RF64": _RIFF,
    b"FORM": Format(12, 4, 4, "big", 2, b"SSND", extra=8),
    b"riff": Format(40, 16, 8, "little", 8, b"data" + _W64, counts=24, outer=16, outer_leaves=0),
    b"caff": Format(8, 4, 8, "big", 1, b"data", extra=4, outer=None),
}


def patches_of(file: BinaryIO, size: int, name: str) -> dict[int, bytes]:
    """What to put in the place of lengths in the header that cannot be right, by place; mostly nothing.

    Raises `ValueError` for a file that is shorter than its header rightly says, and for a length that is
    missing and cannot be told or written.
    """
    magic = read_at(file, 0, 4)
    if magic in (b".snd", b"dns."):
        return _of_au(file, size, name, "big" if magic == b".snd" else "little")
    if magic == b"RF64":
        return _of_rf64(file, size, name)
    if magic in FORMATS:
        return _of_chunks(file, size, FORMATS[magic], name)
    if magic == b"OggS" and b"\x7fFLAC" in read_at(file, 28, 6):
        raise ValueError(
            f"{name}: is FLAC within Ogg, which libsndfile cannot read; convert it: ffmpeg -i X.oga X.flac"
        )
    return flac_patches(file, size, name)


def _of_chunks(file: BinaryIO, size: int, kind: Format, name: str) -> dict[int, bytes]:
    data = next((c for c in kind.chunks(file, size) if c.id == kind.data), None)
    if data is None:
        return {}
    outer = None
    if kind.outer is not None:
        outer = int.from_bytes(read_at(file, kind.outer, kind.length_bytes), kind.order) + kind.outer_leaves
    if not _is_wrong(file, size, kind, data, outer):
        _refuse_cut(data.claimed, size - data.body, name)
        _refuse_another(file, size, kind, data.body + data.claimed, name)
        return {}
    length = size - data.body + kind.counts
    if length >= 1 << 8 * kind.length_bytes:
        raise ValueError(
            f"{name}: has more than 4 GiB, which its header cannot say; convert it to FLAC, RF64 or W64"
        )
    patches = {data.field: kind.packed(length)}
    if kind.outer is not None:
        patches[kind.outer] = kind.packed(size - kind.outer_leaves)
    return patches


def _is_wrong(file: BinaryIO, size: int, kind: Format, data: Chunk, outer: int | None) -> bool:
    """Whether the length of the samples cannot be right, even if some have been cut off.

    outer: the size of the whole file by its header, if that says so.
    """
    there, claimed = size - data.body, data.claimed
    if there <= kind.extra or claimed == there:
        return False
    if claimed <= kind.extra or _is_unknown(claimed):
        return claimed > there or not _are_chunks(file, size, kind, data)
    if claimed > there:  # nothing is cut off where the whole is as long as it should be
        return claimed == size or outer in (size - 1, size)
    wrapped = there - claimed >= 1 << 32  # modulo 2^32
    goes_on = outer is not None and (abs(outer - size) <= 1 or _is_unknown(outer - kind.outer_leaves))
    return (
        (wrapped or goes_on) and not _are_zeros(file, size, data) and not _are_chunks(file, size, kind, data)
    )


def _are_zeros(file: BinaryIO, size: int, data: Chunk) -> bool:
    """Whether what follows upon the samples is a filling, as of sectors."""
    at = data.body + data.claimed
    return size - at <= MAX_FILLING and not read_at(file, at, size - at).strip(b"\0")


def _are_chunks(file: BinaryIO, size: int, kind: Format, data: Chunk) -> bool:
    """Whether chunks or tags follow upon the samples, up to the end of the file."""
    at = data.body + data.claimed
    if read_at(file, at, 8).startswith(_TAGS):
        return True
    at += -at % kind.align
    end = at
    for chunk in replace(kind, first=at).chunks(file, size):
        if not _is_printable(chunk):
            return False
        end = chunk.body + chunk.claimed
    return at < end <= size + 1


def _of_rf64(file: BinaryIO, size: int, name: str) -> dict[int, bytes]:
    """The lengths of the chunk ds64, which stand for those that are too long for 32 bits."""
    chunks = {c.id: c for c in _RIFF.chunks(file, size) if c.id in (b"ds64", b"data")}
    if set(chunks) != {b"ds64", b"data"}:
        return {}
    place, data = chunks[b"ds64"].body, chunks[b"data"]
    claimed, there = int.from_bytes(read_at(file, place + 8, 8), "little"), size - data.body
    if data.claimed != 0xFFFFFFFF:
        return {}
    if not _is_unknown(claimed) or there <= 0:
        _refuse_cut(claimed, there, name)
        _refuse_another(file, size, _RIFF, data.body + claimed, name)
        return {}
    return {place: (size - 8).to_bytes(8, "little") + there.to_bytes(8, "little")}


def _of_au(file: BinaryIO, size: int, name: str, order: Literal["big", "little"]) -> dict[int, bytes]:
    head = read_at(file, 0, 12)
    if len(head) < 12:
        return {}
    body, claimed = int.from_bytes(head[4:8], order), int.from_bytes(head[8:], order)
    there = size - body
    if not (_is_unknown(claimed) or claimed == size) or not 0 < there < 1 << 32:
        _refuse_cut(claimed, there, name)
        if begins_sound(file, body + claimed):
            raise several(name)
        return {}
    return {8: there.to_bytes(4, order)}


def _refuse_cut(claimed: int, there: int, name: str) -> None:
    if claimed > max(0, there):
        raise ValueError(
            f"{name}: is truncated: its header promises {claimed} bytes, it has {max(0, there)}; {REPLACE}"
        )


def _refuse_another(file: BinaryIO, size: int, kind: Format, end: int, name: str) -> None:
    """`ValueError` if another sound begins where the samples end, or after chunks that follow upon them."""
    if end >= size:
        return
    first = end + -end % kind.align
    places = [end, first]
    for chunk in replace(kind, first=first).chunks(file, size):
        if not _is_printable(chunk):
            break
        places.append(chunk.body + chunk.claimed + -(chunk.body + chunk.claimed) % kind.align)
    if any(0 <= place < size and begins_sound(file, place) for place in places):
        raise several(name)


def _is_printable(chunk: Chunk) -> bool:
    return all(32 <= b < 127 for b in chunk.id[:4])


def _is_unknown(claimed: int) -> bool:
    """Whether a length is one that stands for a length that was not known."""
    if claimed == 0 or any(claimed in r for r in _AROUND) or claimed >= 1 << 56:
        return True
    # The header may have been added to a number that was chosen for the samples, or taken off.
    return claimed >= _ROUND_FROM and any((claimed + 128) % r <= 256 for r in _ROUND)
