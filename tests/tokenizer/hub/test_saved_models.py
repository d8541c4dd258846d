"""Saved models: bit for bit, whole folders that are replaced whole, and the card.

Left out: files that do not fit (test_strict_loading.py), the Hub (test_round_trip.py), and what the models
compute.
"""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from tests.helpers.savable import CARD, Scale, ScaleConfig, saved_model  # noqa: F401
from tests.helpers.tiny import pictures
from tests.helpers.tiny import tokenizer as tiny_tokenizer
from tokenizer import Tokenizer
from tokenizer.hub.files import MODEL_FILES, folder_beside, remove_unfinished, write_atomically
from tokenizer.hub.model import CardInfo


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


def test_a_loaded_model_keeps_its_card_wherever_it_is_saved(tmp_path: Path) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    (home / "sample.png").write_bytes(b"a picture")
    Scale(ScaleConfig()).save_pretrained(home, CARD)
    before = {p.name: p.read_bytes() for p in home.iterdir()}
    loaded = Scale.from_pretrained(home)
    for folder in (away, home, tmp_path / "away" / ".." / "home"):
        loaded.save_pretrained(folder)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    (home / "metrics.json").unlink()
    (home / "README.md").unlink()
    loaded.save_pretrained(home)
    assert json.loads((home / "metrics.json").read_text()) == {}
    assert "(sample.png)" in (home / "README.md").read_text()


def test_copies_of_cards_are_whole_or_not_there(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Scale.from_pretrained(saved)
    loaded.save_pretrained(tmp_path / "copy")
    before = {p.name: p.read_bytes() for p in (tmp_path / "copy").iterdir()}

    def half(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(shutil, "copyfile", half)
    with pytest.raises(OSError, match="disk full"):
        loaded.save_pretrained(tmp_path / "copy")
    assert {p.name: p.read_bytes() for p in (tmp_path / "copy").iterdir()} == before


@pytest.mark.parametrize("change", ["weights", "kind of numbers"])
def test_a_model_changed_since_does_not_keep_what_was_measured(change: str, tmp_path: Path) -> None:
    (tmp_path / "sample.png").write_bytes(b"a picture")
    Scale(ScaleConfig()).save_pretrained(tmp_path, CARD)
    loaded = Scale.from_pretrained(tmp_path)
    if change == "weights":
        loaded.scale.data[1] += 1e-6
    else:
        loaded.scale.data[0] = 1 / 3
        loaded.save_pretrained(tmp_path, CARD)
        loaded = Scale.from_pretrained(tmp_path).half()
    for folder in (tmp_path / "away", tmp_path):
        loaded.save_pretrained(folder)
        assert json.loads((folder / "metrics.json").read_text()) == {}
        card = ModelCard.load(folder / "README.md")
        assert card.data.license == "mit"  # it is derived of what has that licence
        assert "psnr" not in card.text and "sample" not in card.text and CARD.command not in card.text
        assert "changed after it was loaded" in card.text
    assert not (tmp_path / "away" / "sample.png").exists()


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(beside: Path) -> None:
        beside.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_leaves_can_be_told_from_files(tmp_path: Path) -> None:
    for name in ("file", ".file", ".x.unfinished", "x.unfinished"):
        (tmp_path / name).write_text("of somebody")
    before = {p: p.read_text() for p in tmp_path.iterdir()}

    def write(beside: Path) -> None:
        # As safetensors does: in a file of its own choice first.
        beside.with_name(".tmpAbC").write_text("half")
        beside.write_text("whole")
        seen.update({p for p in tmp_path.iterdir() if p.name not in {q.name for q in before}})
        shutil.copytree(beside.parent, tmp_path / ".file.1.unfinished")  # what a kill would leave now

    seen: set[Path] = set()
    write_atomically(tmp_path / "new", write)
    assert seen == {folder_beside(tmp_path / "new")}
    remove_unfinished(tmp_path)
    assert {p: p.read_text() for p in tmp_path.iterdir()} == {**before, tmp_path / "new": "whole"}


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
