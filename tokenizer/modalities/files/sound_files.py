"""Sound files and their bytes, decoded at their own rate: any span of samples; what is damaged is named.

Left out: other rates and numbers of channels (`sounds.py`), and writing.
"""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from io import SEEK_END, SEEK_SET, BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import soundfile
from numpy.typing import NDArray

from tokenizer.modalities.files.decoder_notes import notes_named
from tokenizer.modalities.files.mpeg_frames import Count, count_samples, read_at
from tokenizer.modalities.files.several_sounds import OGG_FIX, check_alone, several
from tokenizer.modalities.files.sound_arrays import LOUDEST, REPLACE, clamped, too_loud
from tokenizer.modalities.files.sound_lengths import View, patches_of

# Samples decoded at a time, so that a header that promises too much is found out before memory is taken.
PIECE = 1 << 16
# Samples decoded and dropped before a span that was sought: frames of MP3 hold bits of later ones, the first
# block of Vorbis overlaps with what was read before the jump, and Opus has a state that has to settle.
LEAD = {"MPEG_LAYER_III": 20 * 1152, "VORBIS": 16_384, "OPUS": 16_000}


class FileDecoder:
    """A sound file by its path or bytes, opened. Reading on from the last span never seeks, so it is exact.

    A span elsewhere is exact too, but for MP3 (rounding) and Opus (up to 2e-3: its decoder has to settle).
    """

    def __init__(self, source: str | Path | bytes, name: str) -> None:
        self._source, self._name, self._position = source, name, 0
        self._state = _state_of(source)
        _check_there(source, name)
        self._view: View | None = None
        self._counted: Count | None = None
        self._patches, self._is_mpeg = _header(source, self._state, name)
        self._file = self._open()
        try:
            if self._file.format == "MP3" and (counted := _counted(source, self._state, name)):
                self.close()
                self._counted = counted
                self._file = self._open()
            self._check_header()
        except ValueError:
            self.close()
            raise
        self.rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        self.measured = self._file.subtype in ("FLOAT", "DOUBLE")
        self.peak = 0.0
        # The span read last, with which the next one may overlap; the decoder stands at its end.
        self._first, self._kept = 0, np.empty((0, self.channels), np.float32)

    @property
    def frames(self) -> int:
        return self._counted.samples if self._counted else int(self._file.frames)

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        end = self._first + len(self._kept)
        if self._first <= start <= end:
            parts = [self._kept[start - self._first :]]
        else:
            self._go_to(start)
            parts = []
        missing = count - sum(map(len, parts))
        while missing > 0:
            parts.append(self._decode(min(missing, PIECE)))
            missing -= len(parts[-1])
        self._first, self._kept = start, np.concatenate(parts) if parts else self._kept[:0]
        return self._kept[:count]

    def close(self) -> None:
        self._file.close()
        if self._view is not None:
            self._view.close()

    def _open(self) -> Any:
        """The decoder, at its start."""
        with _named_errors(self._name), self._notes():
            if not self._patches and not self._counted:
                source = self._source
                return _Unsought(_Buffer(source) if isinstance(source, bytes) else os.fspath(source))
            self._view = _view(self._source, self._counted, self._patches)
            try:
                return _Unsought(self._view)
            except soundfile.SoundFileError:
                self._view.close()
                raise

    def _go_to(self, start: int) -> None:
        """Let the next sample to be decoded be `start`."""
        if self._file.can_seek:
            lead = min(start, LEAD.get(self._file.subtype, 0))
            with self._reading(wanted=False):
                self._position = self._file.seek(start - lead)
        elif start < self._position:
            self.close()
            self._file, self._position = self._open(), 0
        while self._position < start:
            self._decode(min(start - self._position, PIECE), wanted=False)

    def _decode(self, count: int, wanted: bool = True) -> NDArray[np.float32]:
        with self._reading(wanted):
            samples = self._file.read(count, dtype="float32", always_2d=True)
        self._position += len(samples)
        at_end = self._position >= self.frames or len(samples) < count
        if at_end and self._file.format in ("FLAC", "OGG"):
            _alone(self._source, self._state, self._name)
        if len(samples) < count:
            promise = "frames" if self._counted else "header"
            raise ValueError(
                f"{self._name}: is truncated or damaged: its {promise} promise{'s' * (not self._counted)} "
                f"{self.frames} samples, only {self._position} can be read; {REPLACE}"
            )
        samples, peak = clamped(samples, self._name)
        # Decoders of MP3, Vorbis and Opus overshoot a little where the original is loud.
        self.peak = max(self.peak, peak) if self.measured else 0.0
        if self.peak > LOUDEST:
            raise ValueError(too_loud(self._name, self._loudest()))
        return samples

    def _loudest(self) -> float:
        """The largest magnitude in all of the file."""
        self.close()
        self._file, self._position, peak = self._open(), 0, 0.0
        while len(samples := self._file.read(PIECE, dtype="float32", always_2d=True)):
            peak = max(peak, float(np.nanmax(np.abs(samples), initial=0)))
        return peak

    def _notes(self, wanted: bool = True) -> AbstractContextManager[None]:
        return notes_named(self._name, wanted) if self._is_mpeg else nullcontext()

    @contextmanager
    def _reading(self, wanted: bool = True) -> Iterator[None]:
        """Errors of the decoder as `ValueError`, and an end of it if the file is not the one opened.

        wanted: the samples are used. After a jump MPEG frames lack the bits that earlier ones hold.
        """
        try:
            with _named_errors(self._name), self._notes(wanted):
                yield
        finally:
            if _state_of(self._source) != self._state:
                raise ValueError(f"{self._name}: changed while it was read; try again when it is complete")

    def _check_header(self) -> None:
        name = self._name
        if self._file.format == "RAW":  # chosen by the suffix alone (.au), when there is no header
            raise ValueError(f"{name}: {_NO_SOUND}")
        if self.frames > 1 << 48:
            raise ValueError(f"{name}: its header does not say how long it is; convert it anew, into a file")
        if self._file.format == "OGG":
            _check_ogg(self._source, name)
        if self.frames < 1:
            raise ValueError(f"{name}: holds no samples; remove it")


class _Unsought(soundfile.SoundFile):  # type: ignore[misc]
    """soundfile seeks after each read to where it is already, from which MP3 and Opus go on differently."""

    @property
    def can_seek(self) -> bool:
        return bool(super().seekable())

    def seekable(self) -> bool:
        return False


class _Buffer(BytesIO):
    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        """libsndfile asks for place -1 after an error, and nothing can be raised into its callbacks."""
        return self.tell() if whence == SEEK_SET and offset < 0 else super().seek(offset, whence)


_NO_SOUND = (
    "not a sound file, or of a format that libsndfile cannot read; remove it or convert it to WAV or FLAC"
)


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        reason = str(getattr(error, "error_string", "") or error)
        # The second is what the reader of MP3 says of any file that is none.
        if isinstance(error, TypeError) or reason.startswith(("Format not", "File does not exist")):
            raise ValueError(f"{name}: {_NO_SOUND}") from error
        reason = reason.removeprefix("Error : ").rstrip(".")
        raise ValueError(f"{name}: cannot be read ({reason}); {REPLACE}") from error


Known = TypeVar("Known")


def _remembered(
    find: Callable[[str | Path | bytes, object, str], Known],
) -> Callable[[str | Path | bytes, object, str], Known]:
    """`find(source, state, name)`; of files, what was found last is kept until their state is another."""
    kept = lru_cache(maxsize=4096)(find)

    def found(source: str | Path | bytes, state: object, name: str) -> Known:
        return find(source, state, name) if isinstance(source, bytes) else kept(source, state, name)

    return found


@_remembered
def _header(source: str | Path | bytes, state: object, name: str) -> tuple[dict[int, bytes], bool]:
    """Its patches, and whether it begins as MPEG frames do, perhaps with a tag."""
    with _named_errors(name), _raw(source) as file:
        head = read_at(file, 0, 3)
        is_mpeg = head == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")
        return patches_of(file, file.seek(0, SEEK_END), name), is_mpeg


@_remembered
def _counted(source: str | Path | bytes, state: object, name: str) -> Count | None:
    """Frames of MPEG whose number is not promised; decoded, which takes long, if they do not join."""
    with _named_errors(name), _raw(source) as file:
        counted = count_samples(file, file.seek(0, SEEK_END), name)
    if counted is None or counted.whole:
        return counted
    with (
        _view(source, counted, {}) as view,
        _named_errors(name),
        notes_named(name),
        _Unsought(view) as sound,
    ):
        decoded = 0
        while count := len(sound.read(PIECE, dtype="float32", always_2d=True)):
            decoded += count
    if decoded < counted.samples - 4 * 1152:
        raise ValueError(
            f"{name}: is damaged: its frames hold {counted.samples} samples, only {decoded} can be read; "
            f"{REPLACE}"
        )
    return replace(counted, samples=decoded)


@_remembered
def _alone(source: str | Path | bytes, state: object, name: str) -> None:
    """Asked for once the last sample is decoded, since it reads all of the file."""
    with _named_errors(name), _raw(source) as file:
        check_alone(file, file.seek(0, SEEK_END), name)


def _view(source: str | Path | bytes, counted: Count | None, patches: Mapping[int, bytes]) -> View:
    file = _raw(source)
    start, stop = (counted.start, counted.stop) if counted else (0, file.seek(0, SEEK_END))
    # Frames of MPEG differ in size up to 14-fold, and the first tells the decoder how many there may be.
    promised = 64 * (stop - start) + (1 << 20) if counted else 0
    return View(file, start, stop, patches, promised)


def _raw(source: str | Path | bytes) -> BinaryIO:
    return BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _state_of(source: str | Path | bytes) -> tuple[int, ...] | None:
    """What differs once a file has been written to or replaced; None if there is none."""
    if isinstance(source, bytes):
        return ()
    try:
        state = os.stat(source)
    except OSError:
        return None
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _check_there(source: str | Path | bytes, name: str) -> None:
    if isinstance(source, bytes):
        size = len(source)
    else:
        try:
            found = os.stat(source)
            size = found.st_size
            if stat.S_ISDIR(found.st_mode):
                raise ValueError(f"{name}: is a folder, expected a sound file; give one in it")
        except FileNotFoundError as error:
            raise ValueError(f"{name}: no such file; check the path") from error
        except OSError as error:
            raise ValueError(f"{name}: cannot be read ({error.strerror}); check the path") from error
    if size == 0:
        raise ValueError(f"{name}: is empty, expected a sound file; remove it")


def _check_ogg(source: str | Path | bytes, name: str) -> None:
    """`ValueError` if the last page is not all there, or not of the sound that the file begins with."""
    largest = 27 + 255 + 255 * 255
    with _raw(source) as file:
        head = file.read(largest)
        file.seek(max(0, file.seek(0, SEEK_END) - 2 * largest))
        tail = file.read()
    page = tail[tail.rfind(b"OggS\0") :]
    if len(page) <= 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
        raise ValueError(f"{name}: is truncated: it ends within a page of Ogg; {REPLACE}")
    streams, at = set(), 0
    while head[at : at + 4] == b"OggS" and len(head) > at + 27 and head[at + 5] & 2:  # where a stream begins
        streams.add(head[at + 14 : at + 18])
        at += 27 + head[at + 26] + sum(head[at + 27 : at + 27 + head[at + 26]])
    if streams and page[14:18] not in streams:
        raise several(name, OGG_FIX)
