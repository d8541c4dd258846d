"""Steps of the second stage (`train_decoder.py`) beside those of the first (`train_tokenizer.py`): their time
in turns, and the memory that each takes in a process of its own.

Left out: reading data, checkpoints, and perceptual networks, which cost what the network does.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from pipelines.benchmarks.decoder.stages import FIRST, STAGES, peak_of_steps, stage_of
from pipelines.benchmarks.registry import (
    Spread,
    benchmark,
    in_turns,
    machine,
    plain,
    print_table,
    ratios,
    spread,
    synchronizer,
)
from pipelines.presets import DECODERS, TOKENIZERS
from pipelines.run.own_process import in_own_process
from tokenizer.variants import at_least, require


@dataclass(frozen=True)
class DecoderBenchmark:
    """Options of the benchmark."""

    tokenizer: str = "emoji"
    """Preset of train_tokenizer.py: data, batch and networks are its."""
    decoder: str = "pictures"
    """Preset of train_decoder.py: losses, optimizers and discriminators are its."""
    turns: int = 10
    """Turns; each takes a step of each stage."""
    warm_up: int = 3
    """Turns before those, which do not count."""
    memory: bool = True
    """Also measure the memory of each stage in a process of its own."""
    output: Path | None = None
    """Folder for benchmark-decoder.json; left out, nothing is written."""

    def __post_init__(self) -> None:
        at_least(self, 1, "turns")
        at_least(self, 0, "warm_up")
        for name, known in (("tokenizer", TOKENIZERS), ("decoder", DECODERS)):
            value = getattr(self, name)
            require(value in known, f"--{name}: unknown preset {value!r}; known: {', '.join(known)}")


@benchmark(
    "decoder", DecoderBenchmark, "steps of the second stage beside those of the first, and their memory"
)
def measure_decoder(options: DecoderBenchmark) -> dict[str, Any]:
    """Milliseconds of a step of each stage, as multiples of the first one's, and MiB."""
    first, second = TOKENIZERS[options.tokenizer].build(), DECODERS[options.decoder].build()
    device = Accelerator().device
    jobs = {name: stage_of(name, first, second) for name in STAGES}
    seconds = in_turns(jobs, options.turns, options.warm_up, synchronizer(device))
    found: dict[str, dict[str, Any]] = {
        name: {"ms": spread([1000 * s for s in values]), "times_first": ratios(values, seconds[FIRST])}
        for name, values in seconds.items()
    }
    if options.memory:
        for name in STAGES:
            arguments = (name, options.tokenizer, options.decoder)
            found[name]["mib"] = in_own_process(peak_of_steps, *arguments, threads=torch.get_num_threads())
    rows: list[list[object]] = [["stage", "ms a step", "times the first", "MiB"]]
    for name, values in found.items():
        ratio: Spread = values["times_first"]
        rows.append([name, values["ms"], ratio, f"{values['mib']:.0f}" if "mib" in values else "-"])
    print_table(f"{options.tokenizer} and {options.decoder}, {first.batch_size} examples a step", rows)
    return {**machine(device, "accelerate"), "stages": plain(found)}
