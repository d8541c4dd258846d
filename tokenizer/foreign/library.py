"""transformers and diffusers: imported when a model asks for them, and models of transformers from and to
files.

Left out: what the models are (the families beside this file).
"""

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from tokenizer.checks import all_finite
from tokenizer.foreign import Family
from tokenizer.hub.files import AGAIN, check_whole
from tokenizer.installation import install_extra
from tokenizer.variants import shortened

# Older ones build these models otherwise, or have not all of them.
LEAST = {"transformers": (5, 24), "diffusers": (0, 42)}


def import_library(name: str) -> Any:
    """transformers or diffusers; `ValueError` with what to install where it is missing or too old."""
    wanted = ".".join(map(str, LEAST[name]))
    try:
        found = version(name)
    except PackageNotFoundError:
        found = "none"
    if found == "none" or tuple(int(n) for n in found.split(".")[:2]) < LEAST[name]:
        raise ValueError(
            f"this model needs {name} {wanted} or newer, found {found}; {install_extra('foreign')}"
        )
    return importlib.import_module(name)


@dataclass(frozen=True)
class TransformersFamily(Family):
    """Models of transformers."""

    # Class of what reads data for the model there; "" for none.
    reader_class: ClassVar[str] = ""

    @cached_property
    def theirs(self) -> Any:
        library = import_library(self.library)
        # Imported now: what modules make as they are imported must not come to lie on the device meta, on
        # which models are outlined.
        names = (self.config_class, self.model_class, self.reader_class)
        config, *_ = (getattr(library, name) for name in names if name)
        try:
            return config.from_dict(dict(self.raw))
        except Exception as error:  # of its own checks, in classes of its own
            raise refused(self, error) from error

    def whole(self) -> Any:
        # A copy, as a model may write into its config.
        config = type(self.theirs).from_dict(self.theirs.to_dict())
        return getattr(import_library(self.library), self.model_class)(config)

    def load(self, folder: Path, outline: nn.Module) -> Any:
        path = weights_file(self, folder, outline, pickled="pytorch_model.bin")
        with quietly(import_library(self.library)):
            model, info = getattr(import_library(self.library), self.model_class).from_pretrained(
                folder,
                config=type(self.theirs).from_dict(self.theirs.to_dict()),
                local_files_only=True,
                use_safetensors=True,
                dtype="auto",  # that of the file
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, by name
            )
        require_all_loaded(info, path)
        require_finite_weights(model, path)
        return model

    def save(self, whole: Any, path: Path) -> None:
        save_whole(self, whole, path)

    def saved_config(self, dtype: torch.dtype) -> dict[str, Any]:
        kept = {k: v for k, v in self.raw.items() if k != "torch_dtype"}
        return {**kept, "dtype": str(dtype).removeprefix("torch.")}

    def preprocessor(self) -> dict[str, Any]:
        reader = getattr(import_library(self.library), self.reader_class)
        values: dict[str, Any] = reader(**self.reader_options()).to_dict()
        return values

    def reader_options(self) -> dict[str, Any]:
        """Arguments of the class that reads data for the model."""
        raise TypeError(f"{type(self).__name__} does not define reader_options")


def refused(family: Family, error: Exception) -> ValueError:
    """What to raise where the library refuses the config of a family."""
    reason = " ".join(str(error).split())
    return ValueError(f"{family.library} refuses this config of {family.name}: {reason:.300}")


def weights_file(family: Family, folder: Path, outline: nn.Module, pickled: str) -> Path:
    """The file of weights in a folder. `ValueError` if it is missing (perhaps a file called `pickled` is
    there), not whole, or far smaller than the model."""
    path = folder / family.weights
    if not path.exists():
        raise ValueError(
            f"{folder}: has no {family.weights}; pickled weights, as in {pickled}, are not read: they may "
            f"run code. Load and save the model with {family.library} first"
        )
    require_memory(outline, check_whole(path), path)
    return path


def save_whole(family: Family, whole: Any, path: Path) -> None:
    """Write the weights of a library's model to one file, as the library names it."""
    with quietly(import_library(family.library)):
        whole.save_pretrained(path.parent, max_shard_size="1000GB")


def require_memory(outline: nn.Module, stored: int, path: Path) -> None:
    """`ValueError` for a config whose model is far larger than its `stored` bytes of weights: told before any
    memory is taken. Types of 8 bits are the smallest."""
    sizes = [(value.numel(), name) for name, value in outline.state_dict().items()]
    if sum(n for n, _ in sizes) > stored:
        raise ValueError(
            f"{path}: holds {stored} bytes, but config.json describes a model of {sum(n for n, _ in sizes)} "
            f"numbers, most of them in tensor {max(sizes)[1]!r}: they do not belong together; {AGAIN}"
        )


def require_all_loaded(info: Any, path: Path) -> None:
    """`ValueError` that names the first tensor that the file and the model do not have alike."""
    for name, held, wanted in sorted(info["mismatched_keys"]):
        raise ValueError(
            f"{path}: tensor {name!r} has shape {tuple(held)}, expected {tuple(wanted)} by config.json; "
            f"{AGAIN}"
        )
    for name in sorted(info["missing_keys"]):
        raise ValueError(f"{path}: tensor {name!r} is missing; {AGAIN}")
    for name in sorted(info["unexpected_keys"]):
        raise ValueError(f"{path}: unexpected tensor {shortened(name)}; {AGAIN}")


def require_finite_weights(model: nn.Module, path: Path) -> None:
    """`ValueError` that names a tensor with NaN or infinity."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not all_finite(value):
            raise ValueError(f"{path}: tensor {name!r} holds NaN or infinity; {AGAIN}")


@contextlib.contextmanager
def quietly(library: Any) -> Iterator[None]:
    """Without the library's bars and reports on stderr: what matters of them is raised here."""
    logs = library.utils.logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()
