"""The training item nearest to a sample: found among all, and shown beside it by sample.py."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.reports import neighbours
from pipelines.reports.neighbours import nearest_items
from pipelines.tokens.items import TokenSplit
from tests.helpers.running import Script
from tests.helpers.tiny import tokenizer


def test_the_nearest_of_all_items_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", 7)  # several chunks, the last one not full
    tok = tokenizer("vq")
    rng = np.random.default_rng(0)
    codes = rng.integers(0, tok.codebook_size, (40, 1, 4, 4)).astype(np.uint16)
    codes[30] = codes[3]  # of equals the first
    items = TokenSplit(codes, np.zeros(40, np.int64))
    wanted = torch.from_numpy(codes[[30, 39, 0, 20]].astype(np.int64))
    assert nearest_items(tok, wanted, items).tolist() == [3, 39, 0, 20]
    others = torch.from_numpy(rng.integers(0, tok.codebook_size, (5, 1, 4, 4)))
    with torch.no_grad():
        a, b = (tok.bottleneck.decode(x).flatten(1) for x in (others, items.rows(slice(0, 40))[0]))
    assert torch.equal(nearest_items(tok, others, items), torch.cdist(a.double(), b.double()).argmin(1))


def test_sample_shows_them(script: Script, tiny_prior: Path, tiny_tokens: Path, tmp_path: Path) -> None:
    words = ("--prior", tiny_prior, "--num", 2, "--label", "food", "--tokens", tiny_tokens)
    said = script("sample", *words, "--output", tmp_path)
    last = said.err.splitlines()[-1]
    assert f"{tmp_path / 'neighbours.png'}" in last and "0 % means all new" in last
    with Image.open(tmp_path / "neighbours.png") as sheet:
        assert sheet.width > 2 * 32 and sheet.height > 2 * 32


def test_sound_is_compared_in_windows_of_the_samples_length(
    script: Script, tiny_codec_prior: Path, tiny_codec_tokens: Path, tmp_path: Path
) -> None:
    words = ("--prior", tiny_codec_prior, "--num", 2, "--seconds", 0.7, "--tokens", tiny_codec_tokens)
    said = script("sample", *words, "--output", tmp_path)
    assert f"{tmp_path / 'neighbours.html'}" in said.err.splitlines()[-1]
    page = (tmp_path / "neighbours.html").read_text(encoding="utf-8")
    assert page.count("<audio") == 2 * 2 and page.count("nearest in training") >= 2


def test_tokens_of_another_tokenizer_are_refused_before_drawing(
    script: Script, tiny_prior: Path, tiny_tokens: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    for path in tiny_tokens.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    text = (folder / "tokens.json").read_text(encoding="utf-8")
    (folder / "tokens.json").write_text(
        text.replace('"fingerprint": "', '"fingerprint": "0'), encoding="utf-8"
    )
    words = ("--prior", tiny_prior, "--tokens", folder, "--output", tmp_path / "s")
    said = script("sample", *words, code=2)
    assert "fingerprint 0" in said.err
    assert not (tmp_path / "s").exists()


def test_rows_go_from_class_to_class(script: Script, tiny_prior: Path, tmp_path: Path) -> None:
    words = ("--prior", tiny_prior, "--num", 2, "--output", tmp_path / "s")
    script("sample", *words, "--interpolate", "food", "flags")
    assert len(list((tmp_path / "s").glob("food-to-flags-*.png"))) == 2 * 9
    said = script("sample", *words, "--interpolate", "food", "--output", tmp_path / "t", code=2)
    assert "expected two classes" in said.err
    both = ("--interpolate", "food", "flags", "--label", "food", "--output", tmp_path / "t")
    assert "--interpolate goes without --label" in script("sample", *words, *both, code=2).err
