"""Models to the Hub and back, through a Hub on this machine: create, upload, revisions, the cache.

Left out: what the Hub refuses (test_refusals.py), bad lines (test_interruptions.py), the scripts that push
(pipelines/run/test_publishing.py), and files of saved models (test_saved_models.py, test_strict_loading.py).
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from torch import nn

from tests.helpers import tiny
from tests.helpers.hub_repositories import Large
from tests.helpers.local_hub import LocalHub
from tests.helpers.savable import CARD, Scale, ScaleConfig, assert_same, model_of_a_package  # noqa: F401
from tokenizer import Tokenizer
from tokenizer.discriminators import Jury, JuryConfig
from tokenizer.hub.client import push_folder
from tokenizer.hub.files import MODEL_FILES
from tokenizer.hub.model import HubModel

ROOT = Path(__file__).parents[3]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def downloads(hub: LocalHub) -> list[str]:
    """The names of the files whose content was asked for since the last call."""
    names = {v.oid: p for r in hub.repositories.values() for c in r.commits.values() for p, v in c.items()
             if isinstance(v, Large)}  # fmt: skip
    paths = [Path(s.path) for s in hub.take_seen() if s.method == "GET" and not s.path.startswith("/api")]
    return sorted(names.get(p.name, p.name) for p in paths)


def test_a_model_goes_to_the_hub_and_back(model: HubModel, hub: LocalHub, tmp_path: Path) -> None:
    folder = model.save_pretrained(tmp_path / "saved", CARD)
    url = push_folder(folder, "user/model", token="hf_user")
    assert url == f"{hub.url}/user/model/commit/{hub.repositories['user/model'].refs['main']}"
    assert hub.content("user/model") == contents(folder)
    assert_same(type(model).from_pretrained("user/model"), model)
    weights = hub.repositories["user/model"].commits[Path(url).name]["model.safetensors"]
    assert isinstance(weights, Large)  # as .gitattributes asks
    puts = [seen for seen in hub.seen if seen.method == "PUT"]
    assert [(seen.path, seen.token) for seen in puts] == [(f"/lfs/{weights.oid}", None)]
    assert [s.token for s in hub.seen if s.path == "/lfs/verify"] == ["hf_user"]


@pytest.mark.skipif(find_spec("hf_xet") is None, reason="hf_xet is not installed")
def test_a_model_goes_by_xet_and_back(
    model: HubModel, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    folder = model.save_pretrained(tmp_path / "saved", CARD)
    push_folder(folder, "user/model", private=True, token="hf_user")
    assert hub.large == {} and not any("lfs" in seen.path for seen in hub.seen)
    cache = tmp_path / "cache"
    loaded = type(model).from_pretrained("user/model", token="hf_user", cache_dir=cache)
    assert_same(loaded, model)
    assert any("xet-read-token" in seen.path for seen in hub.seen) and "model.safetensors" not in downloads(
        hub
    )
    (snapshot,) = (cache / "models--user--model" / "snapshots").iterdir()
    assert contents(snapshot) == contents(folder)


def test_a_model_pushes_itself(model: HubModel, hub: LocalHub, tmp_path: Path) -> None:
    model.push_to_hub("user/model", private=True, token="hf_user")
    assert hub.repositories["user/model"].private
    assert hub.content("user/model") == contents(model.save_pretrained(tmp_path / "saved"))
    loaded = type(model).from_pretrained("user/model", token="hf_user")
    loaded.push_to_hub("user/again", token="hf_user")
    assert not hub.repositories["user/again"].private
    assert hub.content("user/again") == hub.content("user/model")


def test_only_the_models_files_go_up(hub: LocalHub, tmp_path: Path) -> None:
    run = tiny.tokenizer().save_pretrained(tmp_path / "run", CARD)
    for name in ("run.json", "metrics.jsonl", "sample.png", "checkpoints/step-1/model.safetensors", "x.bin"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("not for the Hub")
    push_folder(run, "user/run", token="hf_user")
    assert set(hub.content("user/run")) == set(MODEL_FILES) - {"sample.wav"}


def test_a_model_in_a_subfolder_goes_to_the_hub_and_back(hub: LocalHub, tmp_path: Path) -> None:
    push_folder(tiny.tokenizer().save_pretrained(tmp_path / "saved", CARD), "user/model", token="hf_user")
    jury = Jury(JuryConfig.of("image", 3, width=4))
    beside = jury.save_pretrained(tmp_path / "beside", CARD)
    push_folder(beside, "user/model", token="hf_user", subfolder="discriminator")
    assert {f"discriminator/{name}" for name in contents(beside)} < set(hub.content("user/model"))
    assert_same(Jury.from_pretrained("user/model", subfolder="discriminator"), jury)
    assert_same(Tokenizer.from_pretrained("user/model"), tiny.tokenizer())


def test_the_card_on_the_hub_has_valid_front_matter(hub: LocalHub, tmp_path: Path) -> None:
    push_folder(tiny.tokenizer().save_pretrained(tmp_path, CARD), "user/model", token="hf_user")
    card = ModelCard(hub.content("user/model")["README.md"].decode())
    card.validate()
    assert (card.data.license, card.data.datasets) == ("mit", ["user/pictures"])
    assert (card.data.library_name, card.data.pipeline_tag) == ("tokenloom", "image-feature-extraction")
    assert "25.1235" in card.text


def test_a_repository_that_is_there_gets_another_commit(hub: LocalHub) -> None:
    Scale(ScaleConfig()).push_to_hub("user/scale", token="hf_user")
    first = hub.repositories["user/scale"].refs["main"]
    url = Scale(ScaleConfig(size=5)).push_to_hub("user/scale", token="hf_user")
    assert len(hub.repositories["user/scale"].commits) == 3  # the first is of .gitattributes alone
    assert url.endswith(hub.repositories["user/scale"].refs["main"]) and not url.endswith(first)
    # The same again is no commit.
    assert Scale(ScaleConfig(size=5)).push_to_hub("user/scale", token="hf_user") == url
    assert len(hub.repositories["user/scale"].commits) == 3


def test_a_private_repository_stays_private_and_a_public_one_is_not_taken_for_private(hub: LocalHub) -> None:
    scale = Scale(ScaleConfig())
    scale.push_to_hub("user/secret", private=True, token="hf_user")
    Scale(ScaleConfig(bias=False)).push_to_hub("user/secret", token="hf_user")
    assert hub.repositories["user/secret"].private
    scale.push_to_hub("user/open", token="hf_user")
    before = hub.content("user/open")
    with pytest.raises(ValueError, match=r"user/open: .* public.* private .*settings"):
        Scale(ScaleConfig(size=9)).push_to_hub("user/open", private=True, token="hf_user")
    assert hub.content("user/open") == before and not hub.repositories["user/open"].private


def test_branches_tags_and_commits(model: HubModel, hub: LocalHub) -> None:
    load = type(model).from_pretrained
    old = Path(model.push_to_hub("user/model", token="hf_user")).name
    HfApi(token="hf_user").create_tag("user/model", tag="v1")
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    branch = Path(model.push_to_hub("user/model", token="hf_user", revision="try/noise")).name
    assert hub.repositories["user/model"].refs == {"main": old, "v1": old, "try/noise": branch}
    # Again, to a branch that is there.
    assert Path(model.push_to_hub("user/model", token="hf_user", revision="try/noise")).name == branch
    for revision in ("try/noise", branch):
        assert_same(load("user/model", revision=revision), model)
    assert hub.content("user/model", "v1") == hub.content("user/model", old) == hub.content("user/model")
    for revision in ("main", "v1", old, None):
        before = load("user/model", revision=revision)
        assert not torch.equal(next(before.parameters()), next(model.parameters()))
    for unknown in ("v9", "0" * 40, branch[:8]):
        with pytest.raises(
            ValueError, match=f"user/model: .* revision '{unknown}'; expected .*branch.* tag .*commit"
        ):
            load("user/model", revision=unknown)


def test_a_second_load_downloads_nothing(
    model: HubModel, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = type(model).from_pretrained
    model.push_to_hub("user/model", token="hf_user")
    files = hub.content("user/model")
    hub.take_seen()
    load("user/model")
    # Files of equal content are downloaded once.
    assert {files[name] for name in downloads(hub)} == set(files.values())
    load("user/model")
    assert [(seen.method, Path(seen.path).name) for seen in hub.take_seen()] == [("GET", "main")]
    load("user/model", cache_dir=tmp_path / "elsewhere")
    # Files of equal content are downloaded once.
    assert {files[name] for name in downloads(hub)} == set(files.values())
    assert (tmp_path / "elsewhere" / "models--user--model").is_dir()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_same(load("user/model"), model)
    assert hub.seen == []
    with pytest.raises(ValueError, match=r"user/model: .*HF_HUB_OFFLINE.*unset"):
        load("user/model", cache_dir=tmp_path / "empty")


def test_what_changed_is_downloaded_anew(model: HubModel, hub: LocalHub) -> None:
    load = type(model).from_pretrained
    model.push_to_hub("user/model", token="hf_user")
    first = load("user/model")
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    model.push_to_hub("user/model", token="hf_user")
    hub.take_seen()
    changed = load("user/model")
    assert_same(changed, model)
    assert not torch.equal(next(first.parameters()), next(changed.parameters()))
    # A tokenizer's config.json holds the fingerprint of its weights.
    expected = ["config.json", "model.safetensors"] if isinstance(model, Tokenizer) else ["model.safetensors"]
    assert downloads(hub) == expected


# In a process of its own, which sets no more than the variables that users set.
SESSION = """
from tokenizer import Tokenizer
saved = Tokenizer.from_pretrained("saved")
print(saved.push_to_hub("user/tok", private=True))
assert Tokenizer.from_pretrained("user/tok").fingerprint() == saved.fingerprint()
"""


def test_the_variables_of_huggingface_hub_are_all_it_takes(hub: LocalHub, tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path / "saved")
    environment = {
        **{"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "PATH": ""},
        **{"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_user", "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"},
    }
    command = [sys.executable, "-c", SESSION]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{hub.url}/user/tok/commit/")
    assert hub.repositories["user/tok"].private
    assert {seen.token for seen in hub.seen if "resolve" in seen.path} == {"hf_user"}
    assert {seen.token for seen in hub.seen if "/cdn/" in seen.path} == {None}  # the token is for the Hub
