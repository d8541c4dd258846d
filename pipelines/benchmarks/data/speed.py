"""The benchmark `data`: how long training waits for its data, the loader beside others, and memory for much.

Left out: steps and their waits (`waits.py`), the other loaders (`peers.py`), and what memory
is (`memory.py`).
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from accelerate import Accelerator

from pipelines.benchmarks.data.memory import measure_all
from pipelines.benchmarks.data.peers import endless, peer_of_tokens, peers_of
from pipelines.benchmarks.data.waits import Run, Waits, prior_run, random_tokens, tokenizer_run
from pipelines.benchmarks.registry import alternately, benchmark, machine, plain, print_table, ratios, spread
from pipelines.data.batches import Batch, load_splits
from pipelines.presets import PRIORS, TOKENIZERS
from pipelines.training.options import TokenizerTraining
from pipelines.training.setup import start_accelerator
from tokenizer import Tokenizer
from tokenizer.variants import at_least, require

# Where our loader finds the data: decoded when the run began, or still encoded, to be decoded on access, as
# data are that do not fit into memory.
OURS = "tokenloom, on access"
PLACES = {"tokenloom, decoded": 1 << 62, OURS: 0}
TOKENS = "tokenloom"
# Of a training run or a loader: its name, and how many loader processes it has.
Key = tuple[str, int]
Load = Callable[[], Iterator[Any]]


@dataclass(frozen=True)
class DataBenchmark:
    """Options of benchmark.py data."""

    presets: tuple[str, ...] = ("emoji", "audio-small")
    """Presets of train_tokenizer.py whose training is measured, with their own data."""
    path: Annotated[str, tyro.conf.arg(name="data.path")] = ""
    """Other data for a preset, as --data.path of train_tokenizer.py; it is decoded into memory whole, so give
    --data.limit for much."""
    limit: Annotated[int | None, tyro.conf.arg(name="data.limit")] = None
    """Use only the first so many pictures or sound files."""
    workers: tuple[int, ...] = (0, 1, 2)
    """Loader processes, one measurement each."""
    prior: bool = True
    """Measure the training of a prior on as many random codes too."""
    steps: int = 3
    """Timed training steps in a turn, the loader's start and `warm_up` steps before them not counted."""
    batches: int = 20
    """Batches in a turn of the loaders alone."""
    turns: int = 10
    """Timed turns, after one that does not count; 10 or more for numbers that go elsewhere."""
    warm_up: int = 3
    """Steps, or batches, at the beginning of a turn that do not count."""
    memory: bool = False
    """Also measure memory while two epochs of made data are loaded, in processes of their own (on Linux)."""
    memory_pictures: int = 100_000
    """Pictures made for that, about 1 KB each, once as files and once as a Parquet file."""
    memory_hours: float = 2.0
    """Hours of sound made for that, in files of ten seconds, about 180 MB an hour."""
    memory_workers: tuple[int, ...] = (0, 2)
    """Loader processes for that, one measurement each."""
    output: Path | None = None
    """Folder for benchmark-data.json."""

    def __post_init__(self) -> None:
        known = ", ".join(TOKENIZERS)
        for name in self.presets:
            require(name in TOKENIZERS, f"--presets {name} is unknown; known: {known}")
        require(
            not self.path or len(self.presets) == 1,
            f"--data.path is for one preset, got {len(self.presets)}; add --presets NAME",
        )
        at_least(self, 1, "steps", "batches", "turns")
        at_least(self, 0, "warm_up")
        for name in ("workers", "memory_workers"):
            counts = getattr(self, name)
            require(
                bool(counts) and min(counts) >= 0, f"{name} is {counts}, expected one or more, each 0 or up"
            )
        at_least(self, 1000, "memory_pictures")
        require(self.memory_hours >= 0.05, f"memory_hours is {self.memory_hours}, expected 0.05 or more")


def training_speed(runs: Mapping[Key, Run], batch_size: int, options: DataBenchmark) -> dict[str, Any]:
    """The idle shares and milliseconds of steps, by name and loader processes, and `used`: how many examples
    a second training takes when it never waits."""
    jobs: dict[Key, Callable[[], Waits]] = {
        key: partial(run.steps, options.steps, key[1], options.warm_up) for key, run in runs.items()
    }
    turns = alternately(jobs, options.turns, warm_up=1)
    values: dict[str, Any] = {}
    for (name, workers), waits in turns.items():
        steps = [1000 * (a + b) for turn in waits for a, b in zip(*turn, strict=True)]
        values.setdefault(name, {})[str(workers)] = {
            "idle": spread([share for turn in waits for share in turn.idle]),
            "idle_of_all": 1000 * sum(sum(turn.waiting) for turn in waits) / sum(steps),
            "step_ms": spread(steps),
        }
    working = statistics.median(s for waits in turns.values() for turn in waits for s in turn.working)
    return {"batch_size": batch_size, "used": batch_size / working, "training": values}


def loading(loads: Mapping[Key, Load], ours: str, used: float, options: DataBenchmark) -> dict[str, Any]:
    """Of each loader alone, by name and loader processes: examples a second; `headroom`, how many times what
    training uses that is; and `slower`, its time over that of `ours` with as many processes."""
    jobs: dict[Key, Callable[[], float]] = {
        key: partial(pace, load, options.warm_up, options.batches) for key, load in loads.items()
    }
    turns = alternately(jobs, options.turns, warm_up=1)
    values: dict[str, Any] = {}
    for (name, workers), seconds in turns.items():
        values.setdefault(name, {})[str(workers)] = {
            "per_second": spread([1 / s for s in seconds]),
            "headroom": spread([1 / s / used for s in seconds]),
            "slower": ratios(seconds, turns[ours, workers]),
        }
    return values


def pace(load: Load, warm_up: int, count: int) -> float:
    """Seconds per example of `count` batches of a new loader, after `warm_up` that do not count."""
    found = load()
    for _ in range(warm_up):
        next(found)
    started, examples = time.perf_counter(), 0
    for _ in range(count):
        batch = next(found)
        examples += len(batch.x if isinstance(batch, Batch) else batch[0])
    return (time.perf_counter() - started) / examples


def of_tokenizer(
    options: DataBenchmark, preset: TokenizerTraining, accelerator: Accelerator, tok: Tokenizer
) -> dict[str, Any]:
    """Training a tokenizer, and loading what it learns."""
    over, size = tokenizer_run(preset, accelerator, tok), preset.batch_size
    splits = {name: load_splits(preset.data, tok.modality, most) for name, most in PLACES.items()}
    runs = {(name, n): over(splits[name]) for name in PLACES for n in options.workers}
    loads: dict[Key, Load] = {k: partial(run.load, k[1], 0, 1 << 40) for k, run in runs.items()}
    for name, build in peers_of(splits[OURS].train, preset.augment).items():
        peer = build()
        loads |= {(name, n): partial(endless, peer, size, n) for n in options.workers}
    values = training_speed(runs, size, options)
    return {**values, "beside": OURS, "loaders": loading(loads, OURS, values["used"], options)}


def of_prior(
    options: DataBenchmark, preset: TokenizerTraining, accelerator: Accelerator, tok: Tokenizer
) -> dict[str, Any]:
    """Training a prior, which loads tokens in its own process, on as many as the tokenizer's data give."""
    prior = PRIORS["speech" if tok.modality.timed else "small"].build()
    prior = dataclasses.replace(prior, output=preset.output, tracker="none")
    splits = load_splits(preset.data, tok.modality, PLACES[OURS])
    info, rows = random_tokens(tok, splits, prior.seconds)
    run, size = prior_run(prior, accelerator, info, rows), prior.batch_size
    values = training_speed({(TOKENS, 0): run}, size, options)
    peer = peer_of_tokens(rows)
    loads: dict[Key, Load] = {(TOKENS, 0): partial(run.load, 0, 0, 1 << 40)}
    loads["DataLoader, tensors", 0] = partial(endless, peer, size, 0)
    return {**values, "beside": TOKENS, "loaders": loading(loads, TOKENS, values["used"], options)}


def show(title: str, values: dict[str, Any]) -> None:
    """The tables of training and of loaders on stdout."""
    head = f"{title}, batches of {values['batch_size']}"
    training, loaders = (
        [(name, n, row) for name, by_workers in values[part].items() for n, row in by_workers.items()]
        for part in ("training", "loaders")
    )
    print_table(
        f"{head}: share of a training step that waits for its batch, median (least..greatest)",
        [
            ("", "loader processes", "of a step", "of all steps", "ms per step"),
            *((name, n, r["idle"], f"{r['idle_of_all']:.4f}", r["step_ms"]) for name, n, r in training),
        ],
    )
    print_table(
        f"{head}: loaders alone; A: examples per second / those of training that never waits "
        f"({values['used']:.4g}),\nB: time / that of {values['beside']}, above 1 is slower",
        [
            ("", "loader processes", "examples per second", "A", "B"),
            *((name, n, r["per_second"], r["headroom"], r["slower"]) for name, n, r in loaders),
        ],
    )


@benchmark(
    "data",
    DataBenchmark,
    "How long a training step waits for its data, and the loader beside torch's DataLoader; --memory: memory "
    "while much data is loaded.",
)
def measure_data(options: DataBenchmark) -> dict[str, Any]:
    """Measure every preset, and memory if asked to."""
    values: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        presets = {name: _preset(name, options, Path(folder)) for name in options.presets}
        if len({p.mixed_precision for p in presets.values()}) > 1:
            raise ValueError("--presets train in different precision; measure them in runs of their own")
        accelerator = start_accelerator(next(iter(presets.values())))
        where = machine(accelerator.device, "datasets", "pillow", "soundfile", "torchaudio")
        print(f"{where['device']}, {where['threads']} threads\n")
        for name, preset in presets.items():
            tok = Tokenizer(preset.model).to(accelerator.device)
            values[name] = of_tokenizer(options, preset, accelerator, tok)
            show(name, values[name])
            if options.prior and tok.bottleneck.num_codebooks:
                values[f"prior of {name}"] = of_prior(options, preset, accelerator, tok)
                show(f"prior of {name}", values[f"prior of {name}"])
            elif options.prior:
                print(f"{name} has no codes, so there is no prior to measure.\n")
    result = {**where, "turns": options.turns, "steps": options.steps, "runs": plain(values)}
    if options.memory:
        result["memory"] = measure_all(options.memory_pictures, options.memory_hours, options.memory_workers)
    print("  ".join(f"{k} {v}" for k, v in where["versions"].items()))
    print(f"{where['command']}\n")
    return result


def _preset(name: str, options: DataBenchmark, folder: Path) -> TokenizerTraining:
    """The options of a preset, with the data asked for."""
    preset: TokenizerTraining = TOKENIZERS[name].build()
    data = dataclasses.replace(preset.data, path=options.path or preset.data.path, limit=options.limit)
    return dataclasses.replace(preset, data=data, output=folder / name, tracker="none")
