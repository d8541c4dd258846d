"""Setting up a training run: its processes, its schedule of rates, its seeds and trackers.

Left out: the loop (`loop.py`), the run's folder and checkpoints.
"""

import dataclasses
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from torch import nn
from torch.optim import Optimizer

from pipelines.run.processes import process_group, quiet_logging, require_same_options
from pipelines.training.optimizers import build_optimizers
from pipelines.training.options import TrainingOptions
from pipelines.training.sharding import check_sharding
from tokenizer.bottlenecks import Bottleneck
from tokenizer.distributed import keyed_generator
from tokenizer.installation import PIP_INSTALL

logger = logging.getLogger(__name__)


def start_accelerator(options: TrainingOptions) -> Accelerator:
    """An Accelerator for a run, with equal initial weights to come on every process.

    Buffers are not broadcast: codebooks are kept equal by their own collectives, before and not after they
    are used.
    """
    accelerator = Accelerator(
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.gradient_accumulation,
        log_with=None if options.tracker == "none" else options.tracker,
        project_dir=str(options.output),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False), process_group()],
    )
    check_batch(options.batch_size, options.gradient_accumulation, accelerator.num_processes)
    check_sharding(accelerator, options)
    if accelerator.mixed_precision == "fp16" and options.optimizer == "muon":
        # One gradient scaler cannot serve two optimizers: accelerate updates it after each of them.
        raise ValueError(
            "--optimizer muon does not work in fp16; use --mixed-precision bf16 or --optimizer adamw"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("fp16 is not for CPUs, where it would be float32; use --mixed-precision bf16 or no")
    if accelerator.mixed_precision == "bf16" and accelerator.device.type == "cuda":
        require_bf16(accelerator.device)
    if options.tracker != "none" and not accelerator.log_with:
        raise ValueError(
            f"--tracker {options.tracker} is not installed; take --tracker none, or "
            f"{PIP_INSTALL} {options.tracker}"
        )
    quiet_logging(accelerator)
    require_same_options(accelerator, options)
    set_seed(options.seed)
    return accelerator


def require_bf16(device: torch.device) -> None:
    """`ValueError` for a GPU that has no bf16 of its own: torch imitates it there, slower than float32."""
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(
            f"{torch.cuda.get_device_name(device)} has no bf16; use --mixed-precision no, or fp16 with "
            "--optimizer adamw"
        )


def check_batch(batch_size: int, accumulation: int, world: int) -> None:
    """`ValueError` unless the global batch divides evenly into processes × accumulation steps."""
    parts = accumulation * world
    if batch_size % parts:
        nearest = max(parts, round(batch_size / parts) * parts)
        raise ValueError(
            f"--batch-size {batch_size} does not divide by {world} processes × {accumulation} accumulation "
            f"steps; the nearest that does is {nearest}"
        )


def optimizers_of(
    model: nn.Module, options: TrainingOptions, betas: tuple[float, float] = (0.9, 0.99)
) -> list[Optimizer]:
    """Those that the options ask for."""
    rates = (options.learning_rate, options.muon_learning_rate)
    return build_optimizers(model, options.optimizer, *rates, options.weight_decay, betas)


def rate_scale(step: int, warmup_steps: int, max_steps: int) -> float:
    """Factor of the learning rates at `step`: linear warm-up, then half a cosine down to 0 at `max_steps`."""
    warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max_steps)))


def set_rates(optimizers: list[Optimizer], scale: float) -> None:
    """Set every group's rate to its peak rate times `scale`; a function of the step needs no state to
    resume."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("peak_lr", group["lr"])
            group["lr"] = group["peak_lr"] * scale


def put_back(model: nn.Module) -> Callable[[], None]:
    """Remember all that a forward pass in training may change by itself: the weights, buffers and training
    state of the bottleneck, which a codebook's start and revival move. Calling what is returned puts it back,
    without the sums of an unfinished optimizer step."""
    bottleneck = getattr(model, "bottleneck", None)
    if not isinstance(bottleneck, Bottleneck):
        return lambda: None
    state = {k: v.detach().clone() for k, v in bottleneck.state_dict().items()}
    training = {k: v.clone() for k, v in bottleneck.training_state().items()}

    def restore() -> None:
        bottleneck.load_state_dict(state)
        bottleneck.load_training_state(training)

    return restore


def require_finite_terms(values: Mapping[str, float], step: int) -> None:
    """`ValueError` naming the first value that is NaN or infinite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(
                f"step {step}: {name} is {value}; the training diverged. Start a new run with lower "
                f"--learning-rate and --muon-learning-rate, or in float32; the last checkpoint is intact"
            )


def seed_layers(seed: int, step: int, rank: int) -> None:
    """Seed torch's generator, which only layer dropout draws from, for one process."""
    torch.manual_seed(int(torch.randint(1 << 62, (), generator=keyed_generator(seed, step, rank, "layers"))))


# A run of less than this share of its preset's steps is short.
SHORT = 0.1


def warn_of_short_run(options: TrainingOptions, usual: int = 0, least: int = 0) -> None:
    """Say what a run is good for that has less than `least` steps, or few of those of its preset, `usual` (0
    for none). A run that goes on was told so when it began."""
    steps = options.max_steps
    if not options.resume and (steps < max(least, options.warmup_steps + 1) or steps < SHORT * usual):
        of = f" (the preset has {usual})" if usual else ""
        text = "--max-steps %d is short%s: enough to try things out, too little to learn much"
        logger.warning(text, steps, of)


def short_run(options: Any, log: bool, usual: int = 0) -> Any:
    """`options` with warm-ups that fit a run of few steps; says what it changed, and what a run so short is
    good for. `usual`: the steps of the preset, 0 for none."""
    bottleneck = options.model.bottleneck
    if log:
        warn_of_short_run(options, usual, bottleneck.start_steps + 1)
    if bottleneck.start_steps and bottleneck.start_steps >= options.max_steps:
        bottleneck = bottleneck.starting_within(options.max_steps // 2)
        if log:
            text = "--max-steps %d is short: codes start after step %d"
            logger.info(text, options.max_steps, bottleneck.start_steps)
        options = dataclasses.replace(
            options, model=dataclasses.replace(options.model, bottleneck=bottleneck)
        )
    return options


def start_trackers(accelerator: Accelerator, options: TrainingOptions) -> None:
    """Open the tracker that the options name; TensorBoard's files lie in the run's folder, under logs/."""
    if options.tracker != "none":
        accelerator.init_trackers("logs")


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Only operations that give the same bits every time, if `wanted`; `ValueError` that names one which has
    no such form. As before afterwards."""
    if not wanted:
        yield
        return
    # For cuBLAS, which reads it when it is first used (CUDA's cuBLAS guide, results reproducibility).
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        operation, said, _ = str(error).partition(" does not have a deterministic implementation")
        if not said:
            raise
        raise ValueError(f"--deterministic: {operation} has no deterministic form; leave it out") from error
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark
