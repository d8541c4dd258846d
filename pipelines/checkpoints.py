"""Checkpoints: all that an exact resume needs, written beside the final name and renamed when whole. No
pickle.

Left out: writing shards side by side; under FSDP the whole tensors are gathered and process 0 writes them.
"""

import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from pipelines.training import WeightAverage, seed_layers, sharded_like, whole_tensors
from tokenizer.files import read_json
from tokenizer.hub import WEIGHTS

logger = logging.getLogger(__name__)

STATE = "state.json"


class Checkpoints:
    """Reads and writes `DIR/checkpoints/step-N/` for one run.

    A checkpoint holds the model, the averaged weights, the optimizers, the bottleneck's training state, the
    torch RNG of every process, and the step, from which order of data, schedule and keyed noise follow.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        model: nn.Module,
        average: WeightAverage,
        optimizers: list[Optimizer],
        keep: int,
        seed: int,
    ) -> None:
        self.accelerator, self.model, self.average, self.optimizers = accelerator, model, average, optimizers
        self.folder, self.keep, self.seed = folder / "checkpoints", keep, seed

    def save(self, step: int) -> None:
        """Write the state after `step` optimizer steps, then delete the oldest checkpoints beyond `keep`.

        Every process must call it: the RNG states are gathered.
        """
        rng = gather_object([_rng_state()])
        tensors = {
            "model": whole_tensors(self.model.state_dict()),
            "average": whole_tensors(self.average.shadow),
            "optimizers": whole_tensors(_optimizer_tensors(self.optimizers)),
            "training_state": whole_tensors(_training_state(self.model)),
            "rng": {f"{rank}.{name}": t for rank, states in enumerate(rng) for name, t in states.items()},
        }
        if self.accelerator.is_main_process:
            final = self.folder / f"step-{step}"
            beside = self.folder / f".step-{step}.{os.getpid()}"
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            try:
                self._write(beside, step, len(rng), tensors)
                if final.exists():
                    set_aside(final)
                beside.rename(final)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
            for old in list_checkpoints(self.folder)[: -self.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path, step: int, processes: int, tensors: dict[str, dict[str, Tensor]]) -> None:
        scaler = self.accelerator.scaler
        state = {
            "step": step,
            "processes": processes,
            "threads": torch.get_num_threads(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        for name, values in tensors.items():
            path = folder / f"{name}.safetensors"
            save_file({k: v.contiguous().clone() for k, v in values.items()}, path)
            _sync(path)
        (folder / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        _sync(folder / STATE)

    def resume(self, wanted: str) -> int:
        """Load `latest` or the checkpoint at a path; returns its step, 0 if `latest` finds none.

        Raises `ValueError` for a path without a checkpoint and for files that are broken.
        """
        path = find_checkpoint(self.folder, wanted)
        if path is None:
            logger.info("no checkpoint in %s: starting from the beginning", self.folder)
            return 0
        state = read_json(path / STATE)
        try:
            files = {p.stem: load_file(p) for p in sorted(path.glob("*.safetensors"))}
            current = self.model.state_dict()
            model = {k: sharded_like(v, current[k]) for k, v in files["model"].items()}
            self.model.load_state_dict(model, strict=True)
            self.average.load(files["average"])
            _load_optimizers(self.optimizers, files["optimizers"])
            _load_training_state(self.model, files["training_state"])
            self._load_rng(files["rng"], state)
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            step = int(state["step"])
            threads = int(state["threads"])
        except (SafetensorError, OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: broken checkpoint ({error}); give an older one with --resume PATH"
            ) from error
        if threads != torch.get_num_threads():
            logger.warning(
                "resuming with %d threads instead of %d: results are equal up to rounding, not bit for bit",
                torch.get_num_threads(),
                threads,
            )
        logger.info("resuming from %s", path)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            for later in list_checkpoints(self.folder):
                if int(later.name.removeprefix("step-")) > step:
                    logger.info(
                        "%s belongs to the course that is left here: kept as %s", later, set_aside(later)
                    )
        return step

    def model_is_written(self, step: int, max_steps: int) -> bool:
        """Whether a run that stands at `step` is finished: all steps done, and the model written after
        them."""
        model, state = self.folder.parent / WEIGHTS, self.folder / f"step-{step}" / STATE
        if step < max_steps or not model.exists() or not state.exists():
            return False
        return model.stat().st_mtime >= state.stat().st_mtime

    def _load_rng(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        rank = self.accelerator.process_index
        mine = {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{rank}.")}
        if state["processes"] == self.accelerator.num_processes and "cpu" in mine:
            torch.set_rng_state(mine["cpu"])
            if "cuda" in mine and torch.cuda.is_available():
                torch.cuda.set_rng_state(mine["cuda"])
        else:  # another number of processes: only layer dropout draws from this generator
            seed_layers(self.seed, int(state["step"]), rank)


def set_aside(folder: Path) -> Path:
    """Rename a checkpoint so that it stays but is neither resumed from nor pruned; returns its new path."""
    names = (folder.with_name(f"{folder.name}.left-{i}") for i in itertools.count(1))
    return folder.rename(next(name for name in names if not name.exists()))


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in `folder`, oldest first."""
    found = [p for p in folder.glob("step-*") if re.fullmatch(r"step-\d+", p.name) and (p / STATE).exists()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def find_checkpoint(folder: Path, wanted: str) -> Path | None:
    """The checkpoint that `latest` or a path names; None if there is none yet."""
    if wanted == "latest":
        return next(iter(list_checkpoints(folder)[::-1]), None)
    path = Path(wanted)
    if not (path / STATE).exists():
        raise ValueError(
            f"--resume {wanted}: no checkpoint there (no {STATE}); give `latest` or a folder step-N"
        )
    return path


def _rng_state() -> dict[str, Tensor]:
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def _training_state(model: nn.Module) -> dict[str, Tensor]:
    bottleneck = getattr(model, "bottleneck", None)
    return bottleneck.training_state() if bottleneck is not None else {}


def _load_training_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    if (bottleneck := getattr(model, "bottleneck", None)) is not None:
        bottleneck.load_training_state(state)


def _optimizer_tensors(optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """All parameters' states as tensors named `optimizer.parameter.name`; rates follow from the step."""
    return {
        f"{i}.{p}.{name}": torch.as_tensor(value)
        for i, optimizer in enumerate(optimizers)
        for p, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def _load_optimizers(optimizers: list[Optimizer], tensors: Mapping[str, Tensor]) -> None:
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    params = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]
    for key, value in tensors.items():
        i, p, name = key.split(".", 2)
        param = params[int(i)][int(p)]
        if value.shape == param.shape:
            # In the parameter's order in memory too, which fused optimizers take for granted.
            value = torch.empty_like(param, dtype=value.dtype).copy_(sharded_like(value, param))
        states[int(i)].setdefault(int(p), {})[name] = value
    for optimizer, ours, state in zip(optimizers, params, states, strict=True):
        # Every parameter has stepped, or none has.
        if len({frozenset(state.get(p, {})) for p in range(len(ours))}) > 1:
            raise KeyError("the optimizer's state is incomplete")
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
