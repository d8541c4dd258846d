"""What looking through pictures found before, in the user's cache folder: sets too large to keep decoded are
decoded once to learn which of them can be read, not at every start.

Left out: looking (`picture_scan.py`), and sets that are decoded at once anyway.
"""

import hashlib
import json
import logging
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tokenizer.files import write_atomically

logger = logging.getLogger(__name__)

# Verdicts on pictures that are no longer there stay until there are so many, in files of 16 bytes each: with
# another --data.limit they are wanted again.
MOST = 1 << 20

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
        tables = load_file(path)
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
        newest = np.sort(np.unique(all_keys, return_index=True)[1])[: max(MOST, 2 * len(keys))]
        text = json.dumps({str(key): why for key, why in (self._reasons | reasons).items()})
        tables = {
            "keys": all_keys[newest],
            "digests": all_digests[newest],
            "reasons": np.frombuffer(text.encode(), np.uint8),
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, lambda path: save_file(tables, path))
        except (OSError, SafetensorError) as error:
            text = "%s: cannot be written (%s); the next start looks at all pictures again"
            logger.info(text, self._path, error)


def verdicts_of(place: str, reader: str) -> Verdicts:
    """Those on the data at `place`, by the rules of `reader`."""
    folder = cache_folder()
    if folder is None:
        return Verdicts(None)
    name = hashlib.sha256(f"{place}\0{reader}".encode(errors="surrogateescape")).hexdigest()[:16]
    return Verdicts(folder / f"pictures-{name}.safetensors")


def cache_folder() -> Path | None:
    """`tokenloom` in XDG_CACHE_HOME, or in ~/.cache; None for a user without a home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The specification has relative paths ignored.
        return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "tokenloom"
    except RuntimeError:
        return None


def key_of_file(path: str) -> int:
    """64 bits that change with the file's path, size or time of its last change. `OSError` if it is gone."""
    seen = os.stat(path)
    text = f"{os.path.abspath(path)}\0{seen.st_size}\0{seen.st_mtime_ns}"
    return int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest(), "big") or 1
