"""Checks of training on a device: each preset's steps by the scripts' own loop, on made-up data, alone and
sharded; and a run that is stopped and goes on.

Left out: real data and evaluation, which the scripts' tests have.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from prior import Prior, PriorConfig
from tests.gpu import waits
from tests.gpu.card import NotRun, require
from tests.helpers.ports import held_port
from tests.helpers.running import WHOLE_TOKENIZER, as_a_new_process, run_script, without_plots
from tokenizer import Tokenizer
from tokenizer.distributed import Step, keyed_generator

PRECISIONS = ("no", "bf16", "fp16")
# What steps need, besides torch.
LOOP = ("pipelines.training.loop", "pipelines.presets")
MIB = 1 << 20
# Of what the presets of priors are for, tokens: entries, codebooks, grid.
TOKENS = {False: (1024, 1, (8, 8)), True: (512, 4, (50,))}


class Place(NamedTuple):
    """A batch's place in the run."""

    step: int
    micro: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Trained:
    """What steps gave: a loss each, waits in the last of them, MiB at most in them and in a checkpoint."""

    losses: list[float]
    waits: waits.Waits
    counted_steps: int
    peak: float
    peak_of_checkpoint: float

    def text(self) -> str:
        memory = f"; peak {self.peak:.0f} MiB, of a checkpoint {self.peak_of_checkpoint:.0f}"
        ends = f"loss {self.losses[0]:.4g} to {self.losses[-1]:.4g}; "
        return ends + self.waits.text(self.counted_steps) + (memory if self.peak else "")


def preset_names() -> list[str]:
    """All presets as tokenizer/NAME and prior/NAME; "presets" where a package is missing that they need."""
    try:
        from pipelines.presets import PRIORS, TOKENIZERS
    except ModuleNotFoundError:  # each check that is given this name says which
        return ["presets"]
    return [
        f"{kind}/{name}" for kind, known in (("tokenizer", TOKENIZERS), ("prior", PRIORS)) for name in known
    ]


@contextlib.contextmanager
def accelerate_on(device: torch.device, sharded: bool) -> Iterator[None]:
    """accelerate takes the device, and shards over one process if asked to; a new process in its eyes."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    variables = {} if device.type == "cuda" else {"ACCELERATE_USE_CPU": "true"}
    with contextlib.ExitStack() as stack:
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        stack.enter_context(as_a_new_process())
        if sharded:
            port = stack.enter_context(held_port())
            variables |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
            variables |= {"MASTER_PORT": str(port), "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
            variables |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "LOCAL_WORLD_SIZE": "1"}
            variables |= {"FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
        for name, value in variables.items():
            patched.setenv(name, value)
        if sharded:
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
            stack.callback(torch.distributed.destroy_process_group)
            patched.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
            if device.type == "cpu":  # accelerate shards on GPUs only; its state says that this is one
                PartialState(cpu=True)
                PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        yield


def prior_of(options: Any, timed: bool) -> Prior:
    """The prior of a preset, for tokens of its kind."""
    size, books, grid = TOKENS[timed]
    fields = dataclasses.asdict(options.model)
    fields["pattern"] = fields["pattern"] or ("delay" if timed else "flatten")
    return Prior(PriorConfig(codebook_size=size, num_codebooks=books, grid=grid, **fields))


def made_up(net: Tokenizer | Prior, batch: int, step: int, device: torch.device) -> Tensor:
    """A batch of data for a step: smooth noise in [-1, 1], or codes that follow a rule."""
    generator = keyed_generator("data", step)
    if isinstance(net, Prior):
        shape = (batch, net.config.num_codebooks, *net.config.grid)
        start = torch.randint(net.config.codebook_size, (batch, 1), generator=generator)
        run = start + 3 * torch.arange(math.prod(shape[1:]))
        return (run % net.config.codebook_size).view(shape).to(device)
    size = net.config.modality.size
    coarse = torch.randn(batch, net.modality.channels, *(-(-n // 4) for n in size), generator=generator)
    mode = "linear" if len(size) == 1 else "bilinear"
    return torch.tanh(nn.functional.interpolate(coarse, size, mode=mode)).to(device)


def preset_options(
    name: str, precision: str, folder: Path, steps: int, batch: int, optimizer: str | None
) -> tuple[Any, bool]:
    """A preset's options for so many steps, and whether it is of a prior of tokens with an axis of time;
    `optimizer` None: the preset's."""
    from pipelines.presets import PRIORS, TOKENIZERS

    kind, _, preset_name = name.partition("/")
    preset = (TOKENIZERS if kind == "tokenizer" else PRIORS)[preset_name]
    options = preset.build()
    changed = dataclasses.replace(
        options,
        output=folder,
        max_steps=steps,
        batch_size=batch,
        mixed_precision=precision,
        optimizer=optimizer or options.optimizer,
        warmup_steps=min(options.warmup_steps, steps // 4),
        tracker="none",
    )
    return changed, preset.timed


def train(
    device: torch.device,
    name: str,
    precision: str,
    folder: Path,
    steps: int = 40,
    batch: int = 8,
    sharded: bool = False,
    optimizer: str | None = None,
) -> Trained:
    """Steps of a preset, of which the last quarter is watched, and a checkpoint; `optimizer` None: the
    preset's, or AdamW where Muon is refused. `AssertionError` for a loss that is not finite.
    """
    require(*LOOP)
    from pipelines.training.loop import Course
    from pipelines.training.optimizers import build_optimizers
    from pipelines.training.setup import short_run, start_accelerator
    from pipelines.training.sharding import is_sharded

    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise NotRun(f"{torch.cuda.get_device_name(device)} has no bf16")
    optimizer = "adamw" if precision == "fp16" or sharded else optimizer
    options, timed = preset_options(name, precision, folder, steps, batch, optimizer)
    folder.mkdir(parents=True, exist_ok=True)
    first = steps - steps // 4
    with accelerate_on(device, sharded):
        accelerator = start_accelerator(options)
        assert accelerator.device.type == device.type and is_sharded(accelerator) == sharded
        if name.startswith("tokenizer/"):
            options = short_run(options, log=False)
            net: Tokenizer | Prior = Tokenizer(options.model).to(accelerator.device)
        else:
            net = prior_of(options, timed).to(accelerator.device)
        rates = (options.learning_rate, options.muon_learning_rate, options.weight_decay)
        course = Course(accelerator, options, net, build_optimizers(net, options.optimizer, *rates), name)
        with course, waits.counted(device) as seen:
            losses = watched_steps(course, seen, steps, first)
        values = [float(loss) for loss in losses]
        assert all(map(math.isfinite, values)), f"losses: {values}"
        peak = peak_since(device)
        course.checkpoints.save(steps)
        return Trained(values, seen, steps - first, peak, peak_since(device))


def watched_steps(course: Any, seen: waits.Waits, steps: int, first: int) -> list[Tensor]:
    """The losses of a course's steps, by made-up data; waits are counted from step `first` on."""
    accelerator, batch = course.accelerator, course.options.batch_size
    backward = accelerator.backward

    def watched_backward(loss: Tensor) -> None:
        with seen.within("backward"):
            backward(loss)

    def watched_pass(model: nn.Module, rows: slice, step: Step | None, x: Tensor) -> tuple[Any, Any]:
        with seen.within("forward"):
            out = model(x[rows]) if isinstance(course.net, Prior) else model(x[rows], step=step)
        return out.losses, out.stats

    losses = []
    with patch.object(accelerator, "backward", watched_backward):
        for index in range(steps):
            with seen.within("data"):
                x = made_up(course.net, batch, index, accelerator.device)
            if index == first:
                seen.reset()
            assert course.learn(Place(index), partial(watched_pass, x=x), [str(i) for i in range(batch)])
            losses.append(course.terms["loss"])
    return losses


def peak_since(device: torch.device) -> float:
    """MiB in use at most on a GPU since the last call; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    peak = torch.cuda.max_memory_allocated(device) / MIB
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def stop_and_go_on(device: torch.device, folder: Path, deterministic: bool) -> str:
    """A run that is stopped and resumed is the one that never was: to the byte if deterministic, else as far
    as told."""
    require("pipelines.train_tokenizer")
    from tests.helpers.whole_runs import assert_same_run, stopped_at

    words = [*WHOLE_TOKENIZER, "--tracker", "none", *(["--deterministic"] if deterministic else [])]
    whole = folder / "whole"
    with accelerate_on(device, sharded=False), without_plots(), pytest.MonkeyPatch.context() as patched:
        # run_script undoes neither.
        patched.setenv("CUBLAS_WORKSPACE_CONFIG", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8"))
        run_script("train_tokenizer", *words, "--output", whole)
        again = stopped_at(8, whole, folder / "again")
        run_script("train_tokenizer", *words, "--output", again, "--resume", "latest")
    if deterministic:
        assert_same_run(again, whole)
        return "equal to the byte"
    found, expected = (load_file(f / "model.safetensors") for f in (again, whole))
    off = max(float((found[k].double() - v.double()).abs().max()) for k, v in expected.items())
    assert off < 0.05, f"weights differ by up to {off}"
    return f"weights differ by up to {off:.2g}"
