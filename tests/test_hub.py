"""Saved models: bit for bit, strict, without code, and to the Hub and back through a local server.

Left out: what the models compute.
"""

import json
import os
import pickle
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants
from local_hub import LocalHub, serve
from safetensors.torch import load_file, save_file
from tiny import pictures
from tiny import tokenizer as tiny_tokenizer
from torch import nn

from prior import Prior, PriorConfig
from tokenizer import Tokenizer
from tokenizer.files import read_json, write_atomically
from tokenizer.hub import MODEL_FILES, CardInfo, HubModel, push_folder

ROOT = Path(__file__).parents[1]
CARD = CardInfo(
    title="A tiny tokenizer",
    license="mit",
    datasets=("user/pictures",),
    command="accelerate launch pipelines/train_tokenizer.py --seed 1",
    metrics={"psnr": 25.123456789, "l1": 0.5},
    notes="Only a test.",
)


@dataclass(frozen=True)
class ScaleConfig:
    size: int = 3
    bias: bool = True


class Scale(HubModel):
    """The smallest model that can be saved."""

    model_type = "test-scale"
    config_class = ScaleConfig

    def __init__(self, config: ScaleConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.arange(1.0, config.size + 1))
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("steps", torch.tensor(7))
        if config.bias:
            self.bias = nn.Parameter(torch.zeros(config.size))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return Scale(ScaleConfig()).save_pretrained(tmp_path / "model")


def edit_json(path: Path, change: Any) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("kind", ["vq", "gaussian"])
def test_tokenizers_come_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    tok = tiny_tokenizer(kind)
    tok.train()
    assert tok.save_pretrained(tmp_path / "a" / "b", CARD) == tmp_path / "a" / "b"
    torch.manual_seed(77)
    loaded = Tokenizer.from_pretrained(tmp_path / "a" / "b")
    assert loaded.config == tok.config and not any(m.training for m in loaded.modules())
    state = loaded.state_dict()
    assert state.keys() == tok.state_dict().keys()
    for name, value in tok.state_dict().items():
        assert torch.equal(state[name], value) and state[name].dtype == value.dtype, name
    x = pictures(3, 3, 21, 30)
    assert torch.equal(loaded(x).x_hat, tok.eval()(x).x_hat)
    assert tok.training is False and {p.name for p in (tmp_path / "a" / "b").iterdir()} < set(MODEL_FILES)
    loaded.save_pretrained(tmp_path / "again", CARD)
    for file in (tmp_path / "a" / "b").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_equal_weights_are_equal_files_and_other_weights_are_not(tmp_path: Path) -> None:
    tiny_tokenizer(seed=1).save_pretrained(tmp_path / "a", CARD)
    tiny_tokenizer(seed=1).save_pretrained(tmp_path / "b", CardInfo(command="another"))
    tiny_tokenizer(seed=2).save_pretrained(tmp_path / "c", CARD)
    a, b, c = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert a == b != c
    header = json.loads(a[8 : 8 + struct.unpack("<Q", a[:8])[0]])
    assert header["__metadata__"] == {"format": "pt"}


def test_a_saved_folder_is_complete(tmp_path: Path) -> None:
    tok = tiny_tokenizer()
    (tmp_path / "run.json").write_text("{}")
    tok.save_pretrained(tmp_path, CARD)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == set(MODEL_FILES) - {"sample.png", "sample.wav"} | {"run.json"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(config) == {"model_type", "library_version", "fingerprint", "config"}
    assert config["model_type"] == "tokenloom-tokenizer" and config["fingerprint"] == tok.fingerprint()
    assert "command" not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"psnr": 25.123456789, "l1": 0.5}
    preprocessor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert preprocessor["size"] == {"height": 16, "width": 16} and preprocessor["num_channels"] == 3


def test_all_files_may_be_read_by_the_same_people(saved: Path) -> None:
    assert len({p.stat().st_mode & 0o777 for p in saved.iterdir()}) == 1


def test_saving_again_replaces_every_file(saved: Path) -> None:
    model = Scale(ScaleConfig(size=5))
    model.save_pretrained(saved, CARD)
    assert torch.equal(Scale.from_pretrained(str(saved)).scale, torch.arange(1.0, 6.0))
    assert not [p for p in saved.iterdir() if p.name.startswith(".")]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(beside: Path) -> None:
        beside.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


# Strict loading


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
    with pytest.raises(ValueError, match=f"model.safetensors: .*{message}"):
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
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file .*again"):
        Scale.from_pretrained(saved)


@pytest.mark.parametrize(
    "offsets", [{"scale": [8, 20]}, {"scale": [24, 20]}, {"scale": [-12, 0]}, {"scale": ["a", "b"]}]
)
def test_places_past_the_end_are_refused(saved: Path, offsets: dict[str, Any]) -> None:
    path = saved / "model.safetensors"
    change = rewritten(path.read_bytes(), lambda h: [h[k].update(data_offsets=v) for k, v in offsets.items()])
    path.write_bytes(change)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
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
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        Scale.from_pretrained(saved)


def test_a_tensor_of_another_type_is_refused(saved: Path) -> None:
    state = load_file(saved / "model.safetensors")
    state["scale"] = torch.arange(3, dtype=torch.int32)
    save_file(state, saved / "model.safetensors")
    with pytest.raises(ValueError, match="scale"):
        Scale.from_pretrained(saved)


def test_a_deeply_nested_header_is_refused(saved: Path) -> None:
    header = b'{"a":' * 100_000
    (saved / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        Scale.from_pretrained(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"config\.json: cannot be read as JSON"),
        ('{"model_type": ', r"config\.json: cannot be read as JSON"),
        ("[]", r"config\.json: expected a JSON object, got list"),
        ("[" * 100_000, r"config\.json: cannot be read as JSON"),
        ("{}", "model_type is None, but Scale loads 'test-scale'"),
        ('{"model_type": "tokenloom-prior", "config": {}}', "is 'tokenloom-prior', but Scale loads"),
        ('{"model_type": "test-scale"}', r"config\.json: config: expected an object, got None"),
        (
            '{"model_type": "test-scale", "config": {"sise": 3}}',
            r"config\.json: config: unknown key 'sise'; known: bias, size",
        ),
        (
            '{"model_type": "test-scale", "config": {"size": "3"}}',
            r"config\.json: config.size: expected int, got '3'",
        ),
    ],
)
def test_bad_config_files_are_refused(saved: Path, content: str, message: str) -> None:
    (saved / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Scale.from_pretrained(saved)


def test_bytes_that_are_no_text_are_refused(saved: Path) -> None:
    (saved / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"config\.json: cannot be read as JSON"):
        Scale.from_pretrained(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files_are_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        Scale.from_pretrained(saved)


def test_a_huge_config_costs_no_memory(saved: Path) -> None:
    edit_json(saved / "config.json", lambda c: c["config"].update(size=10**15))
    with pytest.raises(ValueError, match="'bias' has shape"):
        Scale.from_pretrained(saved)


def test_models_of_another_kind_are_refused(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "tok")
    Prior(PriorConfig(dim=8, heads=1, depth=1, grid=(2, 2))).save_pretrained(tmp_path / "prior")
    with pytest.raises(ValueError, match="'tokenloom-tokenizer', but Prior loads 'tokenloom-prior'"):
        Prior.from_pretrained(tmp_path / "tok")
    with pytest.raises(ValueError, match="'tokenloom-prior', but Tokenizer loads"):
        Tokenizer.from_pretrained(tmp_path / "prior")


def test_weights_and_config_of_two_models_are_not_mixed(tmp_path: Path) -> None:
    tiny_tokenizer(seed=1).save_pretrained(tmp_path / "a")
    tiny_tokenizer(seed=2).save_pretrained(tmp_path / "b")
    weights = (tmp_path / "b" / "model.safetensors").read_bytes()
    (tmp_path / "a" / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="the files do not belong together"):
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
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        Scale.from_pretrained(saved)
    (saved / "model.safetensors").write_bytes(trap)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        Scale.from_pretrained(saved)
    assert not sprung.exists()
    pickle.loads(trap)
    assert sprung.exists()


# The card


def test_the_card_is_read_by_huggingface_hub(tmp_path: Path) -> None:
    (tmp_path / "sample.png").write_bytes(b"")
    (tmp_path / "sample.wav").write_bytes(b"")
    tiny_tokenizer().save_pretrained(tmp_path, CARD)
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "mit" and data["library_name"] == "tokenloom"
    assert data["pipeline_tag"] == "image-feature-extraction"
    assert {"tokenloom", "tokenizer", "vq-vae", "image"} <= set(data["tags"])
    assert data["datasets"] == ["user/pictures"] and data["metrics"] == ["l1", "psnr"]
    text = card.text
    assert text.lstrip().startswith("# A tiny tokenizer") and "Only a test." in text
    assert "| psnr | 25.1235 |" in text and "| l1 | 0.5 |" in text and "(sample.png)" in text
    assert "(sample.wav)" in text
    assert f"```\n{CARD.command}\n```" in text
    usage = text.split("```python\n")[1].split("```")[0]
    compile(usage, "usage", "exec")
    assert "Tokenizer.from_pretrained" in usage


def test_the_cards_example_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    Image.new("RGB", (30, 20), "red").save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    for kind in ("vq", "gaussian"):
        tiny_tokenizer(kind).save_pretrained(tmp_path / kind)
        usage = (tmp_path / kind / "README.md").read_text().split("```python\n")[1].split("```")[0]
        names: dict[str, Any] = {}
        exec(usage.replace("path/or/hub-id/of/this/model", kind), names)
        assert names["picture"].size == (16, 16)


def test_a_card_without_facts_claims_none(tmp_path: Path) -> None:
    card = ModelCard.load(Scale(ScaleConfig()).save_pretrained(tmp_path) / "README.md")
    assert card.data.to_dict().keys() == {"license", "library_name", "tags"}
    for heading in ("Measured", "Trained by", "Sample", "Notes", "Use"):
        assert f"## {heading}" not in card.text
    assert "Parameters: 6" in card.text


# From and to the Hub


@pytest.mark.parametrize("name", ["nowhere", "./user/name", "/tmp/x/y/z", "a/b/c", "~/model", "user/na me"])
def test_what_is_neither_folder_nor_hub_id_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="no such folder"):
        Scale.from_pretrained(name)


def test_a_file_is_not_a_folder(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: no such folder"):
        Scale.from_pretrained(saved / "config.json")


def test_a_hub_id_while_offline_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="user/name: no such folder, and the Hub did not give it"):
        Scale.from_pretrained("user/name", cache_dir=tmp_path)


# Run in a process of its own, because huggingface_hub reads its address when it is imported.
HUB_SESSION = """
import json, sys, torch
from pathlib import Path
from test_hub import Scale, ScaleConfig
from tokenizer.hub import CardInfo, push_folder

def error(**options):
    try:
        Scale.from_pretrained(**{"path_or_hub_id": "user/scale", "cache_dir": "cache", **options})
    except ValueError as e:
        return str(e)

model = Scale(ScaleConfig(size=4))
torch.nn.init.normal_(model.scale)
print(model.push_to_hub("user/scale", private=True, token="hf_secret"))
print(push_folder("run", "user/run", token="hf_secret"))
loaded = Scale.from_pretrained("user/scale", cache_dir="cache", revision="main", token="hf_secret")
assert torch.equal(loaded.scale, model.scale) and loaded.config == model.config
assert Path("cache/models--user--scale").is_dir()
try:
    Scale.from_pretrained("user/run", cache_dir="cache")
except ValueError as e:
    print("run:", e)
print("missing:", error(path_or_hub_id="user/missing"))
print("revision:", error(revision="v9"))
"""


def session(code: str, url: str, folder: Path) -> str:
    home = {"HOME": str(folder), "HF_HOME": str(folder / "hf"), "HF_ENDPOINT": url}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**home, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PATH": "", "HF_HUB_DISABLE_XET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def hub_session(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalHub, str]:
    """A model pushed to a local Hub and loaded from there, and a run's folder pushed."""
    folder = tmp_path_factory.mktemp("hub")
    run = Scale(ScaleConfig()).save_pretrained(folder / "run", CARD)
    for name in ("run.json", "metrics.jsonl", "sample.png", "checkpoints/step-1/model.safetensors", "x.bin"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("not for the Hub")
    (run / "config.json").write_text((run / "config.json").read_text().replace("test-scale", "other"))
    with serve() as hub:
        output = session(HUB_SESSION, hub.url, folder)
    return hub, output


def test_push_and_load_through_a_hub(hub_session: tuple[LocalHub, str]) -> None:
    hub, output = hub_session
    lines = output.splitlines()
    assert lines[0].startswith(f"{hub.url}/user/scale/commit/")
    private = [
        "private" in (c.get("visibility"), *(k for k, v in c.items() if v is True)) for c in hub.created
    ]
    assert private == [True, False]
    expected = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "metrics.json"}
    assert set(hub.repositories["user/scale"]) == expected
    assert "Bearer hf_secret" in hub.tokens


def test_only_the_models_files_go_up(hub_session: tuple[LocalHub, str]) -> None:
    files = hub_session[0].repositories["user/run"]
    assert set(files) == set(MODEL_FILES) - {"sample.wav"}
    assert b"25.1235" in files["README.md"]


def test_errors_of_the_hub_are_clear(hub_session: tuple[LocalHub, str]) -> None:
    lines = hub_session[1].splitlines()
    assert "run: " in lines[2] and "model_type is 'other', but Scale loads 'test-scale'" in lines[2]
    rest = "\n".join(lines[3:])
    assert "missing: user/missing: no such folder, and the Hub did not give it" in rest
    assert "revision: user/scale: no such folder, and the Hub did not give it" in rest


def test_a_hub_that_cannot_be_reached_is_a_clear_error(tmp_path: Path) -> None:
    code = (
        "from test_hub import Scale\n"
        "try:\n    Scale.from_pretrained('user/name')\n"
        "except ValueError as e:\n    print(e)"
    )
    assert "user/name: no such folder, and the Hub did not give it" in session(
        code, "http://127.0.0.1:9", tmp_path
    )


def test_a_folder_without_a_model_is_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: cannot be read as JSON"):
        push_folder(tmp_path, "user/name")


def test_read_json_wants_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "b.json").write_text("3")
    with pytest.raises(ValueError, match=r"b\.json: expected a JSON object, got int"):
        read_json(tmp_path / "b.json")
