"""What the Hub refuses, and repositories that are no model of ours: one message each, with what to do.

Left out: what may pass when it is asked again (test_interruptions.py), and the scripts that push
(pipelines/run/test_publishing.py).
"""

import json
import pickle
from pathlib import Path

import pytest
from huggingface_hub import constants

from prior import Prior
from tests.helpers import tiny
from tests.helpers.hub_repositories import Repository
from tests.helpers.local_hub import LocalHub
from tests.helpers.running import Script, assert_refused
from tests.helpers.savable import BOTH, Scale, ScaleConfig, model_of_a_package, saved_model  # noqa: F401
from tests.tokenizer.hub.test_strict_loading import BAD_CONFIGS
from tokenizer import Tokenizer
from tokenizer.hub.client import prepare_push, push_folder
from tokenizer.hub.model import HubModel

LOG_IN = r"run `hf auth login` or set HF_TOKEN"


@pytest.mark.parametrize("name", ["nowhere", "./user/name", "/tmp/x/y/z", "a/b/c", "~/model", "user/na me"])
def test_what_is_neither_folder_nor_hub_id_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=f"^{name}: no such folder"):
        Scale.from_pretrained(name)


def test_a_file_is_not_a_folder(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: .*user/name"):
        Scale.from_pretrained(saved / "config.json")


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (None, f"private.* no token .*{LOG_IN}"),
        ("hf_other", f"private.* this token .*{LOG_IN}"),
        ("hf_wrong", f" 401 .*/settings/tokens.*{LOG_IN}"),
    ],
)
def test_a_private_repository_is_for_its_owner(
    model: HubModel, token: str | None, reason: str, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.push_to_hub("user/secret", private=True, token="hf_user")
    refused = rf"^user/secret: .*{reason}$"
    with pytest.raises(ValueError, match=refused):
        type(model).from_pretrained("user/secret", token=token)
    if token is not None:  # as one who is logged in
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(ValueError, match=refused):
            type(model).from_pretrained("user/secret")
    type(model).from_pretrained("user/secret", token="hf_reader")
    # What is not there looks the same.
    with pytest.raises(ValueError, match=refused.replace("secret", "missing")):
        type(model).from_pretrained("user/missing", token=token)


def test_a_token_that_is_not_to_be_used_is_not_used(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    Scale(ScaleConfig()).push_to_hub("user/secret", private=True, token="hf_user")
    monkeypatch.setenv("HF_TOKEN", "hf_user")
    with pytest.raises(ValueError, match=f"^user/secret: .*private.* no token .*{LOG_IN}"):
        Scale.from_pretrained("user/secret", token=False)
    Scale.from_pretrained("user/secret")


@pytest.mark.parametrize("token", [None, "hf_other"])
def test_a_gated_repository_says_where_to_ask(model: HubModel, token: str | None, hub: LocalHub) -> None:
    model.push_to_hub("user/gated", token="hf_user")
    hub.repositories["user/gated"].gated = True
    asks = rf"^user/gated: .*it is gated; ask for access at {hub.url}/user/gated, then {LOG_IN}"
    with pytest.raises(ValueError, match=asks):
        type(model).from_pretrained("user/gated", token=token)
    type(model).from_pretrained("user/gated", token="hf_user")


@pytest.mark.parametrize(
    ("repo_id", "token", "reason"),
    [
        ("user/model", None, f"no token.*{LOG_IN}.* write"),
        ("user/model", "hf_wrong", f" 401 .*/settings/tokens.*{LOG_IN}"),
        ("user/model", "hf_reader", f" 403 .*{LOG_IN}.* write"),
        ("user/there", "hf_reader", f" 403 .*{LOG_IN}.* write"),
        ("user/model", "hf_other", f" 403 .*{LOG_IN}.* write"),
        ("user/there", "hf_other", f" 403 .*{LOG_IN}.* write"),
        ("model", "hf_user", "expected .*user/name"),
        ("user/a/b", "hf_user", "expected .*user/name"),
        ("user/mo del", "hf_user", "Repo id must use alphanumeric chars"),
        ("user/-model", "hf_user", "cannot start or end"),
    ],
)
def test_a_push_that_is_refused_sends_no_file(
    repo_id: str, token: str | None, reason: str, hub: LocalHub
) -> None:
    hub.repositories["user/there"] = Repository()
    before = hub.repositories["user/there"].refs
    with pytest.raises(ValueError, match=f"^'?{repo_id}'?: .*{reason}"):
        tiny.tokenizer().push_to_hub(repo_id, token=token)
    assert list(hub.repositories) == ["user/there"] and hub.repositories["user/there"].refs == before
    assert not any("preupload" in seen.path or "lfs" in seen.path for seen in hub.seen)


def test_what_a_push_needs_is_prepared(hub: LocalHub) -> None:
    prepare_push("user/model", private=True, token="hf_user", revision="try", license="mit")
    made = hub.repositories["user/model"]
    assert made.private and set(made.refs) == {"main", "try"}
    with pytest.raises(ValueError, match=r"user/model: .*license 'mine'.*/repositories-licenses"):
        prepare_push("user/model", token="hf_user", license="mine")


def test_a_push_offline_says_so(saved: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"user/scale: .*HF_HUB_OFFLINE.*unset"):
        push_folder(saved, "user/scale", token="hf_user")


def test_a_folder_without_a_model_is_not_pushed(tmp_path: Path, hub: LocalHub) -> None:
    with pytest.raises(ValueError, match=r"config\.json: cannot.* JSON"):
        push_folder(tmp_path, "user/name", token="hf_user")
    assert hub.repositories == {}


def put(hub: LocalHub, name: str, **files: bytes) -> None:
    """A public repository with these files; `__` in their names is a dot."""
    hub.repositories[name] = Repository()
    hub.repositories[name].commit("main", {k.replace("__", "."): v for k, v in files.items()})


def test_a_repository_without_a_model_is_named(hub: LocalHub) -> None:
    put(hub, "user/data", data__csv=b"1,2", model__safetensors=b"x" * 1000)
    for package in (Tokenizer, Prior):
        with pytest.raises(ValueError, match=r"^user/data: .* no config\.json"):
            package.from_pretrained("user/data")
    hub.repositories["user/empty"] = Repository()
    with pytest.raises(ValueError, match=r"^user/empty: .* no config\.json"):
        Tokenizer.from_pretrained("user/empty")
    assert not any("model.safetensors" in seen.path for seen in hub.seen)


def test_the_weights_of_another_model_are_not_downloaded(hub: LocalHub) -> None:
    for name, make in BOTH.items():
        make().push_to_hub(f"user/{name}", token="hf_user")
    bert = json.dumps({"model_type": "bert", "hidden_size": 8}).encode()
    put(hub, "user/bert", config__json=bert, model__safetensors=b"x" * 1000)
    hub.take_seen()
    for package, kind, other in ((Tokenizer, "tokenizer", "prior"), (Prior, "prior", "tokenizer")):
        words = f"model_type is 'tokenloom-{other}', but {package.__name__} loads 'tokenloom-{kind}'"
        with pytest.raises(ValueError, match=rf"models--user--{other}/.*config\.json: {words}"):
            package.from_pretrained(f"user/{other}")
        with pytest.raises(
            ValueError, match=rf"models--user--bert/.*model_type.*'bert'.* {package.__name__} "
        ):
            package.from_pretrained("user/bert")
    assert not any("/cdn/" in seen.path or "safetensors" in seen.path for seen in hub.seen)


@pytest.mark.parametrize(("content", "message"), BAD_CONFIGS)
def test_bad_config_files_of_the_hub_are_refused(content: str, message: str, hub: LocalHub) -> None:
    put(hub, "user/bad", config__json=content.encode(), model__safetensors=b"x" * 1000)
    with pytest.raises(ValueError, match=message):
        Scale.from_pretrained("user/bad")
    assert not any("safetensors" in seen.path for seen in hub.seen)


def test_weights_of_the_hub_run_no_code(saved: Path, hub: LocalHub) -> None:
    config = (saved / "config.json").read_bytes()
    put(hub, "user/bad", config__json=config, model__safetensors=pickle.dumps({"scale": [1, 2, 3]}))
    with pytest.raises(ValueError, match=r"model\.safetensors: .*header of \d+ bytes.*download"):
        Scale.from_pretrained("user/bad")
    put(hub, "user/bad", config__json=config, pytorch_model__bin=b"x", modeling__py=b"x")
    with pytest.raises(ValueError, match=r"model\.safetensors: .*No such file.*download"):
        Scale.from_pretrained("user/bad")
    assert not any(seen.path.endswith((".bin", ".py")) for seen in hub.seen)


@pytest.mark.parametrize(
    ("script_name", "flag"),
    [
        *(("encode_dataset", "--tokenizer"), ("evaluate", "--tokenizer"), ("quantize_vae", "--tokenizer")),
        *(("sample", "--tokenizer"), ("sample", "--prior")),
    ],
)
def test_scripts_say_what_the_hub_refused(
    script_name: str, flag: str, hub: LocalHub, script: Script, tmp_path: Path
) -> None:
    done = script(script_name, flag, "user/secret", "--output", tmp_path / "out", code=2)
    assert_refused(done, "user/secret: no such folder, and the Hub did not give it", "`hf auth login`")
    assert hub.seen and not (tmp_path / "out").exists()
