"""Checkpoints that are broken, missing or of another model: no run resumes from them, and each is named.

Left out: resuming from those that are whole, and with other options (pipelines/training/test_checkpoints.py).
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.running import TINY_TOKENIZER, Script
from tests.helpers.whole_runs import assert_same_run, stopped_at


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path)


def with_nan(path: Path) -> None:
    tensors = load_file(path)
    tensors[sorted(tensors)[0]].view(-1)[0] = float("nan")
    save_file(tensors, path)


def flattened(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of as many numbers, in one row."""
    return {k: v.flatten() for k, v in load_file(path).items()}


def without_a_parameter(path: Path) -> None:
    tensors = load_file(path)
    optimizer, parameter, _ = sorted(tensors)[0].split(".")
    save_file({k: v for k, v in tensors.items() if not k.startswith(f"{optimizer}.{parameter}.")}, path)


def before_the_first_step(path: Path) -> None:
    tensors = load_file(path)
    steps = [k for k in tensors if k.endswith(".step")]
    assert steps
    save_file({**tensors, steps[0]: -tensors[steps[0]]}, path)


BREAKAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "cut model": ("model.safetensors", cut),
    "no model": ("model.safetensors", Path.unlink),
    "part of a model": ("model.safetensors", without_a_tensor),
    "part of the averages": ("average.safetensors", without_a_tensor),
    "cut optimizers": ("optimizers.safetensors", cut),
    "part of the optimizers": ("optimizers.safetensors", without_a_tensor),
    "optimizers of another run": (
        "optimizers.safetensors",
        lambda path: save_file({"7.0.momentum": torch.zeros(1)}, path),
    ),
    "optimizers of a part of the model": ("optimizers.safetensors", without_a_parameter),
    "optimizers before their first step": ("optimizers.safetensors", before_the_first_step),
    "no noise": ("rng.safetensors", Path.unlink),
    "cut state": ("state.json", cut),
    "empty state": ("state.json", lambda path: path.write_text("{}") and None),
    "state of another step": (
        "state.json",
        lambda path: path.write_text(path.read_text().replace('"step": 8', '"step": 7')) and None,
    ),
    "optimizers of other shapes": ("optimizers.safetensors", lambda path: save_file(flattened(path), path)),
    "averages that are not finite": ("average.safetensors", with_nan),
    "state without threads": (
        "state.json",
        lambda path: path.write_text('{"step": 8, "processes": 1, "scaler": null}') and None,
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_checkpoint_is_named_and_an_older_one_still_serves(
    breakage: str, script: Script, no_plots: None, whole_runs: dict[str, Path], tmp_path: Path
) -> None:
    whole = whole_runs["train_tokenizer"]
    folder = stopped_at(8, whole, tmp_path / "run")
    broken, (file, spoil) = folder / "checkpoints" / "step-8", BREAKAGES[breakage]
    spoil(broken / file)
    log = (folder / "metrics.jsonl").read_bytes()
    finished = script("train_tokenizer", "--output", folder, "--resume", "latest", code=2)
    (message,) = re.findall(r"^Error: .*", finished.err, re.MULTILINE)
    assert str(broken) in message and "--resume PATH" in message
    assert "Traceback" not in finished.err
    assert (folder / "metrics.jsonl").read_bytes() == log
    if breakage == "cut model":
        script("train_tokenizer", "--output", folder, "--resume", folder / "checkpoints" / "step-4")
        assert_same_run(folder, whole)


def test_a_checkpoint_of_another_model_is_refused(
    script: Script, whole_runs: dict[str, Path], tmp_path: Path
) -> None:
    other = whole_runs["train_tokenizer"] / "checkpoints" / "step-4"
    words = ("emoji", *TINY_TOKENIZER, "--max-steps", 6, "--output", tmp_path / "run")
    finished = script("train_tokenizer", *words, "--resume", other, code=2)
    assert finished.err.count("Error: ") == 1 and str(other) in finished.err


def test_a_path_without_a_checkpoint_names_the_fix(script: Script, tmp_path: Path) -> None:
    words = ("emoji", *TINY_TOKENIZER, "--output", tmp_path / "run", "--resume", tmp_path / "nowhere")
    finished = script("train_tokenizer", *words, code=2)
    assert f"Error: --resume {tmp_path / 'nowhere'}: " in finished.err
    assert "`latest`" in finished.err
