"""Files of saved models: names, strict JSON and safetensors, and writing that is whole or not at all; and the
user's cache folder.

Left out: what the files mean (`tokenizer.hub.model`).
"""

import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tokenizer.checks import all_finite
from tokenizer.variants import shortened

# A prior of a million classes has 30 MB of names; objects within objects are at most six deep in our files.
MAX_JSON, MAX_DEPTH = 1 << 28, 32
AGAIN = "save or download it again"

CONFIG, WEIGHTS, PREPROCESSOR, CARD, METRICS = (
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "README.md",
    "metrics.json",
)
# Of a training run, in the folder that becomes its model.
CHECKPOINTS = "checkpoints"
SAMPLES = ("sample.png", "sample.wav")
# What every saved model has, and what some have too.
SAVED = (CONFIG, WEIGHTS, PREPROCESSOR, CARD, METRICS)
MODEL_FILES = (*SAVED, *SAMPLES)
# As diffusers calls the weights of its models.
DIFFUSION_WEIGHTS = "diffusion_pytorch_model.safetensors"
# What of a repository may be a model's, whichever library it is of.
KNOWN_FILES = (*MODEL_FILES, DIFFUSION_WEIGHTS)

# Ends the names of folders of what is not whole yet.
UNFINISHED = ".unfinished"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `ValueError` naming the file if it is missing, not an object, larger or
    deeper than any of ours, or holds NaN or Infinity, which JSON has not."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("not a file")
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"{path.stat().st_size} bytes, expected at most {MAX_JSON}")
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        _check_depth(value)
    except (OSError, ValueError, RecursionError) as error:
        first = "check the path" if isinstance(error, OSError) else "correct it"
        raise ValueError(f"{path}: cannot be read as JSON ({error}); {first}, or {AGAIN}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _check_depth(value: Any) -> None:
    """Whoever walks through the value calls itself, and must not run out of stack far from here."""
    level = [value]
    for _ in range(MAX_DEPTH):
        children = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = [v for below in children for v in below if isinstance(v, dict | list)]
        if not level:
            return
    raise ValueError(f"lists and objects within each other more than {MAX_DEPTH} deep")


def load_tensors(path: Path, expected: Mapping[str, Tensor], partly: bool = False) -> dict[str, Tensor]:
    """The tensors of a safetensors file, with the names and shapes of `expected` (which may be on the device
    meta) and its kinds of numbers: floats may be of another width. `partly`: some may be missing.

    No more memory is taken than the file has bytes. `ValueError` names the first difference.
    """
    check_tensors(path, {name: tuple(value.shape) for name, value in expected.items()}, partly)
    try:
        state = _read_tensors(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error!s:.200}); {AGAIN}") from error
    for name, held in state.items():
        value = expected[name]
        # Integers would be read as weights without a word.
        floats = held.is_floating_point() and value.is_floating_point()
        if not floats and held.dtype != value.dtype:
            raise ValueError(f"{path}: tensor {name!r} is {held.dtype}, expected {value.dtype}; {AGAIN}")
        if floats and not all_finite(held.to(value.dtype)):
            raise ValueError(
                f"{path}: tensor {name!r} holds NaN or infinity, or numbers beyond {value.dtype}; {AGAIN}"
            )
    return state


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors, each in memory of its own: those of safetensors are all parts of one mapping of the file,
    whose pages follow the file, begin anywhere, and are small."""
    state: dict[str, Tensor] = {}
    # Which checks the header, and maps what is not touched here.
    with safe_open(path, framework="pt") as mapped, path.open("rb") as file:
        size, header = _header(file)
        for name in sorted(mapped.keys(), key=lambda name: header[name]["data_offsets"]):
            state[name] = value = torch.empty_like(mapped.get_tensor(name))
            file.seek(8 + size + header[name]["data_offsets"][0])
            if file.readinto(value.flatten().view(torch.uint8).numpy().data) != value.nbytes:
                raise OSError(f"it ends within tensor {name!r}")
    return state


def check_whole(path: Path) -> int:
    """Bytes of the tensors in a safetensors file; `ValueError` if it is none, cut short or longer."""
    return _shapes(path)[1]


def _shapes(path: Path) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shapes of the tensors in a safetensors file by name, and their bytes; `ValueError` unless it is
    whole."""
    try:
        with path.open("rb") as file:
            size, header = _header(file)
        _check_depth(header)
        header.pop("__metadata__", None)
        found = {k: tuple(v["shape"]) for k, v in header.items()}
        data = max((v["data_offsets"][1] for v in header.values()), default=0)
        if 8 + size + data != path.stat().st_size:
            raise ValueError("it is cut short or has extra bytes")
    except (
        *(OSError, struct.error, ValueError, LookupError),
        *(TypeError, AttributeError, RecursionError),
    ) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); {AGAIN}") from error
    return found, data


def _header(file: BinaryIO) -> tuple[int, dict[str, Any]]:
    """Bytes of the header of a safetensors file, and what it says."""
    size = struct.unpack("<Q", file.read(8))[0]
    if size > min(100_000_000, os.fstat(file.fileno()).st_size):
        raise ValueError(f"header of {size} bytes")
    return size, json.loads(file.read(size))


def check_tensors(path: Path, expected: Mapping[str, tuple[int, ...]], partly: bool = False) -> None:
    """Compare a safetensors file's header with names and shapes (`partly`: some may be missing); `ValueError`
    names the first difference."""
    found, _ = _shapes(path)
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            if partly:
                continue
            raise ValueError(f"{path}: tensor {name!r} is missing; {AGAIN}")
        if name not in expected:
            raise ValueError(f"{path}: unexpected tensor {shortened(name)}; {AGAIN}")
        if found[name] != expected[name]:
            raise ValueError(
                f"{path}: tensor {name!r} has shape {shortened(found[name])}, expected {expected[name]}; "
                f"{AGAIN}"
            )


def cache_folder() -> Path | None:
    """`tokenloom` in XDG_CACHE_HOME, or in ~/.cache; None for a user without a home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The specification has relative paths ignored.
        return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "tokenloom"
    except RuntimeError:
        return None


def folder_beside(path: Path) -> Path:
    """The folder in which this process makes what becomes `path`; `remove_unfinished` knows its name."""
    return path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")


def remove_unfinished(folder: Path) -> None:
    """Delete what killed processes left beside the files of `folder`; only for who alone writes there."""
    for left in folder.glob(f".*{UNFINISHED}"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)


def write_json(path: Path, values: Any, allow_nan: bool = True) -> None:
    """Write plain values as JSON, whole or not at all; `ValueError` for NaN and infinity unless allowed."""
    write_text(path, json.dumps(values, indent=2, allow_nan=allow_nan) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all."""
    write_atomically(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a path in a folder beside `path`, flush it to the disk, then rename it to `path`."""
    folder = folder_beside(path)
    # A folder, because what writes may itself make files beside the one that it is to write.
    folder.mkdir(exist_ok=True)
    beside = folder / path.name
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
        shutil.rmtree(folder)
