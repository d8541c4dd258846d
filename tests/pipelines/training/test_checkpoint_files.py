"""The files of checkpoints: on the disk before they are found, found in order, and the weights they hold.

Left out: going on from them (test_checkpoints.py), and broken ones (robustness/test_broken_checkpoints.py).
"""

import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from pipelines import train_tokenizer
from pipelines.training.checkpoints import find_checkpoint, list_checkpoints
from tests.helpers.running import WHOLE_TOKENIZER, Script
from tokenizer import Tokenizer


def test_all_of_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    script: Script, no_plots: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a machine loses that stops without warning; a kill of the process alone does not show it."""
    events: list[tuple[str, str]] = []
    fsync, rename = os.fsync, Path.rename

    def fsync_noted(number: int) -> None:
        events.append(("fsync", Path(os.readlink(f"/proc/self/fd/{number}")).name))
        fsync(number)

    def rename_noted(path: Path, target: Path) -> Path:
        events.append(("rename", target.name))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync_noted)
    monkeypatch.setattr(Path, "rename", rename_noted)
    script("train_tokenizer", *WHOLE_TOKENIZER, "--max-steps", 4, "--output", tmp_path / "run")
    named = events.index(("rename", "step-4"))
    synced = [name for what, name in events[:named] if what == "fsync"]
    assert synced.count("metrics.jsonl") == 2  # when it was made, and with all rows
    files = {p.name for p in (tmp_path / "run" / "checkpoints" / "step-4").iterdir()}
    assert len(files) == 6 and files < {*synced} and any(name.startswith(".step-4") for name in synced)
    assert ("fsync", "checkpoints") in events[named:]


def test_checkpoints_are_found_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in ("9", "10", "100", "x", "8-old"):
        (tmp_path / f"step-{step}").mkdir()
    for step in ("9", "10", "x", "8-old"):
        (tmp_path / f"step-{step}" / "state.json").write_text("{}")
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-9", "step-10"]  # 100 has no state.json
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "step-10"
    assert find_checkpoint(tmp_path, str(tmp_path / "step-9")) == tmp_path / "step-9"
    assert find_checkpoint(tmp_path / "nowhere", "latest") is None


def test_what_is_measured_and_saved_are_the_averaged_weights(
    script: Script, no_plots: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[dict[str, Tensor]] = []

    def measure(tok: Tokenizer, *_: object) -> dict[str, float]:
        measured.append({k: v.clone() for k, v in tok.state_dict().items()})
        return {"psnr": 1.0}

    def measure_at_the_end(tok: Tokenizer, *_: object, thorough: bool) -> SimpleNamespace:
        return SimpleNamespace(headline=partial(measure, tok))

    monkeypatch.setattr(train_tokenizer, "evaluate_tokenizer", measure)
    monkeypatch.setattr(train_tokenizer, "measure_tokenizer", measure_at_the_end)
    monkeypatch.setattr(train_tokenizer, "write_tokenizer_report", lambda *_: None)
    words = ("--max-steps", 6, "--checkpoint-every", 3, "--eval-every", 3, "--ema-decay", 0.9)
    script("train_tokenizer", *WHOLE_TOKENIZER, *words, "--output", tmp_path)
    saved = [*(tmp_path / "checkpoints" / f"step-{step}" / "average.safetensors" for step in (3, 6))]
    for found, path in zip(measured, saved, strict=True):
        assert_close({k: found[k] for k in load_file(path)}, load_file(path), atol=0, rtol=0)
    assert_close(load_file(tmp_path / "model.safetensors"), measured[-1], atol=0, rtol=0)
    last = load_file(tmp_path / "checkpoints" / "step-6" / "model.safetensors")
    assert any(not torch.equal(last[k], v) for k, v in measured[-1].items())
