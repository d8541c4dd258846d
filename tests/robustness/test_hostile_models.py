"""Saved models that are made to do harm: what they ask for is refused before memory or time is spent on it.

Left out: models that are broken by accident (tokenizer/hub/test_strict_loading.py), and thousands
(test_fuzz_models.py).
"""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prior import Prior, PriorConfig
from tests.helpers.tiny import tokenizer as tiny_tokenizer
from tokenizer import Tokenizer, TokenizerConfig
from tokenizer.hub import meta as outline
from tokenizer.hub.files import CONFIG, MAX_JSON, WEIGHTS, read_json
from tokenizer.variants import config_from_dict

TOO_MANY = r"config\.bottleneck: 1280 quantizers in all, expected at most 1024"


@pytest.fixture
def tok(tmp_path: Path) -> Path:
    return tiny_tokenizer().save_pretrained(tmp_path / "tok")


def set_config(folder: Path, **values: Any) -> None:
    raw = json.loads((folder / CONFIG).read_text())
    raw["config"] |= values
    (folder / CONFIG).write_text(json.dumps(raw))


def test_a_header_of_huge_tensors_in_a_small_file_takes_no_memory(tmp_path: Path) -> None:
    """Names and shapes fit a config of 35 GB; only the places in the file do not."""
    folder = Prior(PriorConfig(dim=8, heads=1, depth=1, grid=(2, 2))).save_pretrained(tmp_path / "prior")
    set_config(folder, dim=1 << 13)
    with torch.device("meta"):
        huge = Prior(PriorConfig(dim=1 << 13, heads=1, depth=1, grid=(2, 2))).state_dict()
    header = {k: {"dtype": "F32", "shape": v.shape, "data_offsets": [0, 4]} for k, v in huge.items()}
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"model\.safetensors: .*(header|offset).*download"):
        Prior.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), before)  # no model was made, whose weights are random at first


def change_weights(tok: Path, change: Callable[[Tensor], Tensor]) -> str:
    """Change one of the decoder's tensors in a saved model; returns its name."""
    state = load_file(tok / WEIGHTS)
    name = next(k for k in sorted(state) if k.startswith("decoder"))
    state[name] = change(state[name])
    save_file(state, tok / WEIGHTS)
    return name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, tok: Path) -> None:
    name = change_weights(tok, lambda w: w.flatten().index_fill(0, torch.tensor([1]), value).view_as(w))
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*'{name}' .*NaN.*download"):
        Tokenizer.from_pretrained(tok)


def test_weights_beyond_their_type_are_named(tok: Path) -> None:
    name = change_weights(tok, lambda w: torch.full_like(w, 1e300, dtype=torch.float64))
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*'{name}' .*float32.*download"):
        Tokenizer.from_pretrained(tok)


def test_large_weights_whose_sum_overflows_are_loaded(tok: Path) -> None:
    name = change_weights(tok, lambda w: torch.full_like(w, 3e38))
    assert float(Tokenizer.from_pretrained(tok).state_dict()[name].max()) == pytest.approx(3e38)


def test_tables_that_no_weights_stand_for_are_refused(tok: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of 4 codebooks of 2^24 entries, 768 MiB, of which no weight tells; with 256 it is 48 GiB."""
    monkeypatch.setattr(outline, "MAX_TABLES", 1 << 28)
    base = {"kind": "lfq", "bits": 24, "dim": 1, "group_bits": 1}
    set_config(tok, bottleneck={"kind": "grouped", "groups": 4, "base": base})
    config = config_from_dict(TokenizerConfig, read_json(tok / CONFIG)["config"])
    state = outline.outline_of(lambda: Tokenizer(config)).state_dict()
    save_file({k: torch.zeros(v.shape, dtype=v.dtype) for k, v in state.items()}, tok / WEIGHTS)
    with pytest.raises(
        ValueError, match=r"config\.json: .*768 MiB.*expected .*256 MiB.*; .*codebooks smaller.*download"
    ):
        Tokenizer.from_pretrained(tok)


def test_quantizers_within_quantizers_are_counted() -> None:
    inner = {"kind": "rvq", "num_codebooks": 5, "stage": {"kind": "vq"}}
    with pytest.raises(ValueError, match=TOO_MANY):
        config_from_dict(TokenizerConfig, {"bottleneck": {"kind": "grouped", "groups": 256, "base": inner}})
    inner = {"kind": "grouped", "groups": 256, "base": {"kind": "vq"}}
    with pytest.raises(ValueError, match=TOO_MANY):
        config_from_dict(TokenizerConfig, {"bottleneck": {"kind": "rvq", "num_codebooks": 5, "stage": inner}})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", "32 deep"),
        ("[" * 900 + "]" * 900, "32 deep"),
    ],
)
def test_json_that_would_break_who_reads_it_is_named(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json: .*JSON.*{named}"):
        read_json(tmp_path / "a.json")


def test_json_without_an_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(MAX_JSON + 1)
    with pytest.raises(ValueError, match=rf"a\.json: .*{MAX_JSON + 1} bytes, expected at most {MAX_JSON}"):
        read_json(tmp_path / "a.json")
    os.mkfifo(tmp_path / "b.json")
    with pytest.raises(ValueError, match=r"b\.json: .*not a file"):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize(
    "value", [2**63, -(2**63) - 1, 10**400, "x" * 10_000, list(range(5000)), {"a": "b" * 9000}]
)
def test_values_of_any_length_are_told_in_short(value: Any, tok: Path) -> None:
    raw = json.loads((tok / CONFIG).read_text())
    raw["config"]["bottleneck"]["codebook_size"] = value
    (tok / CONFIG).write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"config\.bottleneck\.codebook_size: expected int, got") as error:
        Tokenizer.from_pretrained(tok)
    assert len(str(error.value)) < 500


def test_what_a_config_says_of_itself_names_the_file(tok: Path) -> None:
    set_config(tok, modality={"kind": "image", "channels": 7})
    with pytest.raises(ValueError, match=r"config\.json: config\.modality: channels is 7, expected 1 .*3 "):
        Tokenizer.from_pretrained(tok)
