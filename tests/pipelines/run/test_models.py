"""A prior together with its tokenizer."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from pipelines.reports.priors import write_prior_sample
from pipelines.run.models import load_models, public_name
from prior import Prior
from tests.helpers.running import TINY_PRIOR, Script

CPU = torch.device("cpu")


def test_the_prior_names_its_tokenizer(tiny_prior: Path, tiny_tokenizer: Path) -> None:
    prior, tok = load_models(str(tiny_prior), "", CPU)
    assert prior is not None and prior.config.tokenizer_fingerprint == tok.fingerprint()
    assert load_models("", str(tiny_tokenizer), CPU)[0] is None


def moved(tiny_prior: Path, folder: Path) -> Path:
    """The prior in another folder, and of a tokenizer that is no longer where it was."""
    shutil.copytree(tiny_prior, folder, ignore=shutil.ignore_patterns("sample.png", "tokens.json"))
    config = json.loads((folder / "config.json").read_text())
    config["config"]["tokenizer_id"] = "gone/far/away/tokenizer"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_folders_that_moved_together_find_each_other(
    tiny_prior: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    prior = moved(tiny_prior, tmp_path / "prior")
    with pytest.raises(ValueError, match=r"--tokenizer.* gone/far/away/tokenizer"):
        load_models(str(prior), "", CPU)
    shutil.copytree(tiny_tokenizer, tmp_path / "tokenizer")
    assert load_models(str(prior), "", CPU)[1].num_codebooks == 1


def test_the_path_that_a_prior_of_an_older_release_names_comes_first(
    tiny_prior: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    prior = moved(tiny_prior, tmp_path / "prior")
    config = json.loads((prior / "config.json").read_text())
    config["config"]["tokenizer_id"] = str(tiny_tokenizer)
    (prior / "config.json").write_text(json.dumps(config))
    (tmp_path / tiny_tokenizer.name).mkdir()  # another one beside it
    assert load_models(str(prior), "", CPU)[1].num_codebooks == 1


def test_a_published_prior_names_no_path_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tok = tmp_path / "user" / "tok"
    tok.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for given in (str(tok), "user/tok", "./user/tok", "user/tok/", "/gone/tok"):
        assert public_name(given) == "tok", given
    assert public_name("someone/tok") == "someone/tok"  # no folder here
    (tok / "run.json").write_text('{"push_to_hub": ""}')
    assert public_name("user/tok") == "tok"
    (tok / "run.json").write_text('{"push_to_hub": "me/emoji"}')
    assert public_name("user/tok") == "me/emoji"


def test_the_tokenizers_id_can_be_given(script: Script, tiny_tokens: Path, tmp_path: Path) -> None:
    words = ("small", *TINY_PRIOR, "--tokens", tiny_tokens, "--max-steps", 1, "--tracker", "none")
    script("train_prior", *words, "--output", tmp_path, "--tokenizer-id", "me/emoji")
    assert Prior.from_pretrained(tmp_path).config.tokenizer_id == "me/emoji"
    assert 'Tokenizer.from_pretrained("me/emoji")' in (tmp_path / "README.md").read_text()
    # Here the tokenizer is at hand, and the Hub is not asked.
    assert (tmp_path / "sample.png").exists() and load_models(str(tmp_path), "", CPU)[0] is not None


def test_nothing_given_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"--prior DIR.*--tokenizer DIR"):
        load_models("", "", CPU)


def test_a_sample_needs_the_tokenizer(
    tiny_prior: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(tiny_prior / "tokens.json", tmp_path)  # which a run begins with
    write_prior_sample(Prior.from_pretrained(tiny_prior), tmp_path)
    assert (tmp_path / "sample.png").stat().st_size > 1000
    with caplog.at_level(logging.WARNING):
        prior = Prior.from_pretrained(moved(tiny_prior, tmp_path / "prior"))
        write_prior_sample(prior, tmp_path / "prior")
    assert not (tmp_path / "prior" / "sample.png").exists() and "no sample.png" in caplog.text
