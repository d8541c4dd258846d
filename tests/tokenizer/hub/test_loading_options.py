"""How a model is loaded: from a subfolder, onto a device, in a type, and from the cache alone; and what of
that is refused before anything is downloaded.

Left out: revisions, tokens and the cache itself (test_round_trip.py), and files that do not fit
(test_strict_loading.py).
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, constants

from prior import Prior
from tests.helpers.local_hub import LocalHub
from tests.helpers.savable import Scale, ScaleConfig, assert_same, model_of_a_package, saved_model  # noqa: F401
from tests.helpers.tiny import pictures
from tests.helpers.tiny import tokenizer as tiny_tokenizer
from tokenizer import Tokenizer
from tokenizer.hub.model import HubModel


def push_within(model: HubModel, name: str, subfolder: str, tmp_path: Path) -> None:
    """The model in a folder of a Hub repository, beside what else there may be."""
    folder = model.save_pretrained(tmp_path / "pushed")
    api = HfApi(token="hf_user")
    api.create_repo(name, exist_ok=True)
    api.upload_folder(repo_id=name, folder_path=folder, path_in_repo=subfolder)
    shutil.rmtree(folder)


# Subfolders


def test_a_model_within_a_folder(model: HubModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "models" / "small")
    for within in ("models/small", "models/small/", "./models//small"):
        assert_same(type(model).from_pretrained(tmp_path, subfolder=within), model)
    assert_same(type(model).from_pretrained(tmp_path / "models", subfolder="small"), model)
    for missing, there in (("models/large", "models/small"), ("large", "models"), ("models/small/x", "none")):
        with pytest.raises(ValueError, match=rf"{tmp_path}: .* {missing},.*subfolder; there are: {there}$"):
            type(model).from_pretrained(tmp_path, subfolder=missing)
    for i in range(6):
        (tmp_path / f"m{i}").mkdir()
    with pytest.raises(ValueError, match=r"there are: m0, m1, m2, m3, m4, \.\.\.$"):
        type(model).from_pretrained(tmp_path, subfolder="large")


def test_a_model_within_a_repository(model: HubModel, hub: LocalHub, tmp_path: Path) -> None:
    Scale(ScaleConfig()).push_to_hub("user/models", token="hf_user")
    push_within(model, "user/models", "models/a[b]c", tmp_path)
    push_within(Scale(ScaleConfig(size=5)), "user/models", "models/b", tmp_path)
    hub.take_seen()
    assert_same(type(model).from_pretrained("user/models", subfolder="models/a[b]c"), model)
    asked = [s.path for s in hub.take_seen() if "/resolve/" in s.path]
    assert asked and all("/models/a%5Bb%5Dc/" in path for path in asked)  # the others are left where they are
    assert Scale.from_pretrained("user/models", subfolder="models/b").config.size == 5
    assert Scale.from_pretrained("user/models").config.size == 3
    with pytest.raises(ValueError, match=r"user/models: .*models/c/config\.json"):
        Scale.from_pretrained("user/models", subfolder="models/c")


# The repository that holds a model may not choose what is read beside it, nor who writes its name.
OUTSIDE = ["..", "../other", "a/../../b", "/etc", "a\\..\\b", "C:/models", None, 3]


@pytest.mark.parametrize("subfolder", OUTSIDE)
def test_a_subfolder_does_not_lead_out(
    subfolder: Any, hub: LocalHub, tmp_path: Path, model: HubModel
) -> None:
    model.save_pretrained(tmp_path / "other")
    (tmp_path / "here" / "a").mkdir(parents=True)
    for where in (tmp_path / "here", "user/model"):
        with pytest.raises(ValueError, match=r"subfolder: expected .*models/small.*got "):
            type(model).from_pretrained(where, subfolder=subfolder)
    assert hub.seen == []


# Devices and types


def test_weights_come_in_the_type_asked_for(tmp_path: Path) -> None:
    tok = tiny_tokenizer()
    tok.save_pretrained(tmp_path)
    stored = Tokenizer.from_pretrained(tmp_path)
    for dtype in (torch.bfloat16, "bfloat16", "torch.bfloat16"):
        loaded = Tokenizer.from_pretrained(tmp_path, dtype=dtype, device="cpu")
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16} and not loaded.training
        for name, value in stored.state_dict().items():
            expected = value.bfloat16() if value.is_floating_point() else value
            assert torch.equal(loaded.state_dict()[name], expected), name
    assert loaded.encode(pictures(2, 3, 16, 16)).shape == (2, 1, 4, 4)
    assert {p.dtype for p in Tokenizer.from_pretrained(tmp_path, dtype=None).parameters()} == {torch.float32}
    double = Tokenizer.from_pretrained(tmp_path, dtype=torch.float64)
    assert double.fingerprint() == stored.fingerprint() != loaded.fingerprint()
    # What was rounded is another model than the one whose card is there.
    loaded.save_pretrained(tmp_path / "rounded")
    assert "changed after it was loaded" in (tmp_path / "rounded" / "README.md").read_text()


def test_weights_go_to_the_device_asked_for(saved: Path) -> None:
    for device in ("meta", torch.device("meta")):  # a device that every machine has beside the CPU
        loaded = Scale.from_pretrained(saved, device=device)
        assert {t.device.type for t in loaded.state_dict().values()} == {"meta"}
    assert Scale.from_pretrained(saved, device="cpu").scale.device.type == "cpu"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            {"dtype": torch.int8},
            r"dtype: expected one of float32, bfloat16, float16, float64, got torch.int8",
        ),
        ({"dtype": torch.complex64}, "dtype: expected .*float32, .* got torch.complex64"),
        ({"dtype": "half"}, "dtype: expected one of float32, .* got 'half'"),
        ({"dtype": 16}, "dtype: expected one of float32, .* got 16"),
        ({"device": "gpu"}, r"device: 'gpu' .*take cpu"),
        ({"device": "cuda:97"}, r"device: 'cuda:97' .*take cpu"),
        ({"device": 97}, "device: 97 .*take cpu"),
        ({"device": 1.5}, "(?s)device: 1.5 .*take cpu"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_downloaded(
    option: dict[str, Any], message: str, model: HubModel, hub: LocalHub
) -> None:
    model.push_to_hub("user/model", token="hf_user")
    hub.take_seen()
    with pytest.raises(ValueError, match=message):
        type(model).from_pretrained("user/model", **option)
    assert hub.seen == [] and not (Path(constants.HF_HUB_CACHE) / "models--user--model").exists()


# The cache alone


def test_the_cache_alone_is_read(
    model: HubModel, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = type(model).from_pretrained
    model.push_to_hub("user/model", token="hf_user")
    push_within(model, "user/model", "small", tmp_path)
    missing = "user/model: .*its cache does not hold it: local_files_only was given, .* leave that out"
    hub.take_seen()
    with pytest.raises(ValueError, match=missing):
        load("user/model", local_files_only=True)
    assert hub.seen == []
    load("user/model")
    hub.take_seen()
    assert_same(load("user/model", local_files_only=True), model)
    assert_same(load("user/model", "main", "", None, None, True), model)  # in this order
    for others in ({"subfolder": "small"}, {"revision": "v1"}, {"cache_dir": tmp_path / "empty"}):
        with pytest.raises(ValueError, match=missing):
            load("user/model", local_files_only=True, **others)  # type: ignore[arg-type]
    # A download that ended before the weights, and one before the config; without the client's list of what
    # there should be, as older ones left it.
    (cached,) = (Path(constants.HF_HUB_CACHE) / "models--user--model" / "snapshots").iterdir()
    monkeypatch.setattr("huggingface_hub._snapshot_download.read_tree_cache", lambda *_: None)
    for name in ("model.safetensors", "config.json"):
        (cached / name).unlink()
        with pytest.raises(ValueError, match=missing):
            load("user/model", local_files_only=True)
    assert hub.seen == []
    assert_same(load("user/model"), model)


def test_a_folder_needs_no_cache(model: HubModel, hub: LocalHub, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "here")
    assert_same(type(model).from_pretrained(tmp_path / "here", local_files_only=True), model)
    with pytest.raises(ValueError, match=r"gone: .*user/name"):
        type(model).from_pretrained(tmp_path / "gone", local_files_only=True)
    assert hub.seen == []


def test_both_packages_take_the_same_options(tmp_path: Path) -> None:
    assert Tokenizer.from_pretrained.__func__ is Prior.from_pretrained.__func__  # type: ignore[attr-defined]
