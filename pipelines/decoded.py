"""What was decoded of a set that fits into memory, in the user's cache folder: the next start maps it from
there instead of reading every file again.

Left out: larger sets, of which only what can be read is kept (`verdicts.py`).
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from threading import Thread

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines import verdicts
from pipelines.scanning import digest, look_at_all
from pipelines.sources import Source
from pipelines.verdicts import NO_KEY, key_of_file
from tokenizer.files import write_atomically

logger = logging.getLogger(__name__)

# Bytes: what is smaller is decoded anew in a second or so, and all sets together take at most so much, of
# which the oldest go.
WORTH, MOST = 1 << 24, 4 << 30
# What is being written, by path.
_writing: dict[Path, Thread] = {}


def keys_of(source: Source, title: str) -> NDArray[np.uint64]:
    """What tells each example from others and from an earlier state of itself, (n,): the path, size and time
    of a file, or a hash of bytes; `NO_KEY` for what is not there."""
    keys = np.zeros(len(source), np.uint64)

    def see(i: int) -> None:
        try:
            raw = source.raw(i)
            keys[i] = digest(raw) if isinstance(raw, bytes) else key_of_file(raw)
        except (ValueError, OSError):
            keys[i] = NO_KEY  # looked at again, which tells what is wrong

    look_at_all(see, range(len(source)), title)
    return keys


class Decoded:
    """Tensors decoded from the examples at `place` by `rules`, and why some examples could not be."""

    def __init__(self, place: str, rules: str, keys: NDArray[np.uint64]) -> None:
        self._keys, self._path = keys, None
        folder = verdicts.cache_folder()
        if folder is not None and len(keys) and bool((keys != NO_KEY).all()):
            name = hashlib.sha256(f"{place}\0{rules}".encode(errors="surrogateescape")).hexdigest()[:16]
            self._path = folder / f"decoded-{name}.safetensors"

    def find(self) -> tuple[dict[str, Tensor], dict[int, str]] | None:
        """What was kept, if it is of these very examples."""
        if self._path is None:
            return None
        if (writing := _writing.pop(self._path, None)) is not None:
            writing.join()
        if not self._path.exists():
            return None
        try:
            tables = load_file(self._path)
            if not np.array_equal(tables.pop("keys").numpy(), self._keys.view(np.int64)):
                return None
            reasons = json.loads(tables.pop("reasons").numpy().tobytes())
            return tables, {int(i): str(why) for i, why in reasons.items()}
        except (OSError, ValueError, LookupError, AttributeError, SafetensorError) as error:
            logger.info("%s: cannot be read (%s); decoding all again", self._path, error)
            return None

    def keep(self, tables: Mapping[str, Tensor], reasons: Mapping[int, str], always: bool = False) -> None:
        """Keep what was decoded, if it is so much that this is worth it, or `always`. It is written while the
        caller goes on, who must not change it; one log line if it cannot be."""
        size = sum(table.nbytes for table in tables.values())
        is_main = not dist.is_initialized() or dist.get_rank() == 0
        if self._path is None or not is_main or not (size >= WORTH or always) or size > MOST:
            return
        text = np.frombuffer(json.dumps(dict(reasons)).encode(), np.uint8)
        own = {"keys": torch.from_numpy(self._keys.view(np.int64)), "reasons": torch.from_numpy(text.copy())}
        # The process waits for the thread when it ends.
        thread = Thread(target=_write, args=(self._path, {**tables, **own}, size), name="keep decoded data")
        _writing[self._path] = thread
        thread.start()


def _write(path: Path, tables: dict[str, Tensor], size: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_room(path, size)
        write_atomically(path, lambda beside: save_file(tables, beside))
    except (OSError, SafetensorError) as error:
        logger.info("%s: cannot be written (%s); the next start decodes all again", path, error)


def _make_room(path: Path, size: int) -> None:
    """Delete the sets that were decoded longest ago, until one of `size` bytes fits beside the others."""
    others = sorted(path.parent.glob("decoded-*.safetensors"), key=lambda p: p.stat().st_mtime, reverse=True)
    total = size
    for other in others:
        total += other.stat().st_size
        if other == path or total > MOST:
            total -= other.stat().st_size
            other.unlink()
