"""Folders that scripts of before wrote: they load, decode, go on where they stopped, and the same words mean
the same options.

Left out: making the folders (make_folders.py), and the codes of trained models (test_models.py). A
failure here means that users lose a run, tokens or a command line.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.tokens.items import read_tokens
from prior import Prior
from tests.golden.make_folders import GOLDEN, RUNS, at, options
from tests.helpers.running import Script
from tests.helpers.whole_runs import rows_of
from tokenizer import Tokenizer
from tokenizer.hub.files import read_json
from tokenizer.sound_metrics import available

FOLDERS = GOLDEN / "folders"
TRAININGS = [name for name, (script, _) in RUNS.items() if script.startswith("train_")]
TOKENS = {"tokens": "tokenizer", "codec-tokens": "codec"}
# Machines round otherwise, and a step of Adam makes more of it where a gradient is nearly 0.
CLOSE = 2e-2
# Measures that were not taken then.
SINCE = {"valid/dnsmos", "valid/dnsmos_original"}
# Measures that rounding does not move far, besides losses.
STEADY = ("train/learning_rate", "valid/psnr", "valid/bits_per_code", "valid/l1")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """The golden folders beside each other, to be changed, with that place as the working directory."""
    place = tmp_path / "golden"
    shutil.copytree(FOLDERS, place)
    with at(place):
        yield place


@pytest.mark.parametrize("name", TRAININGS)
def test_a_run_of_before_goes_on(name: str, folders: Path, script: Script) -> None:
    whole = rows_of(FOLDERS / name)
    (folders / name / "model.safetensors").unlink()
    finished = script(RUNS[name][0], "--output", name, "--resume", "latest")
    assert "resuming from" in finished.err and "older release" not in finished.err
    rows = rows_of(folders / name)
    assert [row["step"] for row in rows] == [row["step"] for row in whole]
    assert rows[:4] == whole[:4]  # three steps and an evaluation, which are kept
    for row, expected in zip(rows[4:], whole[4:], strict=True):
        missing = {f"valid/{name}" for name in {"stoi", "pesq"} - {*available()}}
        assert row.keys() - SINCE == expected.keys() - missing
        losses = [key for key in row if "loss" in key or key in STEADY]
        assert losses
        for key in losses:
            assert row[key] == pytest.approx(expected[key], rel=CLOSE, abs=1e-6), key


@pytest.mark.parametrize("name", ["tokenizer", "codec", "vae", "quantized"])
def test_a_tokenizer_of_before_loads(name: str) -> None:
    tok = Tokenizer.from_pretrained(FOLDERS / name)
    assert tok.fingerprint() == read_json(FOLDERS / name / "config.json")["fingerprint"]


@pytest.mark.parametrize("name", TOKENS)
def test_a_prior_of_before_loads_and_knows_its_tokenizer(name: str) -> None:
    prior = Prior.from_pretrained(FOLDERS / name.replace("tokens", "prior"))
    tok = Tokenizer.from_pretrained(FOLDERS / TOKENS[name])
    assert prior.config.tokenizer_fingerprint == tok.fingerprint()


@pytest.mark.parametrize("name", TOKENS)
def test_tokens_of_before_are_read_and_made_again(name: str, folders: Path, script: Script) -> None:
    info, splits = read_tokens(folders / name)
    assert info.fingerprint == Tokenizer.from_pretrained(folders / TOKENS[name]).fingerprint()
    script(*RUNS[name][:1], *RUNS[name][1], "--output", "again")
    again, old = (read_json(folders / of / "tokens.json") for of in ("again", name))
    assert {k: again.get(k) for k in old} == old  # facts may be added
    for split, before in splits.items():
        found = read_tokens(folders / "again")[1][split]
        assert len(found) == len(before) > 0
        for i in range(len(before)):
            pair = [np.frombuffer(of.content(i), np.uint8) for of in (found, before)]
            assert (pair[0] == pair[1]).mean() > 0.95  # rounding may turn a code


def test_samples_are_drawn_from_a_prior_of_before(folders: Path, script: Script) -> None:
    script("sample", "--prior", "prior", "--output", "samples", "--num", 2)
    assert len(list((folders / "samples").glob("*.png"))) >= 2


def test_words_mean_the_same_options() -> None:
    """An option may be added; none may go, or have another default."""
    before: dict[str, dict[str, Any]] = json.loads((GOLDEN / "options.json").read_text())
    now = options()
    assert before.keys() <= now.keys()
    for words, values in before.items():
        assert {k: now[words].get(k, ...) for k in values} == values, words
