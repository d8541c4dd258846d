"""Run folders: the log of metrics, options as written, one run at a time, and what a resume may change.

Left out: checkpoints (test_checkpoints.py), and what else the training scripts share (test_setup.py).
"""

import dataclasses
import fcntl
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from pipelines import train_prior
from pipelines.benchmarks.data.made import picture_files
from pipelines.data.scan import LISTED
from pipelines.run.command_line import flatten
from pipelines.run.signals import LAUNCHED
from pipelines.training.log import MetricsLog, read_metrics
from pipelines.training.options import TokenizerTraining
from pipelines.training.run_folder import command_line, run_folder
from tests.helpers.running import WHOLE_TOKENIZER, Script, as_a_new_process, assert_refused, whole_prior
from tokenizer import TokenizerConfig
from tokenizer.bottlenecks.gaussian import GaussianConfig
from tokenizer.bottlenecks.vq import VQConfig
from tokenizer.variants import config_to_dict


@pytest.fixture
def accelerator() -> Any:
    with as_a_new_process():
        yield Accelerator(cpu=True)


# Logs


def test_metrics_log_appends_rows(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, True)
    log.add(1, {"a": 0.5})
    log.add(2, {"b": 1.5})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "a": 0.5}, {"step": 2, "b": 1.5}]


def test_metrics_log_drops_what_a_resume_does_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "loss": step / 2} for step in range(1, 8)]
    half = '{"step": 8, "lo'  # killed while writing
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + half)
    assert read_metrics(path) == rows
    log = MetricsLog(path, 4, True)
    assert read_metrics(path) == rows[:4]
    log.add(5, {"loss": 9.0})
    assert read_metrics(path) == [*rows[:4], {"step": 5, "loss": 9.0}]
    assert "lo\n" not in path.read_text()


def test_metrics_log_drops_the_evaluation_after_the_last_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 5, "valid/l1": 1.0}, {"step": 6, "train/l1": 2.0}, {"step": 6, "valid/l1": 3.0}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    MetricsLog(path, 6, True, last_step=8)  # a run that has grown
    assert read_metrics(path) == rows
    MetricsLog(path, 6, True, last_step=6)
    assert read_metrics(path) == rows[:2]


def test_metrics_log_from_the_beginning_forgets_an_older_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 1.0}\n')
    MetricsLog(path, 0, True)
    assert path.read_text() == ""


def test_metrics_log_of_other_processes_touches_nothing(tmp_path: Path) -> None:
    MetricsLog(tmp_path / "metrics.jsonl", 0, False).add(1, {"a": 1.0})
    assert list(tmp_path.iterdir()) == []


# Run folders


@pytest.mark.parametrize("script_name", ["train_tokenizer", "train_prior"])
def test_folders_are_refused_before_anything_is_read(
    script_name: str,
    script: Script,
    tiny_tokens: Path,
    whole_runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr("pipelines.training.run_folder.load_splits", read)
    monkeypatch.setattr(train_prior, "load_tokens", read)
    words = WHOLE_TOKENIZER if script_name == "train_tokenizer" else whole_prior(tiny_tokens)
    run, resume = whole_runs[script_name], ("--output", whole_runs[script_name], "--resume")
    (file := tmp_path / "file").touch()
    refusals = {
        (*words, "--output", run): f"{run} already holds",
        (*words, "--output", file): f"--output {file}: {file} is a file",
        (*words, "--output", tmp_path, "--push-to-hub", "nobody"): "--push-to-hub 'nobody'",
        (*resume, "latest", "--batch-size", 8): "--batch-size is 8, but the run in",
        (*resume, "latest", "--max-steps", 2): "got 2; leave it out, or start a new run in another --output",
        (*resume, run / "nothing"): f"--resume {run / 'nothing'}: no checkpoint there",
    }
    for words, message in refusals.items():
        assert_refused(script(script_name, *words, code=2), message)
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_refused(script(script_name, *resume, "latest", code=2), f"{run}: another run", "--output")
    monkeypatch.setattr("os.access", lambda *_: False)
    finished = script(script_name, "--output", tmp_path / "a" / "b", code=2)
    assert_refused(finished, f"--output {tmp_path}/a/b: {tmp_path} ", "choose another")


def test_data_may_lie_in_a_folder_of_any_name(no_plots: None, script: Script, tmp_path: Path) -> None:
    data, output = tmp_path / os.fsdecode(b"\xffzoo"), tmp_path / "run"
    picture_files(data, 20)
    words = ("--data.path", data, "--max-steps", 1, "--output", output)
    script("train_tokenizer", *WHOLE_TOKENIZER, *words)
    assert os.fsencode(data) in (output / "command.txt").read_bytes()
    assert rf"{tmp_path}/\xffzoo" in command_line(output)
    assert rf"{tmp_path}/\xffzoo" in (output / "README.md").read_text(encoding="utf-8")
    script("train_tokenizer", "--output", output, "--resume", "latest", "--max-steps", 2)


def test_data_that_moved_are_asked_for_on_a_resume(
    no_plots: None, script: Script, tmp_path: Path, tiny_tokens: Path
) -> None:
    picture_files(tmp_path / "old", 20)
    words = ("--output", tmp_path / "run", "--resume", "latest", "--max-steps", 2)
    begin = ("--data.path", tmp_path / "old", "--max-steps", 1, "--output", tmp_path / "run")
    said = "the model's card says apache-2.0; give --license for another"
    assert script("train_tokenizer", *WHOLE_TOKENIZER, *begin).err.count(said) == 1
    (tmp_path / "old").rename(tmp_path / "new")
    remembered = f"The run in {tmp_path / 'run'} began with {tmp_path / 'old'}"
    assert_refused(script("train_tokenizer", *words, code=2), remembered, "--data.path")
    finished = script("train_tokenizer", *words, "--data.path", tmp_path / "none", code=2)
    assert remembered not in finished.err
    assert said not in script("train_tokenizer", *words, "--data.path", tmp_path / "new").err
    # Embedded data need no note, and tokens may have moved as well.
    tokens = tmp_path / "tokens"
    shutil.copytree(tiny_tokens, tokens)
    prior = ("--output", tmp_path / "prior", "--max-steps", 1)
    assert said not in script("train_prior", *whole_prior(tokens), *prior).err
    tokens.rename(tmp_path / "elsewhere")
    finished = script("train_prior", *prior[:2], "--max-steps", 2, "--resume", "latest", code=2)
    assert_refused(finished, tokens, "--tokens")


def test_all_that_was_skipped_is_listed(no_plots: None, script: Script, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    picture_files(pictures, 60)
    bad = sorted(pictures.rglob("*.png"))[::2]
    for path in bad:
        path.write_text("not a picture")
    output = tmp_path / "run"
    words = ("--data.path", pictures, "--data.limit", 99, "--max-steps", 1, "--output", output)
    finished = script("train_tokenizer", *WHOLE_TOKENIZER, *words, "--data.valid-fraction", 0)
    assert "held-out: " not in finished.err and f"so nothing was measured\nsaved to {output}" in finished.err
    names = [str(path.relative_to(pictures)) for path in bad]
    assert [line.split(": ")[0] for line in (output / "skipped.txt").read_text().splitlines()] == names
    assert f"skipped 30 of 60 pictures:\n  {names[0]}: not a picture" in finished.err
    assert [name in finished.err for name in names] == [True] * LISTED + [False] * 10
    assert f"\n  …and {30 - LISTED} more\n" in finished.err


@pytest.mark.parametrize(("launched", "start"), [(False, "python"), (True, "accelerate launch")])
def test_the_command_is_the_one_that_was_given(
    launched: bool, start: str, accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LAUNCHED:
        monkeypatch.setenv(name, "no") if launched else monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("sys.argv", ["/some/where/train_tokenizer.py", "digits", "--output", "my run"])
    with run_folder(accelerator, options_in(tmp_path)):
        assert command_line(tmp_path) == f"{start} pipelines/train_tokenizer.py digits --output 'my run'"


@pytest.mark.parametrize(("threads", "flag"), [("3", " --num_cpu_threads_per_process 3"), ("1", "")])
def test_the_command_has_the_launchers_threads(
    threads: str, flag: str, accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LAUNCHED[0], "no")
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr("sys.argv", ["train_tokenizer.py"])
    with run_folder(accelerator, options_in(tmp_path)):
        assert command_line(tmp_path) == f"accelerate launch{flag} pipelines/train_tokenizer.py"


def options_in(folder: Path, **changes: Any) -> TokenizerTraining:
    return dataclasses.replace(TokenizerTraining(output=folder, max_steps=10), **changes)


def test_a_run_folder_holds_the_options(accelerator: Accelerator, tmp_path: Path) -> None:
    options = options_in(tmp_path / "deep" / "run")
    with run_folder(accelerator, options) as folder:
        assert folder == tmp_path / "deep" / "run"
    assert json.loads((folder / "run.json").read_text()) == config_to_dict(options)
    values = flatten(config_to_dict(options))
    assert values["model.bottleneck.codebook_size"] == 512 and values["output"] == str(folder)


@pytest.mark.parametrize("name", ["run.json", "config.json"])
def test_a_folder_that_holds_another_run_is_refused(
    name: str, accelerator: Accelerator, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("{}")
    with (
        pytest.raises(ValueError, match=f"{tmp_path} .*--output.*--resume latest"),
        run_folder(accelerator, options_in(tmp_path)),
    ):
        pass
    assert (tmp_path / name).read_text() == "{}"
    assert {p.name for p in tmp_path.iterdir()} == {name, ".lock"}


def test_two_runs_at_once_into_one_folder_are_refused(accelerator: Accelerator, tmp_path: Path) -> None:
    with (
        run_folder(accelerator, options_in(tmp_path)),
        pytest.raises(ValueError, match=f"{tmp_path}: another run .*--output .*wait"),
        run_folder(accelerator, options_in(tmp_path, resume="latest")),
    ):
        pass
    with run_folder(accelerator, options_in(tmp_path, resume="latest")):  # free again
        pass


def test_the_lock_ends_with_a_failed_run(accelerator: Accelerator, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_folder(accelerator, options_in(tmp_path)):
        raise ZeroDivisionError
    with run_folder(accelerator, options_in(tmp_path, resume="latest")):
        pass


def test_a_file_in_place_of_the_folder_is_named(accelerator: Accelerator, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match=rf"--output {tmp_path}/file: .*expected a folder; choose another"),
        run_folder(accelerator, options_in(tmp_path / "file")),
    ):
        pass


@pytest.mark.parametrize(
    ("changes", "flag", "now", "was"),
    [
        ({"seed": 3}, "--seed", "3", "0"),
        ({"batch_size": 32}, "--batch-size", "32", "64"),
        ({"optimizer": "adamw"}, "--optimizer", "'adamw'", "'muon'"),
        (
            {"model": TokenizerConfig(bottleneck=VQConfig(codebook_size=8))},
            "--model.bottleneck.codebook-size",
            "8",
            "512",
        ),
        (
            {"model": TokenizerConfig(bottleneck=GaussianConfig())},
            "--model.bottleneck.(beta|kind)",
            "(None|'gaussian')",
            "(0.25|'vq')",
        ),
    ],
)
def test_a_resume_with_another_option_names_flag_and_both_values(
    changes: dict[str, Any], flag: str, now: str, was: str, accelerator: Accelerator, tmp_path: Path
) -> None:
    with run_folder(accelerator, options_in(tmp_path)):
        pass
    before = (tmp_path / "run.json").read_bytes()
    with (
        pytest.raises(ValueError, match=f"^{flag} .*{now}, .*{tmp_path} .*{was}; .*--output"),
        run_folder(accelerator, options_in(tmp_path, resume="latest", **changes)),
    ):
        pass
    assert (tmp_path / "run.json").read_bytes() == before


def test_options_that_change_nothing_learnt_may_change(accelerator: Accelerator, tmp_path: Path) -> None:
    with run_folder(accelerator, options_in(tmp_path)):
        pass
    changes = {
        **{"checkpoint_every": 3, "keep_checkpoints": 5, "log_every": 2, "eval_every": 7},
        **{"tracker": "none", "push_to_hub": "me/it"},
    }
    options = options_in(tmp_path, resume="latest", **changes)
    with run_folder(accelerator, options):
        pass
    assert json.loads((tmp_path / "run.json").read_text())["checkpoint_every"] == 3


def test_max_steps_may_grow_but_not_shrink(
    accelerator: Accelerator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with run_folder(accelerator, options_in(tmp_path)):
        pass
    with run_folder(accelerator, options_in(tmp_path, resume="latest", max_steps=12)):
        pass
    assert "max_steps grows from 10 to 12" in caplog.text
    with (
        pytest.raises(ValueError, match=r"--max-steps .*grow.* expected 12 .*got 11; leave it out.*--output"),
        run_folder(accelerator, options_in(tmp_path, resume="latest", max_steps=11)),
    ):
        pass


@pytest.mark.parametrize("line", ["3", "[1]", "{}", '{"step": "4"}', '{"step": 4.5}', "null"])
def test_lines_that_are_no_rows_are_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"ste\n' + "[" * 5000 + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 .*expected .*object .*step.*remove"):
        MetricsLog(path, 1, True)
    path.write_text('{"step": 1}\n{"ste\n' + "[" * 5000 + "\n\xff")
    assert read_metrics(path) == [{"step": 1}]


@pytest.mark.parametrize("script_name", ["train_tokenizer", "encode_dataset", "sample"])
def test_an_output_whose_name_is_not_utf8_is_refused(
    script_name: str, tiny_tokenizer: Path, script: Script, tmp_path: Path
) -> None:
    words = () if script_name == "train_tokenizer" else ("--tokenizer", tiny_tokenizer)
    finished = script(script_name, *words, "--output", tmp_path / os.fsdecode(b"\xffrun"), code=2)
    assert_refused(finished, rf"--output {tmp_path}/\xffrun", "UTF-8", "choose another")
    assert not list(tmp_path.iterdir())
