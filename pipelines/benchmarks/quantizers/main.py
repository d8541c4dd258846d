"""The benchmark `quantizers`: all bottlenecks and the peers' in one encoder and decoder, at equal bits.

Left out: a training (`training/setup.py`), who takes part (`contestants.py`), and the search alone.
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch

from pipelines.benchmarks.quantizers import memory as bottleneck_memory
from pipelines.benchmarks.quantizers.contestants import REFERENCE, Contestant, contestants
from pipelines.benchmarks.quantizers.peers import PACKAGES
from pipelines.benchmarks.quantizers.report import plot, result, show
from pipelines.benchmarks.quantizers.training import Recipe, channels, step_seconds, train_contestant
from pipelines.benchmarks.registry import benchmark, machine
from pipelines.data.batches import Splits, load_splits
from pipelines.data.config import DataConfig
from pipelines.run.command_line import NOTHING, flatten
from pipelines.run.progress import progress
from tokenizer.hub.files import write_text
from tokenizer.installation import install_extra
from tokenizer.variants import at_least, config_to_dict, require

KEPT = "benchmark-quantizers.jsonl"
PLOT = "benchmark-quantizers.png"
# Options that decide no training: a second start may have others.
MAY_CHANGE = ("output", "bits", "contestants", "seeds", "turns", "memory")


@dataclass(frozen=True)
class QuantizersBenchmark:
    """Options of benchmark.py quantizers."""

    bits: tuple[int, ...] = (9,)
    """Bits per position, one table for each; a codebook has 2^bits entries."""
    contestants: Annotated[tuple[str, ...], NOTHING] = ()
    """Only these; left out, all."""
    seeds: int = 3
    """Trainings of each contestant, of seeds 0, 1, ..."""
    steps: int = 400
    """Optimizer steps of a tokenizer."""
    prior_steps: int = 150
    """Optimizer steps of the prior over its codes."""
    batch_size: int = 64
    """Pictures per step, of both."""
    data: DataConfig = field(default_factory=DataConfig)
    """Pictures to train and measure on."""
    widths: Annotated[tuple[int, ...], NOTHING] = ()
    """Channels per level of encoder and decoder; left out, those of the preset emoji."""
    turns: int = 12
    """Timed turns of training steps; 10 or more for numbers that go elsewhere."""
    memory: bool = True
    """Measure the memory of each bottleneck's training step, in processes of their own (Linux)."""
    threads: int = 0
    """Threads on the CPU. 0: as many as torch takes."""
    output: Path | None = None
    """Folder for benchmark-quantizers.json and .png, and for every training as it ends: the same command goes
    on where it was interrupted."""

    def __post_init__(self) -> None:
        require(len(set(self.bits)) == len(self.bits) > 0, f"bits are {self.bits}, expected different ones")
        for bits in self.bits:
            require(5 <= bits <= 18, f"bits is {bits}, expected 5 to 18")
        at_least(self, 1, "seeds", "steps", "prior_steps", "batch_size", "turns")
        at_least(self, 0, "threads")


Key = tuple[int, str, int]
"""Bits, contestant and seed of a training."""


class Kept:
    """The finished trainings, also in `folder` (None: only here), each written as soon as it is there."""

    def __init__(self, folder: Path | None, options: dict[str, Any]) -> None:
        """`ValueError` if the folder holds trainings of other `options`."""
        self.path = None if folder is None else folder / KEPT
        self.rows: dict[Key, dict[str, Any]] = {}
        if self.path is None:
            return
        lines = list(_objects(self.path)) if self.path.exists() else []
        if lines:
            _compare(lines[0].get("options", {}), options, self.path)
        for row in lines[1:]:
            self.rows[row["bits"], row["contestant"], row["seed"]] = row
        # Written anew: a line that was cut off must not swallow the next one.
        whole = "".join(json.dumps(line) + "\n" for line in ({"options": options}, *self.rows.values()))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, whole)

    def find(self, key: Key, contestant: Contestant) -> dict[str, Any] | None:
        """A training that is there already. `ValueError` if it was of another config of that name."""
        row = self.rows.get(key)
        config = json.loads(json.dumps(config_to_dict(contestant.config)))
        if row is not None and row["config"] != config:
            raise ValueError(
                f"{self.path}: {contestant.name} was trained as {row['config']}, now it is {config}; choose "
                "another --output"
            )
        return row

    def add(self, key: Key, row: dict[str, Any]) -> None:
        """Keep a training."""
        self.rows[key] = json.loads(json.dumps(row))
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a JSON Lines file, without one that was cut off as it was written."""
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def _compare(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    """`ValueError` naming the first option that differs."""
    before, after = flatten(old), flatten(new)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            raise ValueError(
                f"{path} holds trainings with {name} {before.get(name)!r}, now it is {after.get(name)!r}; "
                "give the same options to go on with them, or another --output"
            )


@benchmark(
    "quantizers",
    QuantizersBenchmark,
    "Every bottleneck and the quantizers of vector-quantize-pytorch and diffusers "
    f"({install_extra('bench')}) in one encoder and decoder, at equal bits, steps and seeds: quality, "
    "usage, bits of a prior, time, memory.",
)
def measure_quantizers(options: QuantizersBenchmark) -> dict[str, Any]:
    """Train all that is not kept yet, time and weigh the steps, print the tables; write the plot if asked
    to."""
    if options.threads:
        torch.set_num_threads(options.threads)
    entered, left_out = _entered(options)
    recipe = Recipe(options.steps, options.prior_steps, options.batch_size, options.widths)
    splits = load_splits(options.data, recipe.modality().build())
    require(len(splits.held_out) > 0, f"{options.data.path}: nothing is held out, so there is no quality")
    decisive = {k: v for k, v in config_to_dict(options).items() if k not in MAY_CHANGE}
    kept = Kept(options.output, {**decisive, "threads": torch.get_num_threads()})
    trainings = _train_all(entered, recipe, splits, options.seeds, kept)
    results = [
        row for bits in entered for row in _measured(bits, entered[bits], recipe, splits, options, trainings)
    ]
    where = machine(torch.device("cpu"), *PACKAGES)
    print(f"{where['device']}, {where['threads']} threads")
    show(results, len(splits.held_out))
    print("  ".join(f"{k} {v}" for k, v in where["versions"].items()))
    print(f"{where['command']}\n")
    if options.output is not None:
        plot(results, options.output / PLOT)
    return {
        **where,
        "options": {**config_to_dict(options), **decisive},
        "pictures": {"train": len(splits.train), "held_out": len(splits.held_out)},
        "left_out": left_out,
        "results": results,
        "trainings": trainings,
    }


def _entered(options: QuantizersBenchmark) -> tuple[dict[int, list[Contestant]], dict[str, str]]:
    """Who takes part, by bits; says who does not, and why."""
    entered, left_out = dict[int, list[Contestant]](), dict[str, str]()
    for bits in options.bits:
        entered[bits], without = contestants(bits, channels(), options.contestants)
        left_out |= {f"{name} at {bits} bits": why for name, why in without.items()}
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    return entered, left_out


def _train_all(
    entered: dict[int, list[Contestant]], recipe: Recipe, splits: Splits, seeds: int, kept: Kept
) -> list[dict[str, Any]]:
    """All trainings, one seed after the other, so that an interrupted run has some of everyone."""
    places = [(s, bits, c) for s in range(seeds) for bits, chosen in entered.items() for c in chosen]
    todo = [(s, bits, c) for s, bits, c in places if kept.find((bits, c.name, s), c) is None]
    each = recipe.steps + recipe.prior_steps
    if kept.path is not None and len(todo) < len(places):
        print(f"{len(places) - len(todo)} of {len(places)} trainings are in {kept.path}")
    try:
        with progress(each * len(places), "quantizers", each * (len(places) - len(todo))) as bar:
            for seed, bits, contestant in todo:
                bar.set_postfix(training=f"{contestant.name}, {bits} bits, seed {seed}")
                row = train_contestant(contestant, bits, recipe, splits, seed, bar)
                kept.add((bits, contestant.name, seed), row)
    except KeyboardInterrupt:
        if kept.path is not None:
            print(f"{kept.path} has all finished trainings: the same command goes on", file=sys.stderr)
        raise
    return [kept.rows[bits, c.name, s] for s, bits, c in places]


def _measured(
    bits: int,
    chosen: Sequence[Contestant],
    recipe: Recipe,
    splits: Splits,
    options: QuantizersBenchmark,
    trainings: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """The rows of the table of these bits."""
    (reference,), _ = contestants(bits, channels(), [REFERENCE])
    timed = chosen if reference in chosen else [reference, *chosen]
    seconds = step_seconds(timed, recipe, splits, options.turns)
    stride = recipe.modality().build().stride
    height, width = recipe.modality().size
    grid = (-(-height // stride), -(-width // stride))
    rows = []
    for contestant in chosen:
        memory = None
        if options.memory and bottleneck_memory.available():
            memory = bottleneck_memory.bottleneck_memory(
                contestant.name, bits, channels(), options.batch_size, grid
            )
        mine = [t for t in trainings if (t["bits"], t["contestant"]) == (bits, contestant.name)]
        rows.append(result(contestant, mine, seconds, memory))
    return rows
