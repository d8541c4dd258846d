"""Fixtures of all tests: folders of tiny runs that tests share and must not change, and pictures in files.

Left out: how the scripts are run (helpers/running.py), and data made for single tests.
"""

from pipelines.run.environment import prepare_environment

prepare_environment()  # as the scripts do, before anything imports torch

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import close_session, constants
from PIL import Image

from tests.helpers.local_hub import LocalHub, serve

pytest.register_assert_rewrite("tests.helpers.running")  # before its import: failures show what was compared

from pipelines.data import cache
from tests.helpers.running import (
    TINY_CODEC,
    TINY_PRIOR,
    TINY_TOKENIZER,
    TINY_VAE,
    WHOLE_TOKENIZER,
    Script,
    noise,
    run_script,
    whole_prior,
    without_plots,
)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A Hub on this machine that huggingface_hub asks, as with HF_ENDPOINT set, which it reads when it is
    imported; with an empty cache, and nobody logged in."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "hf"
    with serve(home / "xet-store") as hub:
        files = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": files,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        yield hub
        close_session()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests find of pictures is not kept in the user's cache. (Not by XDG_CACHE_HOME: matplotlib would
    look through all fonts again.)"""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="session")
def script() -> Script:
    """`run_script`."""
    return run_script


@pytest.fixture
def no_plots() -> Iterator[None]:
    """`without_plots` for a whole test."""
    with without_plots():
        yield


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs that tests share, and must not change."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def tiny_tokenizer(workspace: Path) -> Path:
    """A tokenizer after 6 steps on 32 emoji."""
    folder = workspace / "tokenizer"
    words = ("--output", folder, "--max-steps", 6, "--checkpoint-every", 3, "--eval-every", 3)
    run_script("train_tokenizer", "emoji", *TINY_TOKENIZER, *words)
    return folder


@pytest.fixture(scope="session")
def tiny_tokens(workspace: Path, tiny_tokenizer: Path) -> Path:
    """Its codes of 48 emoji, and of as many held out."""
    folder = workspace / "tokens"
    run_script("encode_dataset", "--tokenizer", tiny_tokenizer, "--output", folder, "--data.limit", 48)
    return folder


@pytest.fixture(scope="session")
def whole_runs(script: Script, workspace: Path, tiny_tokens: Path) -> dict[str, Path]:
    """By script, the folder of a run of 12 steps that was never stopped."""
    runs = {"train_tokenizer": WHOLE_TOKENIZER, "train_prior": whole_prior(tiny_tokens)}
    for script_name, words in runs.items():
        with without_plots():
            script(script_name, *words, "--output", workspace / f"whole-{script_name}")
    return {script_name: workspace / f"whole-{script_name}" for script_name in runs}


@pytest.fixture(scope="session")
def tiny_prior(workspace: Path, tiny_tokens: Path) -> Path:
    """A prior after 5 steps on those codes."""
    folder = workspace / "prior"
    words = ("--output", folder, "--max-steps", 5, "--checkpoint-every", 3, "--eval-every", 3)
    run_script("train_prior", "small", *TINY_PRIOR, "--tokens", tiny_tokens, *words)
    return folder


@pytest.fixture(scope="session")
def tiny_codec(workspace: Path) -> Path:
    """A tokenizer of sound after 8 steps on 6 clips."""
    folder = workspace / "codec"
    words = ("--output", folder, "--max-steps", 8, "--checkpoint-every", 4, "--eval-every", 6)
    run_script("train_tokenizer", "audio-small", *TINY_CODEC, *words)
    return folder


@pytest.fixture(scope="session")
def tiny_codec_tokens(workspace: Path, tiny_codec: Path) -> Path:
    """Its codes of 6 clips, and of as many held out."""
    folder = workspace / "codec-tokens"
    words = ("--data.path", "embedded:speech", "--data.limit", 6)
    run_script("encode_dataset", "--tokenizer", tiny_codec, "--output", folder, *words)
    return folder


@pytest.fixture(scope="session")
def tiny_codec_prior(workspace: Path, tiny_codec_tokens: Path) -> Path:
    """A prior of windows of half a second after 3 steps on those codes."""
    folder = workspace / "codec-prior"
    words = ("--output", folder, "--max-steps", 3, "--seconds", 0.5)
    run_script("train_prior", "speech", *TINY_PRIOR, "--tokens", tiny_codec_tokens, *words)
    return folder


@pytest.fixture(scope="session")
def tiny_vae(workspace: Path) -> Path:
    """A VAE after 4 steps on 32 digits."""
    folder = workspace / "vae"
    run_script("train_tokenizer", "digits-vae", *TINY_VAE, "--output", folder, "--max-steps", 4)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve readable pictures of every kind that the issue names, in one folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(noise(i, 40, 30, 3)).save(folder / f"rgb-{i}.png")
    Image.fromarray(noise(10, 40, 40, 3)).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise(11, 40, 40, 3)).convert("P").save(folder / "palette.png")
    Image.fromarray(noise(12, 40, 40, 4)).save(folder / "alpha.png")
    Image.fromarray(noise(13, 40, 40).astype(np.uint16) * 257).save(folder / "grey16.png")
    Image.fromarray(noise(14, 40, 40)).save(folder / "grey.png")
    Image.fromarray(noise(15, 1, 1, 3)).save(folder / "one.png")
    Image.fromarray(noise(16, 9, 200, 3)).save(folder / "wide.webp")
    return folder
