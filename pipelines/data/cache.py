"""What a start found of the data, in the user's cache folder, so that the next one does not read every file
again: which examples can be read (`Verdicts`), and, of sets that fit into memory, all that was decoded
(`Decoded`).

Left out: looking and decoding (`pictures.py`, `clips.py`).
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from threading import Thread

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.data.config import Source
from pipelines.data.scan import digest, look_at_all
from tokenizer.hub.files import cache_folder, write_atomically

logger = logging.getLogger(__name__)

# Verdicts on pictures that are no longer there stay until there are so many, in files of 16 bytes each: with
# another --data.limit they are wanted again.
MOST_VERDICTS = 1 << 20

NO_KEY = 0


class Verdicts:
    """Digests of pictures by key, and why some of them cannot be read. `path` None: kept nowhere.

    A key, uint64, is `key_of_file` or the digest of a picture's bytes; `NO_KEY` is never known.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._keys, self._digests = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        self._reasons: dict[int, str] = {}
        if path is not None and path.exists():
            try:
                self._load(path)
            except (OSError, ValueError, LookupError, AttributeError, SafetensorError) as error:
                logger.info("%s: cannot be read (%s); looking at all pictures again", path, error)

    def _load(self, path: Path) -> None:
        tables = load_arrays(path)
        keys, digests = tables["keys"], tables["digests"]
        if keys.shape != digests.shape or {keys.dtype, digests.dtype} != {np.dtype(np.uint64)}:
            raise ValueError("its tables do not fit each other")
        reasons = json.loads(tables["reasons"].tobytes())
        self._reasons = {int(key): str(why) for key, why in reasons.items()}
        self._keys, self._digests = keys, digests

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.uint64], dict[int, str]]:
        """Of keys (n,): which are known (n,), their digests (n,), and by place the reasons of bad ones."""
        if not len(self._keys):
            return np.zeros(len(keys), bool), np.zeros(len(keys), np.uint64), {}
        order = np.argsort(self._keys)
        places = order[np.searchsorted(self._keys, keys, sorter=order).clip(max=len(order) - 1)]
        known = (self._keys[places] == keys) & (keys != NO_KEY)
        bad = np.flatnonzero(known & np.isin(keys, np.array([*self._reasons], np.uint64)))
        reasons = {int(i): self._reasons[int(keys[i])] for i in bad}
        return known, np.where(known, self._digests[places], np.uint64(0)), reasons

    def add(self, keys: NDArray[np.uint64], digests: NDArray[np.uint64], reasons: dict[int, str]) -> None:
        """Keep what was found of the pictures `keys` (n,), `reasons` being by key; one log line if that
        cannot be written."""
        if self._path is None or not len(keys):
            return
        # The new ones first: of equal keys, the first is kept.
        all_keys, all_digests = np.concatenate([keys, self._keys]), np.concatenate([digests, self._digests])
        newest = np.sort(np.unique(all_keys, return_index=True)[1])[: max(MOST_VERDICTS, 2 * len(keys))]
        text = json.dumps({str(key): why for key, why in (self._reasons | reasons).items()})
        tables = {
            "keys": all_keys[newest],
            "digests": all_digests[newest],
            "reasons": np.frombuffer(text.encode(), np.uint8),
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, lambda path: save_arrays(tables, path))
        except (OSError, SafetensorError) as error:
            text = "%s: cannot be written (%s); the next start looks at all pictures again"
            logger.info(text, self._path, error)


def verdicts_of(place: str, reader: str) -> Verdicts:
    """Those on the data at `place`, by the rules of `reader`."""
    return Verdicts(_path_of("pictures", place, reader))


def _path_of(kind: str, place: str, rules: str) -> Path | None:
    """Where something found of the data at `place` by `rules` is kept; None without a cache folder."""
    name = hashlib.sha256(f"{place}\0{rules}".encode(errors="surrogateescape")).hexdigest()[:16]
    folder = cache_folder()
    return None if folder is None else folder / f"{kind}-{name}.safetensors"


def key_of_file(path: str) -> int:
    """64 bits that change with the file's path, size or time of its last change. `OSError` if it is gone."""
    seen = os.stat(path)
    text = f"{os.path.abspath(path)}\0{seen.st_size}\0{seen.st_mtime_ns}"
    return int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest(), "big") or 1


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
        known = len(keys) > 0 and bool((keys != NO_KEY).all())
        self._keys, self._path = keys, _path_of("decoded", place, rules) if known else None

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
