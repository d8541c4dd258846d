"""Models of other libraries that cannot be loaded: one message each, with what to do.

Left out: what is refused of data, which is that of any tokenizer (tokenizer/test_model.py).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.foreign import saved, sounds
from tests.helpers.running import Script, assert_refused
from tokenizer import Tokenizer
from tokenizer.foreign import library
from tokenizer.installation import PIP_INSTALL


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("encodec", tmp_path_factory.mktemp("foreign"))


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    for file in kept.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"model_type": "wavtokenizer"}, r"config\.json: model_type is 'wavtokenizer', .*encodec"),
        ({"auto_map": {"AutoModel": "theirs.Model"}}, "wants code of its own"),
        ({"normalize": True, "chunk_length_s": 1.0, "overlap": 0.01}, "48khz: .*loudness"),
        ({"norm_type": "time_group_norm"}, "norm_type weight_norm"),
        ({"use_causal_conv": False}, "use_causal_conv"),
        ({"norm_type": "batch"}, "transformers refuses this config of encodec: .*norm_type"),
        ({"codebook_dim": 5}, "codebook_dim is 5, expected 8"),
        ({"upsampling_ratios": []}, "strides"),
        ({"sampling_rate": 10}, "sample_rate is 10"),
    ],
)
def test_configs(folder: Path, values: dict[str, Any], match: str) -> None:
    change(folder, **values)
    refused(folder, match)


def test_sizes_that_do_not_fit_the_weights_name_a_tensor(folder: Path) -> None:
    change(folder, hidden_size=12, codebook_dim=12)
    refused(folder, r"tensor 'decoder.layers.0.conv.*' has shape \(8, .*, expected \(8, .* by config\.json")
    change(folder, num_filters=1 << 20)  # would take terabytes
    refused(folder, r"holds \d+ bytes, but config.json describes a model of \d{10,} numbers.*lstm")


@pytest.mark.parametrize("how", ["missing", "unexpected", "NaN"])
def test_tensors_that_are_not_what_they_must_be_are_named(folder: Path, how: str) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    name = "encoder.layers.0.conv.bias"
    if how == "missing":
        del state[name]
    elif how == "unexpected":
        state["encoder.layers.0.conv.bias2"] = torch.zeros(1)
    else:
        state[name] = torch.full_like(state[name], torch.nan)
    save_file(state, path, metadata={"format": "pt"})
    refused(folder, f"{how}.*{name}|{name}.*{how}")


def test_a_file_that_is_cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(folder, "not a whole safetensors file")


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "no model.safetensors; pickled weights.*may run code")


def test_a_library_that_is_missing_or_old(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = rf"transformers 99\.0 or newer, found \d+\..*; {PIP_INSTALL} -e '\.\[foreign\]'"
    with monkeypatch.context() as patch:
        patch.setitem(library.LEAST, "transformers", (99, 0))
        refused(folder, command)

    def missing(name: str) -> str:
        raise library.PackageNotFoundError(name)

    monkeypatch.setattr(library, "version", missing)
    refused(folder, r"found none; pip install .*'\.\[foreign\]'")


def test_options_that_a_foreign_decoder_has_not(folder: Path, script: Script, tmp_path: Path) -> None:
    words = ("--tokenizer", folder, "--output", tmp_path / "out", "--decoder.widths", 8)
    assert_refused(script("train_decoder", "speech", *words, code=2), "widths is no option of the networks")
    assert not (tmp_path / "out").exists()


def test_a_bandwidth_that_it_has_not(folder: Path) -> None:
    tok = Tokenizer.from_pretrained(folder)
    with pytest.raises(ValueError, match="num_codebooks is 5, expected 1 to 4"):
        tok.encode(sounds(1, 40), num_codebooks=5)
