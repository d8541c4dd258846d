"""What libmpg123 writes about MPEG frames, as lines in the log that name the file.

It writes straight to file descriptor 2, cannot be told otherwise through libsndfile, and says "error" of
sound files too where it is only made to jump. So that descriptor points elsewhere while it works. Files are
decoded side by side as before; a note that comes meanwhile names all of them. What others write is passed on
when the next of these calls ends.

Left out: processes that another thread starts within a call: what they write to stderr is lost.
"""

import contextlib
import fcntl
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

_NOTE = re.compile(
    rb"\[(src/)?libmpg123/|Note: (Illegal Audio-MPEG|Trying to resync|Skipped \d|Hit end of|Junk at)|"
    rb"Warning: (Xing stream|Encountered more data|Big change|Real sample count)"
)
# Bytes of notes from which their room is given back: not each time, as a line on its way could be lost.
_FULL = 1 << 20
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")

# Files, and kinds of note, that this process has told of.
_told: set[tuple[str, str]] = set()


@dataclass(eq=False)
class _Call:
    """A call of the decoder for a file. wanted: it makes samples that are used."""

    name: str
    wanted: bool
    notes: list[tuple[str, str]] = field(default_factory=list)  # the files that it may be about, and its text


class _Descriptor:
    """Descriptor 2, which points to a file of no name while there are calls. That file is made once: to make
    and close it for every call would take half of the time that a call takes longer by this."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls: list[_Call] = []
        self.real = self.file = -1
        self.done, self.part = 0, b""  # bytes of the file that are dealt with, and a line without its end

    def enter(self, call: _Call) -> bool:
        """False where descriptor 2 is closed, so that nobody could read a note."""
        with self.lock:
            if self.calls:
                self._deal()
            else:
                try:
                    self.real = os.dup(2)
                except OSError:
                    return False
                if sys.stderr is not None and not sys.stderr.closed:
                    sys.stderr.flush()
                if self.file < 0:
                    self.file = _file_of_no_name()
                os.dup2(self.file, 2)
            self.calls.append(call)
            return True

    def leave(self, call: _Call) -> None:
        with self.lock:
            last = len(self.calls) == 1
            if last:
                os.dup2(self.real, 2)
            self._deal(last)
            self.calls.remove(call)
            if last:
                os.close(self.real)
                if self.done > _FULL:
                    os.ftruncate(self.file, 0)
                    self.done = 0

    def _deal(self, last: bool = False) -> None:
        """Give notes to the calls there are, and pass on all else."""
        size = os.fstat(self.file).st_size
        if size == self.done and not (last and self.part):
            return
        lines = (self.part + os.pread(self.file, size - self.done, self.done)).splitlines(keepends=True)
        self.done, self.part = size, b""
        if not last and lines and not lines[-1].endswith((b"\n", b"\r")):
            self.part = lines.pop()
        names = " or ".join(dict.fromkeys(call.name for call in self.calls))
        wanted = all(call.wanted for call in self.calls)
        others = b""
        for line in lines:
            if not _NOTE.match(line):
                others += line
            elif wanted:
                self.calls[0].notes.append((names, " ".join(line.decode(errors="replace").split())))
        while others:
            others = others[os.write(self.real, others) :]

    def after_fork(self) -> None:
        """In a child, which needs a file of its own, and has no thread that would end the other calls."""
        if self.calls:
            os.dup2(self.real, 2)
            os.close(self.real)
        if self.file >= 0:
            os.close(self.file)
        self.__init__()  # type: ignore[misc]


def _file_of_no_name() -> int:
    """A file that is written to at its end only, whichever threads write."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("notes")
    else:
        with tempfile.TemporaryFile() as file:
            number = os.dup(file.fileno())
    fcntl.fcntl(number, fcntl.F_SETFL, fcntl.fcntl(number, fcntl.F_GETFL) | os.O_APPEND)
    return number


_stderr = _Descriptor()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_stderr.after_fork)


@contextlib.contextmanager
def notes_named(name: str, wanted: bool = True) -> Iterator[None]:
    """Within the context, what libmpg123 says goes to the log at its end, once for a file and a kind of note;
    unless `wanted`, nowhere."""
    call = _Call(name, wanted)
    if not _stderr.enter(call):
        yield
        return
    try:
        yield
    finally:
        _stderr.leave(call)
        _tell(call)


def _tell(call: _Call) -> None:
    for names, note in call.notes:
        key = names, _NUMBER.sub("#", note)
        if key not in _told:
            _told.add(key)
            logger.warning("%s: the decoder of MPEG says: %s", names, note)
