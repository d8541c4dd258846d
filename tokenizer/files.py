"""Files of saved models: strict JSON, the header of safetensors, and writing that is whole or not at all.

Left out: what the files mean (`tokenizer.hub`).
"""

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `ValueError` naming the file if it is missing or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def check_tensors(path: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare a safetensors file's header with names and shapes; `ValueError` names the first difference."""
    try:
        with path.open("rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            if size > min(100_000_000, path.stat().st_size):
                raise ValueError(f"header of {size} bytes")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        found = {k: tuple(v["shape"]) for k, v in header.items()}
        data = max((v["data_offsets"][1] for v in header.values()), default=0)
        if 8 + size + data != path.stat().st_size:
            raise ValueError("it is cut short or has extra bytes")
    except (
        *(OSError, struct.error, ValueError, LookupError),
        *(TypeError, AttributeError, RecursionError),
    ) as error:
        raise ValueError(
            f"{path}: not a whole safetensors file ({error}); save or download it again"
        ) from error
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise ValueError(f"{path}: tensor {name!r} is missing")
        if name not in expected:
            raise ValueError(f"{path}: unexpected tensor {name!r}")
        if found[name] != expected[name]:
            raise ValueError(f"{path}: tensor {name!r} has shape {found[name]}, expected {expected[name]}")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(beside)` on a path beside `path`, flush it to the disk, then rename it to `path`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        # safetensors writes files that only their owner may read; give them what other new files get.
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o666 & ~umask)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
