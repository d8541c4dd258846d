"""Downloads and uploads that break off: what is tried again, what is left of it, and what is said.

Left out: what the Hub refuses for good (test_refusals.py).
"""

import socket
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from prior import Prior, PriorConfig
from tests.helpers import tiny
from tests.helpers.local_hub import Fault, LocalHub
from tests.helpers.savable import BOTH, Scale, ScaleConfig, assert_same
from tokenizer import Tokenizer, TokenizerConfig
from tokenizer.hub import client as hub_client
from tokenizer.hub.model import HubModel

# The client writes what it got in pieces of this size, here, and goes on after the last of them.
PIECE = 1 << 16


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds waited before something was tried again, of which only a hundredth passes."""
    waits, sleep = list[float](), time.sleep

    def wait(seconds: float) -> None:
        if seconds >= 1:  # less is for a lock
            waits.append(seconds)
            seconds /= 100
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", wait)
    return waits


def large_model(package: str) -> HubModel:
    """A model of more than one piece."""
    if package == "prior":
        return Prior(PriorConfig(codebook_size=1 << 12, dim=8, heads=1, depth=1, grid=(2, 2)))
    vq = tiny.bottleneck_config("vq", codebook_size=1 << 13)
    return Tokenizer(TokenizerConfig(tiny.image_config(), vq, {"l2": 1.0})).eval()


def weights_asked(hub: LocalHub) -> list[str | None]:
    """The ranges of large files that were asked for since the last call."""
    return [seen.range for seen in hub.take_seen() if "/cdn/" in seen.path]


@pytest.mark.parametrize("package", BOTH)
def test_a_download_that_is_cut_goes_on_where_it_was(
    package: str, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", PIECE)
    model = large_model(package)
    model.push_to_hub("user/model", token="hf_user")
    hub.faults.append(Fault("GET", "/cdn/", cut=PIECE + 5000))
    assert_same(type(model).from_pretrained("user/model"), model)
    assert weights_asked(hub) == [None, f"bytes={PIECE}-"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET", "/cdn/", cut=7, reset=True),
        Fault("GET", "/cdn/", status=503),
        Fault("GET", "/cdn/", status=429, headers={"Retry-After": "0"}),
        Fault("GET", "/revision/main", status=429, headers={"Retry-After": "1"}),
        Fault("GET", "/tree/", cut=3),
        Fault("HEAD", "model.safetensors", status=500),
    ],
    ids=lambda fault: f"{fault.part}-{fault.status or 'broken'}",
)
def test_what_may_pass_is_asked_again(fault: Fault, hub: LocalHub, waits: list[float]) -> None:
    model = BOTH["prior"]()
    model.push_to_hub("user/model", token="hf_user")
    hub.faults.append(Fault(**vars(fault)))
    assert_same(Prior.from_pretrained("user/model"), model)
    assert hub.faults[0].times == 0 and waits == ([] if fault.method == "HEAD" else [1])


@pytest.mark.parametrize("reset", [False, True])
def test_a_download_that_never_ends_leaves_nothing_that_is_loaded(
    reset: bool, hub: LocalHub, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "ATTEMPTS", 2)  # fewer, not to wait for them
    model = BOTH["tokenizer"]()
    model.push_to_hub("user/model", token="hf_user")
    hub.take_seen()
    hub.faults.append(Fault("GET", "/cdn/", times=99, cut=20_000, reset=reset))
    with pytest.raises(ValueError, match=rf"^user/model: .*{hub.url} .*try again$"):
        Tokenizer.from_pretrained("user/model")
    assert weights_asked(hub) == [None] * (2 if reset else 6) and waits == [1] * (1 if reset else 5)
    sizes = {path.stat().st_size for path in Path(constants.HF_HUB_CACHE).rglob("*") if path.is_file()}
    assert max(sizes) < 20_000
    hub.faults.clear()
    assert_same(Tokenizer.from_pretrained("user/model"), model)


def test_with_part_of_a_model_in_the_cache_it_is_refused_offline(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    Scale(ScaleConfig()).push_to_hub("user/scale", token="hf_user")
    hub.faults.append(Fault("GET", "/cdn/", status=404))
    with pytest.raises(ValueError, match=rf"user/scale: .* 404.*; check .*revision.* {hub.url}/user/scale$"):
        Scale.from_pretrained("user/scale")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"model\.safetensors|HF_HUB_OFFLINE"):
        Scale.from_pretrained("user/scale")


def test_a_hub_that_is_down_is_named_at_once(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Scale(ScaleConfig())
    model.push_to_hub("user/scale", token="hf_user")
    Scale.from_pretrained("user/scale")
    with socket.socket() as free:  # bound, but nobody listens
        free.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", down)
        refused = rf"the connection to {down} failed \(ConnectError: .*refused"
        with pytest.raises(ValueError, match=rf"^user/other: .*{refused}"):
            Scale.from_pretrained("user/other")
        with pytest.raises(ValueError, match=rf"^user/scale: .* take .*{refused}"):
            model.push_to_hub("user/scale", token="hf_user")
        # What the cache holds is loaded.
        assert_same(Scale.from_pretrained("user/scale"), model)


@pytest.mark.parametrize("status", [429, 503])
def test_nobody_waits_for_an_hour(status: int, hub: LocalHub, waits: list[float]) -> None:
    Scale(ScaleConfig()).push_to_hub("user/scale", token="hf_user")
    hub.take_seen()
    later = {"Retry-After": "3600"}
    hub.faults.append(Fault("GET", "/revision/main", times=99, status=status, headers=later))
    with pytest.raises(ValueError, match=rf"^user/scale: .* {status}; try again later$"):
        Scale.from_pretrained("user/scale")
    assert len(hub.take_seen()) == 1 and waits == []


def test_an_upload_that_fails_is_tried_again_or_said(hub: LocalHub) -> None:
    model = BOTH["tokenizer"]()
    hub.faults.append(Fault("PUT", "/lfs/", status=503))
    model.push_to_hub("user/model", token="hf_user")
    assert hub.faults[0].times == 0
    assert_same(Tokenizer.from_pretrained("user/model"), model)
    changed = tiny.tokenizer(seed=2)
    before = hub.content("user/model")
    for part, status in (("/lfs/", 403), ("/commit/main", 500)):
        hub.faults.append(Fault("PUT" if part == "/lfs/" else "POST", part, status=status))
        with pytest.raises(ValueError, match=f"^user/model: .* take .* {status}"):
            changed.push_to_hub("user/model", token="hf_user")
        assert hub.content("user/model") == before
    changed.push_to_hub("user/model", token="hf_user")
    assert_same(Tokenizer.from_pretrained("user/model"), changed)
