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
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from pipelines.run.processes import gather_objects, meet
from pipelines.training.averaging import WeightAverage
from pipelines.training.optimizer_state import load_optimizers, optimizer_tensors
from pipelines.training.setup import seed_layers
from pipelines.training.sharding import sharded_like, whole_tensors
from tokenizer.hub.files import (
    CHECKPOINTS,
    DIFFUSION_WEIGHTS,
    SAVED,
    WEIGHTS,
    folder_beside,
    load_tensors,
    read_json,
    remove_unfinished,
    write_atomically,
)
from tokenizer.variants import config_from_dict, require


@dataclass(frozen=True)
class CheckpointState:
    """What state.json says. Checks itself."""

    step: int
    """Optimizer steps that were done."""
    processes: int
    """Processes that trained."""
    threads: int
    """Threads of each process; another number rounds sums differently."""
    scaler: dict[str, float] | None = None
    """State of the scaler of gradients, with fp16."""
    skipped: int = 0
    """Steps left out so far, as a loss or gradient was not finite; older releases left none out."""
    skipped_in_a_row: int = 0
    """Steps left out since the last one that was taken."""
    model_written: bool | None = None
    """Whether the model that a run ends with was written from this checkpoint; older releases did not say."""

    def __post_init__(self) -> None:
        lowest = {"step": 0, "processes": 1, "threads": 1, "skipped": 0, "skipped_in_a_row": 0}
        for name, low in lowest.items():
            value = asdict(self)[name]
            require(value >= low, f"{name} is {value}, expected {low} or more")


def read_state(path: Path) -> CheckpointState:
    """state.json at a path; `ValueError` if it is missing or anything in it cannot be."""
    return config_from_dict(CheckpointState, read_json(path), str(path))


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
        others: Mapping[str, nn.Module] = MappingProxyType({}),
    ) -> None:
        """`others`: what trains beside the model, by the names of its files."""
        self.accelerator, self.model, self.average, self.optimizers = accelerator, model, average, optimizers
        self.folder, self.keep, self.seed, self.others = folder / CHECKPOINTS, keep, seed, others

    def save(self, step: int, skipped: int = 0, skipped_in_a_row: int = 0) -> None:
        """Write the state after `step` optimizer steps, of which so many were skipped, then delete the oldest
        checkpoints beyond `keep`.

        Every process must call it: the RNG states are gathered. Raises `ValueError` if it cannot be written;
        older checkpoints are then as they were.
        """
        rng, main = gather_objects(self.accelerator, self._rng_state()), self.accelerator.is_main_process
        tensors = {
            "model": whole_tensors(self.model.state_dict(), main),
            "average": whole_tensors(self.average.shadow, main),
            "optimizers": whole_tensors(optimizer_tensors(self.optimizers), main),
            "training_state": whole_tensors(_training_state(self.model), main),
            **{name: whole_tensors(other.state_dict(), main) for name, other in self.others.items()},
            "rng": {f"{rank}.{name}": t for rank, states in enumerate(rng) for name, t in states.items()},
        }
        if main:
            final = self.folder / f"step-{step}"
            scaler = self.accelerator.scaler
            state = CheckpointState(
                step=step,
                processes=len(rng),
                threads=torch.get_num_threads(),
                scaler=scaler.state_dict() if scaler is not None else None,
                skipped=skipped,
                skipped_in_a_row=skipped_in_a_row,
                model_written=False,
            )
            try:
                self._place(final, state, tensors)
            except (OSError, SafetensorError) as error:
                last = self.latest()
                left = "there is none before it" if last is None else f"the one before it, {last}, is intact"
                raise ValueError(
                    f"{final}: the checkpoint cannot be written ({error}); {left}. Make room, or lower "
                    "--keep-checkpoints, and resume"
                ) from error
            self._prune()
        meet(self.accelerator)

    def _prune(self) -> None:
        """Delete the oldest checkpoints beyond `keep`. Each loses its name first, so that half of one never
        passes for a whole one."""
        for old in list_checkpoints(self.folder)[: -self.keep]:
            shutil.rmtree(old.rename(folder_beside(old)))

    def _place(self, final: Path, state: CheckpointState, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Write a checkpoint beside its place, then rename it into it."""
        beside = folder_beside(final)
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir(parents=True)
            _write(beside, state, tensors)
            if final.exists():
                set_aside(final)
            beside.rename(final)
            _sync(self.folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def latest(self) -> Path | None:
        """The newest whole checkpoint."""
        return find_checkpoint(self.folder, "latest")

    def resume(self, wanted: str) -> CheckpointState | None:
        """Load `latest` or the checkpoint at a path; returns its state.json, None if `latest` finds none.

        Raises `ValueError` for a path without a checkpoint, for files that are broken, and if processes do
        not find the same one.
        """
        path = find_checkpoint(self.folder, wanted)
        names = gather_objects(self.accelerator, path.name if path else "none")
        if len(set(names)) > 1:
            raise ValueError(
                f"{self.folder}: processes find different checkpoints ({', '.join(names)}); --output must be "
                "on a disk that all machines share"
            )
        if self.accelerator.is_main_process:
            for folder in filter(None, (self.folder, path)):
                remove_unfinished(folder)
        if path is None:
            logger.info("no checkpoint in %s: starting from the beginning", self.folder)
            return None
        try:
            state = read_state(path / STATE)
            if (named := re.fullmatch(r"step-(\d+)(\.left-\d+)?", path.name)) and int(named[1]) != state.step:
                raise ValueError(f"{STATE} is of step {state.step}")
            for name, module in {"model": self.model, **self.others}.items():
                current = module.state_dict()
                held = load_tensors(path / f"{name}.safetensors", current)
                module.load_state_dict({k: sharded_like(v, current[k]) for k, v in held.items()}, strict=True)
            self.average.load(load_tensors(path / "average.safetensors", self.average.shadow))
            load_optimizers(self.optimizers, path / "optimizers.safetensors")
            _load_training_state(self.model, load_file(path / "training_state.safetensors"))
            self._load_rng(load_file(path / "rng.safetensors"), state)
            if (scaler := self.accelerator.scaler) is not None and state.scaler is not None:
                # Whole numbers among them were read as floats.
                kinds = {k: type(v) for k, v in scaler.state_dict().items()}
                scaler.load_state_dict({k: kind(state.scaler[k]) for k, kind in kinds.items()})
        except (SafetensorError, OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: broken checkpoint ({error!s:.500}); give an older one with --resume PATH"
            ) from error
        if state.threads != torch.get_num_threads():
            logger.warning(
                "resuming with %d threads instead of %d: results are equal up to rounding, not bit for bit",
                torch.get_num_threads(),
                state.threads,
            )
        logger.info("resuming from %s", path)
        meet(self.accelerator)
        if self.accelerator.is_main_process:
            for later in list_checkpoints(self.folder):
                if int(later.name.removeprefix("step-")) > state.step:
                    logger.info(
                        "%s belongs to the course that is left here: kept as %s", later, set_aside(later)
                    )
            self._prune()  # which a run that was killed may not have come to
        return state

    def model_is_written(self, step: int, max_steps: int) -> bool:
        """Whether a run that stands at `step` is finished: all steps done, and all files of the model written
        after them."""
        checkpoint, run = self.folder / f"step-{step}", self.folder.parent
        # The weights of a model of diffusers have a name of their own.
        weights = next((name for name in (WEIGHTS, DIFFUSION_WEIGHTS) if (run / name).exists()), WEIGHTS)
        names = [weights if name == WEIGHTS else name for name in SAVED]
        files = [checkpoint / STATE, *(run / name for name in names)]
        if step < max_steps or not all(path.exists() for path in files):
            return False
        # Not by the times of the files, which a copy changes.
        written = read_state(checkpoint / STATE).model_written
        return _is_model_of(run / weights, checkpoint) if written is None else written

    def mark_written(self, step: int) -> None:
        """Note in the checkpoint at `step` that the model, which the run ends with, is written."""
        path = self.folder / f"step-{step}" / STATE
        if not path.exists():  # the run began with the last checkpoint of another one
            return
        state = asdict(read_state(path)) | {"model_written": True}
        write_atomically(path, lambda p: p.write_text(_as_json(state), encoding="utf-8"))

    def _rng_state(self) -> dict[str, Tensor]:
        """The states of this process's generators. A run on CPUs leaves GPUs alone."""
        on_gpu = self.accelerator.device.type == "cuda"
        return {"cpu": torch.get_rng_state(), **({"cuda": torch.cuda.get_rng_state()} if on_gpu else {})}

    def _load_rng(self, tensors: Mapping[str, Tensor], state: CheckpointState) -> None:
        rank = self.accelerator.process_index
        mine = {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{rank}.")}
        needed = {"cpu", *{self.accelerator.device.type} & {"cuda"}}
        if state.processes == self.accelerator.num_processes and needed <= mine.keys():
            torch.set_rng_state(mine["cpu"])
            if "cuda" in needed:
                torch.cuda.set_rng_state(mine["cuda"])
        else:
            # Of another number of processes, or of CPUs; nothing else draws from these generators.
            logger.info("the checkpoint has no generators of these processes: layer dropout draws anew")
            seed_layers(self.seed, state.step, rank)


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


def _is_model_of(weights: Path, checkpoint: Path) -> bool:
    """Whether a model's file holds the averaged weights of a checkpoint, bit for bit."""
    names = ("model", "average")
    try:
        held = load_file(weights)
        of_model, averages = (load_file(checkpoint / f"{name}.safetensors") for name in names)
    except (OSError, SafetensorError):
        return False
    expected = of_model | averages
    return held.keys() == expected.keys() and all(torch.equal(held[k], v) for k, v in expected.items())


def _as_json(state: Mapping[str, object]) -> str:
    return json.dumps(state, indent=2) + "\n"


def _training_state(model: nn.Module) -> dict[str, Tensor]:
    bottleneck = getattr(model, "bottleneck", None)
    return bottleneck.training_state() if bottleneck is not None else {}


def _load_training_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    if (bottleneck := getattr(model, "bottleneck", None)) is not None:
        bottleneck.load_training_state(state)


def _write(folder: Path, state: CheckpointState, tensors: dict[str, dict[str, Tensor]]) -> None:
    for name, values in tensors.items():
        path = folder / f"{name}.safetensors"
        save_file({k: v.contiguous().clone() for k, v in values.items()}, path)
        _sync(path)
    (folder / STATE).write_text(_as_json(asdict(state)), encoding="utf-8")
    _sync(folder / STATE)
    _sync(folder)


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, written to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
