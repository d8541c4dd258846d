"""Files that are no checkpoint of a VQGAN: refused by name, and nothing is written.

Left out: what is taken (test_conversion.py).
"""

import argparse
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.foreign import janus
from tests.helpers.running import Script, assert_refused
from tests.tokenizer.foreign.test_pickles import llamagen_state, taming_state, vqgan


class Ran:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


@pytest.fixture
def convert(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What the script says of `held`, saved by torch unless it is bytes; nothing may be written."""
    monkeypatch.chdir(tmp_path)

    def converted(held: Any, *words: Any) -> str:
        path = tmp_path / "model.ckpt"
        if isinstance(held, bytes):
            path.write_bytes(held)
        else:
            torch.save(held, path)
        done = script("export", "--from-pickle", path, "--output", tmp_path / "out", *words, code=2)
        assert_refused(done, *(() if words else (path,)))
        assert [p.name for p in tmp_path.iterdir()] == ["model.ckpt"]
        return done.err

    return converted


def test_files_that_hold_no_weights(convert: Callable[..., str], tmp_path: Path) -> None:
    for legacy in (False, True):
        torch.save({"state_dict": Ran()}, tmp_path / "model.ckpt", _use_new_zipfile_serialization=not legacy)
        err = convert((tmp_path / "model.ckpt").read_bytes())
        assert f"wants {os.mkdir.__module__}.mkdir to be run" in err and "weights_only" not in err
    for held in (b"", b"not a pickle", b"PK\x03\x04" + bytes(99)):
        assert "not a checkpoint of torch" in convert(held)
    with zipfile.ZipFile(tmp_path / "model.ckpt", "w") as file:
        file.writestr("notes.txt", "none")
    assert "not a checkpoint of torch" in convert((tmp_path / "model.ckpt").read_bytes())
    assert "holds Tensor, expected weights by name" in convert(torch.zeros(3))
    assert "'epoch' is int, expected a tensor; weights are looked for in ema, model" in convert({"epoch": 3})
    assert "of no kind that is known" in convert({"layer.weight": torch.zeros(2)})


def test_tensors_that_do_not_fit(convert: Callable[..., str]) -> None:
    state = taming_state(vqgan())
    odd = {k: v for k, v in state.items() if "conv_out.bias" not in k} | {"encoder.more": torch.zeros(2)}
    err = convert({"state_dict": odd})
    assert "1 unknown: 'encoder.more'; 2 missing for VQModel: 'encoder.conv_out.bias'" in err
    name = "decoder.up.0.block.0.conv1.weight"
    err = convert(state | {name: torch.zeros(32, 64, 3, 3)})
    assert f"tensor '{name}' has shape (32, 64, 3, 3), expected (32, 32, 3, 3)" in err
    assert "from which sizes are read" in convert({k: v for k, v in state.items() if "conv_in" not in k})
    assert "'quant_conv.bias' is not of finite" in convert(
        state | {"quant_conv.bias": torch.full((4,), torch.nan)}
    )
    assert "multiple of 4 for --picture-size, got 30" in convert(state, "--picture-size", 30)


def test_models_that_no_library_has(convert: Callable[..., str]) -> None:
    state = taming_state(vqgan())
    gumbel = state | {"quantize.proj.weight": torch.zeros(16, 8, 1, 1)}
    assert "GumbelVQ of taming-transformers" in convert({"state_dict": gumbel})
    wide = state | {"encoder.conv_in.weight": torch.zeros(16, 3, 3, 3)}
    assert "ch_mult does not begin with 1" in convert({"state_dict": wide})
    plain = {"model": llamagen_state(janus()), "args": argparse.Namespace(codebook_l2_norm=False)}
    assert "trained with codebook_l2_norm false" in convert(plain, "--picture-size", 16)


def test_options_that_do_not_go_together(convert: Callable[..., str]) -> None:
    err = convert(b"", "--tokenizer", "some")
    assert "--from-pickle reads a checkpoint" in err and "give one or the other" in err
    assert "picture_size" in convert(b"", "--picture-size", 0)
