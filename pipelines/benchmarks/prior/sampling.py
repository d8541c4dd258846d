"""The benchmark `prior`: speed of sampling and of training beside transformers' Llama with the same weights,
and of compiled loops beside what torch ships: its operations one by one, and torch.compile.

Left out: steps of training (`training.py`), and quality: both have the same logits, and
`evaluate.py` measures a prior.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor

from pipelines.benchmarks.prior.training import PEER, build, llama_like, memory, prior_training
from pipelines.benchmarks.registry import (
    Spread,
    benchmark,
    chosen_device,
    in_turns,
    machine,
    plain,
    print_table,
    ratios,
    spread,
    synchronizer,
)
from prior import Prior
from prior.sampling import generate
from prior.sampling.cpu.products import installed
from prior.sampling.decoder_cuda import StaticDecoder
from prior.sampling.weights import WEIGHTS, PreparedWeights
from tokenizer.installation import install_extra
from tokenizer.variants import at_least, require

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

READING = "reading the weights"
OURS, PLAIN, BY_TORCH = "tokenloom", "plain", "torch.compile"
COLUMNS = {
    "ms": "ms per step",
    "faster": "times as fast as generate",
    "ours_faster": "ours are so many times as fast",
    "bandwidth": "share of bandwidth",
    "differing": "differ one by one",
}
Jobs = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class PriorBenchmark:
    """Options of benchmark.py prior. The defaults make a model of 26 M parameters."""

    codes: int = 256
    """Codes of an item."""
    codebook_size: int = 1024
    """Entries N of the codebook."""
    dim: int = 512
    """Width of the transformer."""
    depth: int = 8
    """Number of transformer blocks."""
    heads: int = 8
    """Attention heads."""
    batch_sizes: tuple[int, ...] = (1, 16)
    """Items drawn at once, one measurement each."""
    train_batch_size: int = 8
    """Items of a training step; 0: training is not measured."""
    compile: bool = False
    """Measure steps of sampling and training compiled by torch.compile too (takes a C++ compiler on a
    CPU)."""
    memory: bool = False
    """Measure the memory of training too, in processes of its own (CPU only)."""
    turns: int = 10
    """Timed turns; 10 or more for numbers that go elsewhere."""
    warm_up: int = 1
    """Turns before them that do not count."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    output: Path | None = None
    """Folder for benchmark-prior.json."""

    def __post_init__(self) -> None:
        require(len(self.batch_sizes) > 0, "batch_sizes is empty, expected one or more")
        require(min(self.batch_sizes) >= 1, f"batch_sizes are {self.batch_sizes}, expected 1 or more each")
        at_least(self, 1, "turns", "codes")
        at_least(self, 0, "warm_up", "train_batch_size")


def llama_sampler(llama: "LlamaForCausalLM", batch: int, codes: int) -> Callable[[], Tensor]:
    """`generate` with its cache, drawing from the whole distribution as ours does."""
    size = llama.config.vocab_size
    start = torch.full((batch, 1), size - 1, device=llama.device)

    def draw() -> Tensor:
        drawn: Tensor = llama.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=codes,
            min_new_tokens=codes,
            do_sample=True,
            top_k=0,
            pad_token_id=0,
        )
        return drawn

    return draw


def ready_priors(prior: Prior, device: torch.device) -> dict[str, Prior]:
    """By name, the prior with its weights in every form, compiled where it can be."""
    forms = [form for form in WEIGHTS if form != "int8" or device.type == "cpu"]
    compiled = device.type == "cuda" or installed()
    return {f"{OURS} {form}": prior.for_sampling(form, compiled) for form in forms}


def torch_sampler(prior: Prior, batch: int) -> Callable[[], Tensor]:
    """`sample` on a CPU with the step of `StaticDecoder` compiled by torch.compile: what the compiled loops
    replace. The first call compiles it."""
    kept: list[StaticDecoder] = []

    def chosen(network: Prior, prepared: PreparedWeights, rows: int, steps: int) -> StaticDecoder:
        if not kept:
            kept.append(StaticDecoder(network, prepared, rows, steps, {"backend": "inductor"}))
        kept[0].length = 0
        return kept[0]

    def draw() -> Tensor:
        with patch.object(generate, "chosen_decoder", chosen):
            return prior.sample(batch)

    return draw


def sampling_jobs(prior: Prior, ready: dict[str, Prior], batch: int, compiled: bool = False) -> Jobs:
    """What is timed: ours with weights of every form; on a CPU the same without compiled loops, and with
    `compiled` by torch.compile; `generate` with two; and reading all weights once for each code."""
    found: Jobs = {name: partial(form.sample, batch) for name, form in ready.items()}
    codes = prior.config.num_codes
    if prior.head.device.type == "cpu":
        for form in WEIGHTS:
            plain = prior.for_sampling(form)
            found[f"{PLAIN} {form}"] = partial(plain.sample, batch)
            if compiled:
                found[f"{BY_TORCH} {form}"] = torch_sampler(prior.for_sampling(form), batch)
    found["generate full"] = llama_sampler(prior.to_transformers(), batch, codes)
    found["generate bf16"] = llama_sampler(prior.to_transformers().bfloat16(), batch, codes)
    weights = torch.cat([p.detach().flatten() for p in prior.parameters()])
    found[READING] = lambda: [weights.sum() for _ in range(codes)]
    return found


def differing(prior: Prior, batch: int) -> float:
    """The share of codes that differ when the same items are drawn one by one and not at once: rounding moves
    a number of chance beyond the edge of a code's interval, and the codes after that one differ too."""

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(batch)]

    at_once = prior.sample(batch, generator=generators())
    one_by_one = torch.cat([prior.sample(1, generator=generator) for generator in generators()])
    return (at_once != one_by_one).double().mean().item()


def sampling(options: PriorBenchmark, prior: Prior, batch: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds of a step, how many times as fast as `generate` with full weights, and, of what torch
    computes, how many times as fast ours with the same form of weights is (`ours_faster`); the share of the
    bandwidth (the time that reading the weights takes, in their form, over the time taken), and the share of
    codes that differ when drawn one by one."""
    ready = ready_priors(prior, device)
    jobs = sampling_jobs(prior, ready, batch, options.compile)
    seconds = in_turns(jobs, options.turns, options.warm_up, synchronizer(device))
    size = {"full": 1.0, "bf16": 1 / 2, "int8": 1 / 4}
    rows: dict[str, dict[str, Spread | float]] = {}
    for name, values in seconds.items():
        rows[name] = {"ms": spread([1000 * s / options.codes for s in values])}
        if name == READING:
            continue
        way, form = name.split()
        if way in (PLAIN, BY_TORCH):
            rows[name]["ours_faster"] = ratios(values, seconds[f"{OURS} {form}"])
        rows[name]["faster"] = ratios(seconds["generate full"], values)
        rows[name]["bandwidth"] = ratios(seconds[READING], values, scale=size[form])
        if name in ready and batch > 1:
            rows[name]["differing"] = differing(ready[name], batch)
    return rows


@benchmark(
    "prior",
    PriorBenchmark,
    f"Speed of sampling from a prior and training it, beside transformers ({install_extra('bench')}).",
)
def measure_prior(options: PriorBenchmark) -> dict[str, Any]:
    """Compare at every batch size."""
    if not find_spec(PEER):
        raise ValueError(f"this benchmark compares with {PEER}; {install_extra('bench')}")
    device = chosen_device(options.device)
    config = llama_like(options.codes, options.codebook_size, options.dim, options.depth, options.heads)
    if options.memory and device.type != "cpu":
        raise ValueError("--memory measures on a CPU only; leave it out, or give --device cpu")
    prior = build(config, device)
    where = machine(device, PEER, "numba")
    millions = sum(p.numel() for p in prior.parameters()) / 1e6
    print(f"{where['device']}, {where['threads']} threads; {millions:.1f} M parameters\n")
    results = {}
    for batch in options.batch_sizes:
        rows = results[str(batch)] = sampling(options, prior, batch, device)
        print_table(
            f"Drawing {options.codes} codes of {batch} at once: median over turns (least..greatest)",
            [
                ("", *COLUMNS.values()),
                *((n, *(_cell(r.get(column)) for column in COLUMNS)) for n, r in rows.items()),
            ],
        )
    batch = options.train_batch_size
    trained, peaks = {}, {}
    if batch:
        trained = prior_training(config, batch, options.turns, options.warm_up, options.compile, device)
        peaks = memory(config, batch) if options.memory else {}
    for precision, by_name in trained.items():
        print_table(
            f"Training on {batch} × {options.codes} codes, {precision}: median over turns (least..greatest)",
            [
                ("", "ms per step", f"times as fast as {PEER}", "last loss", "peak MiB"),
                *(
                    (n, r["ms"], r["faster"], _cell(r["loss"]), _cell(peaks.get(precision, {}).get(n), 0))
                    for n, r in by_name.items()
                ),
            ],
        )
    print("  ".join(f"{k} {v}" for k, v in where["versions"].items()))
    print(f"{where['command']}\n")
    found = {"sampling": plain(results), "training": plain(trained), "training_peak_mib": peaks}
    return {**where, "turns": options.turns, "parameters_m": millions, **found}


def _cell(value: Spread | float | None, digits: int = 4) -> str:
    """A value of a table, empty for none."""
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value or "")
