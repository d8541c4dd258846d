"""Loading is strict and runs no code: each file that is damaged, missing or of another model is named.

Left out: what saving writes (test_saved_models.py), and models from the Hub (test_round_trip.py).
"""

import json
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prior import Prior, PriorConfig
from tests.helpers.savable import Scale, saved_model  # noqa: F401
from tests.helpers.tiny import tokenizer as tiny_tokenizer
from tokenizer import Tokenizer
from tokenizer.hub.files import read_json

# What stands in config.json, and what is said of it.
BAD_CONFIGS = [
    ("", r"config\.json: cannot.* JSON.*; correct .*download"),
    ('{"model_type": ', r"config\.json: cannot.* JSON.*; correct .*download"),
    ("[]", r"config\.json: expected a JSON object, got list"),
    ("[" * 100_000, r"config\.json: cannot.* JSON"),
    ("{}", "config.json: model_type.*None.* Scale .*'test-scale'"),
    (
        '{"model_type": "tokenloom-prior", "config": {}}',
        "config.json: model_type.*'tokenloom-prior'.* Scale .*'test-scale'",
    ),
    ('{"model_type": "test-scale"}', r"config\.json: config: expected an object, got None"),
    (
        '{"model_type": "test-scale", "config": {"sise": 3}}',
        r"config\.json: config: unknown key 'sise'; known: bias, size",
    ),
    (
        '{"model_type": "test-scale", "config": {"size": "3"}}',
        r"config\.json: config.size: expected int, got '3'",
    ),
]


def edit_json(path: Path, change: Any) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("bias"), "tensor 'bias' is missing"),
        (lambda s: s.update(extra=torch.zeros(2)), "unexpected tensor 'extra'"),
        (lambda s: s.update(scale=torch.zeros(4)), r"'scale' has shape \(4,\), expected \(3,\)"),
        (lambda s: s.update(scale=torch.zeros(3, 1)), r"'scale' has shape \(3, 1\), expected \(3,\)"),
        (lambda s: s.update(steps=torch.zeros(1)), r"'steps' has shape \(1,\), expected \(\)"),
        (lambda s: s.clear(), "tensor 'bias' is missing"),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved: Path, change: Any, message: str) -> None:
    state = load_file(saved / "model.safetensors")
    change(state)
    save_file(state, saved / "model.safetensors")
    with pytest.raises(ValueError, match=f"model.safetensors: .*{message}; .*download"):
        Scale.from_pretrained(saved)


def corrupt_header(header: dict[str, Any]) -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded


def rewritten(data: bytes, change: Any) -> bytes:
    """A safetensors file with its header changed."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    change(header)
    return corrupt_header(header) + data[8 + size :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: b"",
        lambda d: d[:5],
        lambda d: d[: len(d) // 2],
        lambda d: d[:-1],
        lambda d: d + b"x",
        lambda d: b"\xff" * 8 + d[8:],
        lambda d: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        lambda d: pickle.dumps({"scale": [1, 2, 3]}),
        lambda d: d[:8] + b"[" + d[9:],
        lambda d: d[:8] + b"\xff" * 20 + d[28:],
        lambda d: corrupt_header({"scale": 3}),
        lambda d: corrupt_header({"scale": {"shape": [3]}}),
        lambda d: corrupt_header({"scale": {"dtype": "F32", "shape": 3, "data_offsets": [0, 0]}}),
        lambda d: corrupt_header([1]),  # type: ignore[arg-type]
    ],
)
def test_files_that_are_not_whole_are_refused(saved: Path, damage: Any) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.safetensors: .*safetensors.*download"):
        Scale.from_pretrained(saved)


@pytest.mark.parametrize(
    "offsets", [{"scale": [8, 20]}, {"scale": [24, 20]}, {"scale": [-12, 0]}, {"scale": ["a", "b"]}]
)
def test_places_past_the_end_are_refused(saved: Path, offsets: dict[str, Any]) -> None:
    path = saved / "model.safetensors"
    change = rewritten(path.read_bytes(), lambda h: [h[k].update(data_offsets=v) for k, v in offsets.items()])
    path.write_bytes(change)
    with pytest.raises(ValueError, match=r"model\.safetensors: .*safetensors.*download"):
        Scale.from_pretrained(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["scale"].update(dtype="F99"),
        lambda h: h["scale"].update(dtype="F16"),
        lambda h: h["bias"].update(data_offsets=[0, 12]),
    ],
)
def test_a_header_at_odds_with_the_data_is_refused(saved: Path, change: Any) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(rewritten(path.read_bytes(), change))
    with pytest.raises(ValueError, match=r"model\.safetensors: .*download"):
        Scale.from_pretrained(saved)


def test_a_tensor_of_another_type_is_refused(saved: Path) -> None:
    state = load_file(saved / "model.safetensors")
    state["scale"] = torch.arange(3, dtype=torch.int32)
    save_file(state, saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"'scale' .*torch.int32, expected torch.float32; .*download"):
        Scale.from_pretrained(saved)


def test_a_deeply_nested_header_is_refused(saved: Path) -> None:
    header = b'{"a":' * 100_000
    (saved / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match=r"model\.safetensors: .*download"):
        Scale.from_pretrained(saved)


@pytest.mark.parametrize(("content", "message"), BAD_CONFIGS)
def test_bad_config_files_are_refused(saved: Path, content: str, message: str) -> None:
    (saved / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Scale.from_pretrained(saved)


def test_bytes_that_are_no_text_are_refused(saved: Path) -> None:
    (saved / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"config\.json: cannot.* JSON"):
        Scale.from_pretrained(saved)


@pytest.mark.parametrize(
    ("name", "fix"),
    [("config.json", "save_pretrained or a training script"), ("model.safetensors", "download")],
)
def test_missing_files_are_named(saved: Path, name: str, fix: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ValueError, match=rf"{re.escape(name)}.*; .*{fix}"):
        Scale.from_pretrained(saved)


def test_a_run_that_is_not_finished_is_named(saved: Path) -> None:
    (saved / "config.json").unlink()
    (saved / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=rf"{saved}: .*not finished .*config\.json.*; .*--resume latest"):
        Scale.from_pretrained(saved)


def test_a_huge_config_costs_no_memory(saved: Path) -> None:
    edit_json(saved / "config.json", lambda c: c["config"].update(size=10**15))
    with pytest.raises(ValueError, match=r"'bias' .*\(3,\), expected \(1000"):
        Scale.from_pretrained(saved)


def test_models_of_another_kind_are_refused(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "tok")
    Prior(PriorConfig(dim=8, heads=1, depth=1, grid=(2, 2))).save_pretrained(tmp_path / "prior")
    with pytest.raises(ValueError, match=r"model_type.*'tokenloom-tokenizer'.* Prior .*'tokenloom-prior'"):
        Prior.from_pretrained(tmp_path / "tok")
    with pytest.raises(
        ValueError, match=r"model_type.*'tokenloom-prior'.* Tokenizer .*'tokenloom-tokenizer'"
    ):
        Tokenizer.from_pretrained(tmp_path / "prior")


def test_weights_and_config_of_two_models_are_not_mixed(tmp_path: Path) -> None:
    tiny_tokenizer(seed=1).save_pretrained(tmp_path / "a")
    tiny_tokenizer(seed=2).save_pretrained(tmp_path / "b")
    weights = (tmp_path / "b" / "model.safetensors").read_bytes()
    (tmp_path / "a" / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=r"config\.json .*fingerprint '\w+'.* '\w+'.*download"):
        Tokenizer.from_pretrained(tmp_path / "a")


class Trap:
    """Its pickle writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_loading_runs_no_code(saved: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    for name in ("pytorch_model.bin", "model.pt", "model.pkl", "training_state.bin"):
        (saved / name).write_bytes(trap)
    (saved / "modeling.py").write_text(f"open({str(sprung)!r}, 'w')")
    edit_json(saved / "config.json", lambda c: c.update(auto_map={"AutoModel": "modeling.Scale"}))
    assert torch.equal(Scale.from_pretrained(saved).scale, torch.arange(1.0, 4.0))
    (saved / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors: .*download"):
        Scale.from_pretrained(saved)
    (saved / "model.safetensors").write_bytes(trap)
    with pytest.raises(ValueError, match=r"model\.safetensors: .*download"):
        Scale.from_pretrained(saved)
    assert not sprung.exists()
    pickle.loads(trap)
    assert sprung.exists()


def test_read_json_wants_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "b.json").write_text("3")
    with pytest.raises(ValueError, match=r"b\.json: expected a JSON object, got int"):
        read_json(tmp_path / "b.json")
    with pytest.raises(ValueError, match=r"c\.json: .*No such file.*; check the path"):
        read_json(tmp_path / "c.json")
