"""The quickstart: its commands fit the scripts, and a short one leaves all that it promises, with steps that
are started by its own commands (slow), or forked, all but one.
"""

import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipelines.quickstart import FIRST, SHIPPED, TOURS, QuickstartOptions, commands, first_look
from prior import Prior
from tests.helpers.running import (
    MODEL,
    ROOT,
    Script,
    assert_refused,
    environment,
    names_in,
    read,
    read_command,
    run_script,
    size_of,
)
from tests.helpers.warm import run_words
from tokenizer import Tokenizer


@pytest.mark.parametrize("preset", TOURS)
def test_the_quickstarts_commands_fit_their_scripts(preset: Any) -> None:
    options = QuickstartOptions(
        *(preset, "image", Path("some/where")),
        **{"threads": 3, "tokenizer_steps": 11, "prior_steps": 7, "samples_per_class": 4},
    )
    found = [read_command(words) for _, words in commands(options)]
    scripts = ["train_tokenizer", "encode_dataset", "train_prior", "sample", "evaluate"]
    assert [command.script for command in found] == scripts
    for command in found[:3]:  # what trains or encodes goes through accelerate
        assert command.launch is not None and command.launch.module
        assert command.launch.num_cpu_threads_per_process == 3
        assert (command.launch.num_processes, command.launch.mixed_precision) == (1, "no")
    tokenizer, tokens, prior, samples, evaluation = (command.options for command in found)
    assert (tokenizer.max_steps, prior.max_steps) == (11, 7)
    assert (tokens.views, tokens.augment.flip) == ((2, True) if preset == "emoji" else (1, False))
    assert tokenizer.data.path == tokens.data.path == evaluation.data.path == f"embedded:{preset}"
    assert Path(tokens.tokenizer) == tokenizer.output == Path("some/where/tokenizer")
    assert prior.tokens == tokens.output and Path(samples.prior) == Path(evaluation.prior) == prior.output
    assert samples.num == 4 and (samples.label == ("all",)) == (preset != "speech")
    outputs = [o.output for o in (tokenizer, tokens, prior, samples, evaluation)]
    assert len(set(outputs)) == 5 and all(o.parent == Path("some/where") for o in outputs)


@pytest.mark.parametrize("preset", TOURS)
def test_the_quickstart_first_shows_what_models_that_ship_draw(preset: Any) -> None:
    options = QuickstartOptions(preset, output=Path("some/where"), samples_per_class=4)
    title, words = first_look(options)
    command = read_command(words)
    assert command.script == "sample" and command.options.prior == f"embedded:{preset}"
    assert (command.options.num, command.options.label) == (4, () if preset == "speech" else ("all",))
    assert command.options.output == options.folder / SHIPPED
    sheet = "samples.html" if preset == "speech" else "samples.png"
    assert str(options.folder / SHIPPED / sheet) in title


def test_the_quickstart_is_of_digits_unless_told_otherwise() -> None:
    assert QuickstartOptions().tour is TOURS["digits"]
    assert QuickstartOptions(preset="emoji").tour is TOURS["emoji"]
    assert QuickstartOptions(modality="audio").tour is QuickstartOptions(preset="speech").tour
    assert len({QuickstartOptions(preset=preset).folder for preset in TOURS}) == len(TOURS)


def test_a_modality_and_a_preset_of_another_are_refused(script: Script) -> None:
    finished = script("quickstart", "--modality", "audio", "--preset", "emoji", code=2)
    assert_refused(finished, "--preset speech", "emoji")


def test_the_quickstart_takes_all_cores_by_default() -> None:
    (_, words), *_ = commands(QuickstartOptions())
    launch = read_command(words).launch
    assert launch is not None and launch.num_cpu_threads_per_process == len(os.sched_getaffinity(0))


def test_the_quickstart_does_not_write_over_a_folder(script: Script, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    finished = script("quickstart", "--output", tmp_path, code=2)
    assert_refused(finished, tmp_path, "not empty", "--output")
    finished = script("quickstart", "--output", tmp_path / "mine", code=2)
    assert_refused(finished, tmp_path / "mine")


def test_a_step_of_the_quickstart_that_fails_is_named(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing = [("1/1 fail", ["python", "-c", "raise SystemExit(3)"])]
    monkeypatch.setattr("pipelines.quickstart.commands", lambda options: failing)
    finished = script("quickstart", "--output", tmp_path / "q", code=2)
    assert_refused(finished, "1/1 fail")


@dataclass(frozen=True)
class Quickstart:
    folder: Path
    err: str
    items: int
    """How many digits it measures on."""


# Digits of each split in steps that are forked.
LIMIT = 200


def run_step(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` for a step of the quickstart on few digits: one is launched as it says, by a launcher
    that is forked, and the others are forked."""
    step = read_command(["python", *command[1:]])
    if step.script in ("train_tokenizer", "encode_dataset", "evaluate"):
        command = [*command, "--data.limit", str(LIMIT)]
        step = read_command(["python", *command[1:]])
    launch, env = step.launch, {**env, "DRAW": "1"}
    if launch is not None and step.script != "encode_dataset":
        threads = {"OMP_NUM_THREADS": str(launch.num_cpu_threads_per_process)}
        words = ("-m", launch.training_script, *launch.training_script_args)
        finished = run_words(*words, variables={**env, **threads})
    else:
        finished = run_words(*command[1:], variables=env)
    sys.stdout.write(finished.out)
    sys.stderr.write(finished.err)
    return subprocess.CompletedProcess(command, finished.code)


@pytest.fixture(scope="module", params=["forked", pytest.param("as a user", marks=pytest.mark.slow)])
def quickstart(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    """The quickstart with few steps."""
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    words = ["--output", str(folder), "--tokenizer-steps", "6", "--prior-steps", "2"]
    words += ["--samples-per-class", "1", "--threads", str(torch.get_num_threads())]
    if request.param == "forked":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipelines.quickstart.subprocess", SimpleNamespace(run=run_step))
            return Quickstart(folder, run_script("quickstart", *words).err, LIMIT)
    command = [sys.executable, "-m", "pipelines.quickstart", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return Quickstart(folder, done.stderr, 1996)


def test_the_quickstart_leaves_what_it_promises(quickstart: Quickstart) -> None:
    folder = quickstart.folder
    pictures = {"samples.png", "reconstructions.png", "codebook.png", "loss.png"}
    steps = {"shipped", "tokenizer", "tokens", "prior", "samples", "eval"}
    assert names_in(folder) == {*pictures, "metrics.json", *steps}
    assert all(min(size_of(folder / name)) > 100 for name in pictures)
    assert names_in(folder / "tokenizer") >= MODEL and names_in(folder / "prior") >= MODEL
    assert {f"{digit}-0000.png" for digit in range(10)} <= names_in(folder / "samples")
    assert min(size_of(folder / FIRST)) > 100 and min(size_of(folder / SHIPPED / "samples.png")) > 100
    metrics = read(folder / "metrics.json")
    assert {"psnr", "ssim", "usage", "perplexity", "prior_bits_per_code"} <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["items"] == quickstart.items


def test_the_quickstart_tells_where_to_look_and_how_far_it_is(quickstart: Quickstart) -> None:
    err = quickstart.err
    parts = (*(f"=== {i}/5" for i in range(1, 6)), "tokenizer: 100%", "prior: 100%", "Done in")
    assert all(part in err for part in (f"=== look first at {quickstart.folder / SHIPPED}", *parts))
    for name in ("samples.png", "reconstructions.png", "codebook.png", "loss.png", "metrics.json"):
        assert str(quickstart.folder / name) in err
    assert f"{quickstart.folder}/tokenizer" in err and f"{quickstart.folder}/prior" in err
    assert "Traceback" not in err and "Warning" not in err


def test_the_quickstarts_models_load(quickstart: Quickstart) -> None:
    tok = Tokenizer.from_pretrained(quickstart.folder / "tokenizer")
    prior = Prior.from_pretrained(quickstart.folder / "prior")
    prior.check_tokenizer(tok.fingerprint())
    assert tok.codebook_size == prior.config.codebook_size
    assert prior.config.class_names == tuple("0123456789")
