"""Command lines: where options come from and who wins, presets, and mistakes without tracebacks."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.presets import PRIORS, TOKENIZERS
from pipelines.run.command_line import parse, run
from pipelines.training.options import PriorTraining, TokenizerTraining, TrainingOptions
from tests.helpers.running import ROOT, environment
from tests.helpers.warm import run_words
from tokenizer.bottlenecks.gaussian import GaussianConfig
from tokenizer.bottlenecks.vq import VQConfig
from tokenizer.variants import config_to_dict


def tokenizer_options(*words: object) -> TokenizerTraining:
    return parse(TokenizerTraining, "Train.", [str(w) for w in words], TOKENIZERS, "emoji")


def prior_options(*words: object) -> PriorTraining:
    return parse(PriorTraining, "Train.", [str(w) for w in words], PRIORS, "small")


def config_file(tmp_path: Path, values: Any, name: str = "run.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(values))
    return path


def mistake(*words: object) -> str:
    """The message about a wrong command line, as one line without the frame that tyro draws."""
    with pytest.raises(ValueError) as caught:
        tokenizer_options(*words)
    return " ".join(str(caught.value).translate({ord(c): " " for c in "│╭╮╰╯─"}).split())


# Where options come from


def test_without_words_the_default_preset_is_taken() -> None:
    assert tokenizer_options() == TOKENIZERS["emoji"].build()
    assert prior_options() == PRIORS["small"].build()


def test_words_come_from_sys_argv_if_none_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_tokenizer.py", "digits", "--max-steps", "3"])
    options = parse(TokenizerTraining, "Train.", presets=TOKENIZERS, default_preset="emoji")
    assert (options.data.path, options.max_steps) == ("embedded:digits", 3)


def test_the_first_word_chooses_a_preset_and_flags_win_over_it() -> None:
    options = tokenizer_options("digits", "--max-steps", 7, "--model.bottleneck.codebook-size", 16)
    assert options.max_steps == 7
    assert options.data.path == "embedded:digits"
    bottleneck = options.model.bottleneck
    assert isinstance(bottleneck, VQConfig)
    assert (bottleneck.codebook_size, bottleneck.dim) == (16, 4)  # dim is the preset's


def test_config_file_wins_over_the_preset_and_flags_over_both(tmp_path: Path) -> None:
    values = {"max_steps": 5, "batch_size": 8, "seed": 3, "output": "runs/mine"}
    options = tokenizer_options("digits", "--seed", 4, "--config", config_file(tmp_path, values))
    assert (options.max_steps, options.batch_size, options.seed) == (5, 8, 4)
    assert options.output == Path("runs/mine")
    assert options.data.path == "embedded:digits"
    assert options.checkpoint_every == TrainingOptions().checkpoint_every


def test_config_file_may_be_given_with_an_equals_sign(tmp_path: Path) -> None:
    path = config_file(tmp_path, {"max_steps": 5})
    assert tokenizer_options(f"--config={path}").max_steps == 5


@pytest.mark.parametrize("kind", [{"kind": "vq"}, {}])
def test_part_of_a_bottleneck_in_a_config_file_keeps_the_rest_of_the_preset(
    kind: dict[str, str], tmp_path: Path
) -> None:
    values = {"model": {"bottleneck": {**kind, "codebook_size": 64}, "losses": {"l1": 0.5}}}
    options = tokenizer_options("digits", "--config", config_file(tmp_path, values))
    assert options.model.bottleneck == VQConfig(codebook_size=64, dim=4, codebook_dim=4)
    assert (options.model.losses["l1"], options.model.losses["l2"]) == (0.5, 1.0)
    assert options.model.modality == TOKENIZERS["digits"].build().model.modality


def test_another_bottleneck_in_a_config_file_replaces_the_presets_whole(tmp_path: Path) -> None:
    values = {"model": {"bottleneck": {"kind": "gaussian", "dim": 3}}}
    path = config_file(tmp_path, values)
    assert tokenizer_options("--config", path).model.bottleneck == GaussianConfig(dim=3)
    options = tokenizer_options("--config", path, "--model.bottleneck.kl-weight", 0.5)
    assert options.model.bottleneck == GaussianConfig(dim=3, kl_weight=0.5)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_runs_own_run_json_gives_its_options_back(name: str, tmp_path: Path) -> None:
    options = tokenizer_options(name, "--max-steps", 9, "--perceptual", "torchvision:vgg16")
    assert tokenizer_options("--config", config_file(tmp_path, config_to_dict(options))) == options


# Resuming


def test_resume_takes_the_options_from_the_outputs_run_json(tmp_path: Path) -> None:
    before = tokenizer_options("digits-vae", "--max-steps", 9, "--output", tmp_path, "--seed", 5)
    config_file(tmp_path, config_to_dict(before))
    after = tokenizer_options("--output", tmp_path, "--resume", "latest")
    assert after == dataclasses.replace(before, resume="latest")
    assert tokenizer_options(f"--output={tmp_path}", "--resume=latest", "--max-steps", 11).max_steps == 11


def test_resume_looks_into_the_default_output_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/tokenizer").mkdir(parents=True)
    config_file(tmp_path / "runs/tokenizer", {"max_steps": 9})
    assert tokenizer_options("--resume", "latest").max_steps == 9


@pytest.mark.parametrize("words", [("emoji",), ("--max-steps", 7)])
def test_resume_where_no_run_is_begins_the_one_that_is_described(
    tmp_path: Path, words: tuple[object, ...]
) -> None:
    options = tokenizer_options(*words, "--output", tmp_path, "--resume", "latest")
    assert options == dataclasses.replace(tokenizer_options(*words), output=tmp_path, resume="latest")


def test_resume_where_no_run_is_and_none_is_described_is_refused(tmp_path: Path) -> None:
    words = ("--output", tmp_path / "mistyped", "--resume", "latest")
    with pytest.raises(ValueError, match=r"mistyped .*resume.*--output.*preset"):
        tokenizer_options(*words)
    assert not (tmp_path / "mistyped").exists()


def test_a_config_file_but_no_preset_stands_above_the_outputs_run_json(tmp_path: Path) -> None:
    config_file(tmp_path, {"max_steps": 9})
    other = config_file(tmp_path, {"max_steps": 7}, "other.json")
    words = ("--output", tmp_path, "--resume", "latest")
    assert tokenizer_options("digits", *words).max_steps == 9
    assert tokenizer_options(*words, "--config", other).max_steps == 7


def test_without_resume_a_run_json_is_not_read(tmp_path: Path) -> None:
    config_file(tmp_path, {"max_steps": 9})
    assert tokenizer_options("--output", tmp_path).max_steps == TOKENIZERS["emoji"].build().max_steps


# Mistakes


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("emojis",), ("unknown preset 'emojis'", *TOKENIZERS)),
        (("digits", "emoji"), ("emoji",)),
        (("--codebook-size", "5"), ("Unrecognized", "--codebook-size")),
        (("--max-steps", "many"), ("--max-steps", "'many'")),
        (("--max-steps", "0"), ("max_steps is 0", "1 or more")),
        (("--ema-decay", "1"), ("ema_decay is 1", "less than 1")),
        (("--optimizer", "sgd"), ("'sgd'", "muon", "adamw")),
        (("--model.bottleneck.codebook-size", "0"), ("codebook_size is 0", "expected 1 to")),
        (("--data.valid-fraction", "5"), ("valid_fraction", "not percent")),
        (("--max-steps",), ("--max-steps",)),
        (("--config",), ("--config needs a value",)),
        (("--config", "no/such/run.json"), ("no/such/run.json", "cannot be read")),
    ],
)
def test_wrong_words_are_named(words: tuple[str, ...], named: tuple[str, ...]) -> None:
    message = mistake(*words)
    for part in named:
        assert part in message


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"max_step": 5}, ("unknown key 'max_step'", "max_steps")),
        (
            {"model": {"bottleneck": {"kind": "vq", "size": 5}}},
            ("model.bottleneck", "'size'", "codebook_size"),
        ),
        ({"model": {"bottleneck": {"kind": "pq"}}}, ("model.bottleneck.kind", "'pq'", "gaussian", "rvq")),
        ({"max_steps": "5"}, ("max_steps", "expected int", "'5'")),
        ({"max_steps": {"a": 5}}, ("max_steps", "expected int", "{'a': 5}")),
        ({"max_steps": 0}, ("max_steps is 0", "1 or more")),
        ({"data": 3}, ("data", "expected an object", "3")),
        ({"optimizer": "sgd"}, ("optimizer", "'sgd'", "muon")),
        ([1, 2], ("expected a JSON object", "list")),
    ],
)
def test_config_files_that_do_not_fit_are_named(values: Any, named: tuple[str, ...], tmp_path: Path) -> None:
    message = mistake("--config", config_file(tmp_path, values))
    for part in named:
        assert part in message


def test_a_config_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"max_steps": ')
    message = mistake("--config", path)
    assert f"{path}: cannot be read as JSON" in message and "correct it" in message
    message = mistake("--config", tmp_path / "none.json")
    assert f"{tmp_path}/none.json: cannot be read" in message and "check the path" in message


def test_run_prints_the_mistake_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise ValueError("the thing is broken; mend it")

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "Error: the thing is broken; mend it\n")


@pytest.mark.parametrize(
    "kind", [FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError]
)
def test_run_reports_mistakes_with_files(kind: type[OSError], capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise kind(1, "no good", "some/file")

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == 2
    assert "Error: " in (err := capsys.readouterr().err) and "some/file" in err


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "there is no room on the disk; make some, or choose another --output"),
        (errno.EROFS, "Read-only file system; change that, or choose another place"),
    ],
)
@pytest.mark.parametrize("name", ["some/file", None])
def test_what_a_disk_refuses_says_what_to_do(
    number: int, advice: str, name: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise OSError(number, os.strerror(number), name)

    with pytest.raises(SystemExit):
        run(main)
    assert capsys.readouterr().err == f"Error: {f'{name}: ' if name else ''}{advice}\n"


def test_who_has_read_enough_of_the_help_sees_no_error() -> None:
    help_and_head = f"{sys.executable} -u pipelines/sample.py --help | head -1"
    done = subprocess.run(
        help_and_head, shell=True, cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.stdout.startswith("usage: ") and done.stderr == ""


def test_run_names_the_process_where_there_are_several(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main() -> None:
        raise ValueError("no")

    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit):
        run(main)
    assert capsys.readouterr().err == "Error (process 3): no\n"


def test_run_lets_errors_of_the_program_itself_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    def mistaken() -> None:
        raise ValueError("no")

    with pytest.raises(ZeroDivisionError):
        run(broken)
    monkeypatch.setenv("TOKENLOOM_DEBUG", "1")
    with pytest.raises(ValueError, match="no"):
        run(mistaken)


def test_an_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == 130 and "--resume latest" in capsys.readouterr().err


def test_a_script_started_by_its_path_reports_a_mistake() -> None:
    done = run_words(ROOT / "pipelines" / "train_tokenizer.py", "--nonsense", timeout=120)
    assert done.code == 2
    assert done.err.startswith("Error: ") and "--nonsense" in done.err
    assert "Traceback" not in done.err
