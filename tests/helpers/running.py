"""Scripts run by tests: in this process, with command lines of tiny runs.

Left out: folders of runs that tests share (conftest.py), and several processes
(processes/test_two_processes.py).
"""

import argparse
import contextlib
import functools
import importlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

# Nothing of `pipelines` is imported here, but where a script is run: `pytest -m gpu` also runs where packages
# are missing that only scripts need.

ROOT = Path(__file__).resolve().parents[2]

# A tokenizer of a few thousand weights on 32 emoji: a run takes half a second without its plots.
TINY_TOKENIZER = (
    *("--model.modality.widths", "8", "16", "--model.modality.blocks", "0", "1"),
    *("--model.bottleneck.codebook-size", "32", "--model.bottleneck.kmeans-steps", "2"),
    *("--batch-size", "16", "--data.limit", "32", "--log-every", "1", "--warmup-steps", "2"),
)
# Of runs that are stopped and resumed: wide enough for Muon, with a k-means start after step 6, so that the
# first checkpoint holds half a reservoir.
WHOLE_STEPS = ("--max-steps", 12, "--checkpoint-every", 4, "--keep-checkpoints", 9, "--eval-every", 5)
WHOLE_TOKENIZER = (
    *("emoji", *TINY_TOKENIZER, "--model.modality.widths", 24, 32),
    *("--model.bottleneck.kmeans-steps", 6),
    *WHOLE_STEPS,
)
TINY_SOUND = (
    *("--model.modality.widths", *"468", "--model.modality.blocks", *"011", "--model.modality.size", "1600"),
    *("--batch-size", "8", "--data.limit", "6", "--log-every", "1", "--warmup-steps", "2"),
)
TINY_CODEC = (
    *TINY_SOUND,
    *("--model.bottleneck.stage.codebook-size", "16", "--model.bottleneck.stage.kmeans-steps", "1"),
)
TINY_PRIOR = (
    *("--model.dim", "24", "--model.depth", "1", "--model.heads", "2"),
    *("--batch-size", "16", "--log-every", "1", "--warmup-steps", "2"),
)
TINY_VAE = (
    *("--model.modality.widths", *"44888", "--model.modality.blocks", *"00000"),
    *("--model.bottleneck.dim", "4", "--batch-size", "16", "--data.limit", "32", "--log-every", "1"),
)

# The classes of the embedded emoji.
EMOJI = (*("activities", "animals", "flags", "food", "objects", "people", "smileys", "symbols", "travel"),)
# The files of a saved model.
MODEL = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "metrics.json"}


@dataclass(frozen=True)
class Finished:
    """How a script ended, and what it wrote."""

    code: int
    out: str
    err: str


Script = Callable[..., Finished]


@contextlib.contextmanager
def as_a_new_process() -> Iterator[None]:
    """Within the context nothing has used accelerate or logging yet; what it does with them ends with it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    states = (AcceleratorState, GradientState, PartialState)
    try:
        for state in states:
            state._reset_state()
        yield
    finally:
        for state in states:
            state._reset_state()
        root.handlers[:] = handlers
        root.setLevel(level)


def run_script(name: str, *words: object, code: int | None = 0, dnsmos: bool = False) -> Finished:
    """pipelines/NAME.py with `words` as its command line, in this process.

    Without `dnsmos` as where that cannot be measured, as it takes a second for each clip. An exit status
    other than `code` fails the test that asked (None: any is fine).
    """
    from pipelines.run.command_line import run

    main = importlib.import_module(f"pipelines.{name}").main
    out, err, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, as_a_new_process():
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        if not dnsmos:
            patch.setattr("tokenizer.dnsmos.weights_file", lambda: None)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                run(main)
        except SystemExit as stop:
            status = int(stop.code or 0)
    finished = Finished(status, out.getvalue(), err.getvalue())
    assert code is None or finished.code == code, f"{name} ended with {status}\n{finished.err}"
    return finished


class Parsed(Exception):
    """Raised in place of a script's work, with the options it was given."""


def options_of(name: str, words: Sequence[str]) -> Any:
    """What pipelines/NAME.py makes of a command line, read by its own parser."""
    from pipelines.run.command_line import parse

    module = importlib.import_module(f"pipelines.{name}")

    def parse_and_stop(*arguments: Any, **options: Any) -> None:
        raise Parsed(parse(*arguments, **options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "parse", parse_and_stop)
        patch.setattr(sys, "argv", [f"{name}.py", *words])
        with pytest.raises(Parsed) as stopped:
            module.main()
    return stopped.value.args[0]


@dataclass(frozen=True)
class Command:
    """A command line of one of the scripts; `launch` is what accelerate's own parser made of its part."""

    script: str
    options: Any
    launch: argparse.Namespace | None


def read_command(words: Sequence[str]) -> Command:
    """`python [-m] SCRIPT …` or `accelerate launch … SCRIPT …`, all of it read by the real parsers."""
    launch, words = None, list(words)
    if words[:2] == ["accelerate", "launch"] or words[1:3] == ["-m", "accelerate.commands.launch"]:
        launch = launch_command_parser().parse_args(words[2 if words[0] == "accelerate" else 3 :])
        script, rest = launch.training_script, launch.training_script_args
        is_module = launch.module
    else:
        is_module = words[1] == "-m"
        script, *rest = words[2 if is_module else 1 :]
    name = script.removeprefix("pipelines.") if is_module else Path(script).stem
    path = Path("pipelines") / f"{name}.py"
    assert script == (f"pipelines.{name}" if is_module else str(path)) and (ROOT / path).exists(), script
    return Command(name, options_of(name, rest), launch)


def environment() -> dict[str, str]:
    """Variables for a script in a process of its own: this source tree, and as many threads as here."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def names_in(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.name != ".lock"}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


def assert_refused(finished: Finished, *named: object) -> None:
    """The script ended with status 2 and one message on stderr that names all of `named`."""
    assert finished.code == 2
    assert finished.err.count("Error: ") == 1 and "Traceback" not in finished.err
    message = finished.err[finished.err.index("Error: ") :]
    for part in named:
        assert str(part) in message, message


@functools.cache
def drawn() -> dict[str, Callable[..., Any]]:
    """What trainings draw, by where they take it from."""
    from pipelines.reports.plots import loss_plot
    from pipelines.reports.priors import write_prior_sample
    from pipelines.reports.tokenizers import write_tokenizer_report

    return {
        "pipelines.train_tokenizer.write_tokenizer_report": write_tokenizer_report,
        "pipelines.train_decoder.write_tokenizer_report": write_tokenizer_report,
        "pipelines.train_prior.loss_plot": loss_plot,
        "pipelines.train_prior.write_prior_sample": write_prior_sample,
    }


@contextlib.contextmanager
def without_plots() -> Iterator[None]:
    """Training without its pictures and samples, which take ten times longer than tiny runs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in drawn():
            patch.setattr(name, lambda *_: None)
        yield


def draw_nothing() -> None:
    """The same for the rest of this process, which is not that of the tests, and scripts that it runs."""
    for name, shipped in drawn().items():
        for module in (name.rpartition(".")[0], shipped.__module__):
            setattr(importlib.import_module(module), shipped.__name__, lambda *_: None)


@contextlib.contextmanager
def as_shipped() -> Iterator[None]:
    """Training with its pictures, also within `without_plots`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, shipped in drawn().items():
            patch.setattr(name, shipped)
        yield


def whole_prior(tokens: Path) -> tuple[Any, ...]:
    """The words of a run of the prior that is stopped and resumed, but for its output: in random orders to
    step 6, in ever fewer to step 9, and in raster order to the end."""
    orders = ("--model.order", "any", "--orders.anneal", 0.5, 0.75)
    return ("small", *TINY_PRIOR, "--tokens", tokens, *orders, *WHOLE_STEPS)


def noise(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
