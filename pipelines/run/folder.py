"""Folders that a run writes to: claimed by a lock against a second run, and checked before long work.

Left out: what lies in them.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

from accelerate import Accelerator

from pipelines.run.processes import on_main
from tokenizer.hub.files import remove_unfinished

T = TypeVar("T")

# Files of a run's folder besides the model's: its options, its command, what of the data it left out, what it
# knows of them, what its tokens mean; and its lock.
RUN_FILE, COMMAND_FILE, SKIPPED_FILE, DATA_FILE = "run.json", "command.txt", "skipped.txt", "data.json"
TOKENS_FILE = "tokens.json"
LOCK = ".lock"


@contextlib.contextmanager
def claimed_folder(accelerator: Accelerator, folder: Path, claim: Callable[[], T]) -> Iterator[T]:
    """`folder`, made if it is not there and locked; what `claim` returned on the main process, on every one.

    The lock is the kernel's (`flock`), so it ends with the process however that ends. Raises `ValueError` on
    every process if the folder is in use or cannot be written, or `claim` raised on the main one.
    """
    with contextlib.ExitStack() as stack:

        def take() -> T:
            stack.enter_context(locked(folder))
            claimed = claim()
            remove_unfinished(folder)
            return claimed

        yield on_main(accelerator, take)


def locked(folder: Path) -> IO[str]:
    require_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(
            f"{folder}: another run is writing here; choose another --output or wait for it"
        ) from None
    # A worker that loads data holds it too, and may outlive a killed run by some seconds.
    os.register_at_fork(after_in_child=file.close)
    return file


def require_writable(folder: Path) -> None:
    """`ValueError` if `folder` is none, if neither it nor a new one in its place can be written to, or if its
    name is not UTF-8, which the writers of tensors and tables need."""
    shown = os.fsencode(folder).decode("utf-8", "backslashreplace")
    if shown.encode() != os.fsencode(folder):
        raise ValueError(f"--output {shown}: the name is not UTF-8; choose another")
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not place.is_dir():
        raise ValueError(f"--output {folder}: {place} is a file, expected a folder; choose another")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"--output {folder}: {place} cannot be written to; choose another")
