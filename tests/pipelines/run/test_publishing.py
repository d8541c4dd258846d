"""--push-to-hub of the scripts: refused before the work or not at all, and what is saved outlives the Hub.

Left out: what goes up and comes back (tokenizer/hub/test_round_trip.py), and all the Hub's refusals
(tokenizer/hub/test_refusals.py).
"""

import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.hub_repositories import Repository
from tests.helpers.local_hub import Fault, LocalHub
from tests.helpers.running import MODEL, TINY_PRIOR, TINY_TOKENIZER, Finished, Script, assert_refused

STEPS = ("--max-steps", 3, "--license", "mit")
PUSH = ("--push-to-hub", "user/model")


@pytest.fixture
def logged_in(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    monkeypatch.setenv("HF_TOKEN", "hf_user")
    return hub


def words_of(script_name: str, request: pytest.FixtureRequest) -> tuple[Any, ...]:
    """A tiny run of a script that can push."""
    if script_name == "train_prior":
        return ("small", *TINY_PRIOR, "--tokens", request.getfixturevalue("tiny_tokens"), *STEPS)
    if script_name == "train_decoder":
        tok = request.getfixturevalue("tiny_tokenizer")
        small = ("--batch-size", 16, "--data.limit", 32, "--adversarial.width", 4, "--adversarial.start", 1)
        small += ("--adversarial.weight", 0.1)
        return ("pictures", "--tokenizer", tok, *small, *STEPS)
    if script_name == "quantize_vae":
        vae = request.getfixturevalue("tiny_vae")
        return ("--tokenizer", vae, "--data.path", "embedded:digits", "--data.limit", 8, "--license", "mit")
    return ("emoji", *TINY_TOKENIZER, *STEPS)


SCRIPTS = ["train_tokenizer", "train_prior", "train_decoder", "quantize_vae"]
scripts = pytest.mark.parametrize("script_name", SCRIPTS)


def in_folder(folder: Path) -> dict[str, bytes]:
    """The files of a model, and its sample."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name in {*MODEL, "sample.png"}}


@pytest.mark.usefixtures("no_plots")
@scripts
def test_what_was_made_is_on_the_hub(
    script_name: str, request: pytest.FixtureRequest, logged_in: LocalHub, script: Script, tmp_path: Path
) -> None:
    words = words_of(script_name, request)
    done = script(script_name, *words, "--output", tmp_path / "out", *PUSH, "--push-private")
    assert logged_in.content("user/model") == in_folder(tmp_path / "out")
    assert set(logged_in.content("user/model")) >= MODEL and logged_in.repositories["user/model"].private
    assert f"pushed: {logged_in.url}/user/model/commit/" in done.err
    assert "HTTP Request" not in done.err


@pytest.mark.usefixtures("no_plots")
def test_discriminators_go_up_by_flag(
    request: pytest.FixtureRequest, logged_in: LocalHub, script: Script, tmp_path: Path
) -> None:
    words, flag = (*words_of("train_decoder", request), "--output", tmp_path), "--push-discriminator"
    assert_refused(script("train_decoder", *words, flag, code=2), flag, "--push-to-hub")
    script("train_decoder", *words, *PUSH, flag)
    of_jury = {f"discriminator/{name}": data for name, data in in_folder(tmp_path / "discriminator").items()}
    assert logged_in.content("user/model") == in_folder(tmp_path) | of_jury


def refused(script: Script, script_name: str, output: Path, *words: Any) -> Finished:
    """A run that is refused before it begins."""
    done = script(script_name, *words, "--output", output, code=2)
    assert not output.exists()
    return done


@scripts
def test_a_push_that_would_fail_is_refused_before_the_work(
    script_name: str, request: pytest.FixtureRequest, hub: LocalHub, script: Script, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words, output = words_of(script_name, request), tmp_path / "out"
    done = refused(script, script_name, output, *words, *PUSH)
    assert_refused(done, "--push-to-hub user/model: ", "no token", "`hf auth login`", "HF_TOKEN")
    assert hub.repositories == {}
    done = refused(script, script_name, output, *words, "--push-to-hub", "model")
    assert_refused(done, "--push-to-hub 'model': ", "expected a Hub repository user/name")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    done = refused(script, script_name, output, *words, *PUSH)
    assert_refused(done, "--push-to-hub user/model: ", "403", "`hf auth login`", "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_user")
    done = refused(script, script_name, output, *words, *PUSH, "--license", "mine")
    assert_refused(done, "--push-to-hub user/model: ", "license 'mine'", "/repositories-licenses")
    hub.repositories["user/model"] = Repository(private=False)
    done = refused(script, script_name, output, *words, *PUSH, "--push-private")
    assert_refused(done, "--push-to-hub user/model: ", "public", "private", "in its settings")


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("script_name", ["train_tokenizer", "train_prior"])
def test_a_push_that_fails_leaves_the_model_and_can_be_made_later(
    script_name: str, request: pytest.FixtureRequest, logged_in: LocalHub, script: Script, tmp_path: Path
) -> None:
    words, output = words_of(script_name, request), tmp_path / "it's out"
    logged_in.faults.append(Fault("POST", "/commit/main", status=500))
    done = script(script_name, *words, "--output", output, *PUSH, "--push-private", code=2)
    assert_refused(
        done, "user/model: the Hub did not take the model: it answered 500", f"is whole in {output}"
    )
    assert in_folder(output).keys() >= MODEL and logged_in.content("user/model") == {}
    resumed = script(script_name, "--output", output, "--resume", "latest")
    assert "is finished" in resumed.err and "pushed: " in resumed.err
    assert logged_in.content("user/model") == in_folder(output)


def test_the_command_to_push_later_works(
    logged_in: LocalHub, script: Script, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    logged_in.faults.append(Fault("POST", "/commit/main", status=500))
    output = tmp_path / "it's out"
    words = words_of("quantize_vae", request)
    done = script("quantize_vae", *words, "--output", output, *PUSH, "--push-private", code=2)
    *command, code = shlex.split(done.err.rstrip().splitlines()[-1])
    assert command == ["python", "-c"] and logged_in.content("user/model") == {}
    exec(code, {})
    assert logged_in.content("user/model") == in_folder(output)
    assert logged_in.repositories["user/model"].private


@pytest.mark.usefixtures("no_plots")
def test_a_hub_that_is_down_does_not_end_a_run_that_is_resumed(
    logged_in: LocalHub, script: Script, tmp_path: Path
) -> None:
    words, output = ("emoji", *TINY_TOKENIZER, *STEPS), tmp_path / "out"
    script("train_tokenizer", *words, "--output", output)
    logged_in.faults.append(Fault("POST", "/api/repos/create", status=503))
    resumed = ("--output", output, "--resume", "latest", "--max-steps", 4)
    done = script("train_tokenizer", *resumed, *PUSH, "--push-private")
    assert "it answered 503; try again later\nThe run goes on" in done.err and "pushed: " in done.err
    assert logged_in.content("user/model") == in_folder(output)
    assert logged_in.repositories["user/model"].private
