"""Fixtures of all tests: folders of tiny runs that tests share and must not change, and pictures in files.

Left out: how the scripts are run (helpers/running.py), and data made for single tests.
"""

import json
import os
import re

from pipelines.run.environment import prepare_environment

prepare_environment()  # as the scripts do, before anything imports torch
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # the others have the other cores

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from huggingface_hub import close_session, constants
from PIL import Image

from tests.helpers.local_hub import LocalHub, serve

pytest.register_assert_rewrite("tests.helpers.running")  # before its import: failures show what was compared

from pipelines.data import cache
from tests.helpers.running import (
    TINY_CODEC,
    TINY_PRIOR,
    TINY_SOUND,
    TINY_TOKENIZER,
    TINY_VAE,
    WHOLE_TOKENIZER,
    Script,
    as_shipped,
    noise,
    run_script,
    whole_prior,
    without_plots,
)

Shared = Callable[..., Path]
# Each with one thread, besides processes that tests start.
WORKERS = 2


# What `pytest -m gpu` runs: nothing else is imported there, as packages may be missing that scripts need.
GPU = Path(__file__).with_name("gpu")


# What `pytest -m browser` runs in a browser.
IN_A_BROWSER = Path(__file__).with_name("pipelines") / "browser" / "test_in_a_browser.py"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Of the whole suite: how many tests in a browser were not run, and how they are."""
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS
    if whole and config.option.markexpr.startswith("not ") and not config.option.collectonly:
        count = len(re.findall(r"^def test_", IN_A_BROWSER.read_text(encoding="utf-8"), re.MULTILINE))
        terminalreporter.write_line(f"{count} tests in a browser not run: pytest -m browser runs them")


def for_gpus(config: pytest.Config) -> bool:
    return bool(config.option.markexpr == "gpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "file that `pytest -m gpu` writes its results to (gpu-card.md)"
    parser.addoption("--gpu-card", metavar="FILE", default="gpu-card.md", help=text)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if for_gpus(config) and not (collection_path in GPU.parents or collection_path.is_relative_to(GPU)):
        return True
    return None


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Workers for the whole suite; none for files that are named, as two take ten seconds to begin, none with
    -s, which shows nothing of theirs, and none on a GPU or for tests in a browser, which they would share."""
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS
    alone = for_gpus(config) or config.option.markexpr == "browser" or config.option.capture == "no"
    return WORKERS if whole and not alone else 0


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
    """Folder of the runs that tests share, also those of the other workers, and must not change."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "runs"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def shared(workspace: Path) -> Shared:
    """What runs a script into a folder of `workspace` unless another worker did, and returns the folder."""

    def folder_of(name: str, script_name: str, *words: object, plots: bool = True) -> Path:
        folder, done = workspace / name, workspace / f"{name}.done"
        with FileLock(workspace / f"{name}.lock"):
            if not done.exists():
                # Whatever else the test that is the first to ask has changed.
                with as_shipped() if plots else without_plots():
                    run_script(script_name, *words, "--output", folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def tiny_tokenizer(shared: Shared) -> Path:
    """A tokenizer after 6 steps on 32 emoji."""
    words = ("--max-steps", 6, "--checkpoint-every", 3, "--eval-every", 3)
    return shared("tokenizer", "train_tokenizer", "emoji", *TINY_TOKENIZER, *words)


@pytest.fixture(scope="session")
def tiny_tokens(shared: Shared, tiny_tokenizer: Path) -> Path:
    """Its codes of 48 emoji, and of as many held out."""
    return shared("tokens", "encode_dataset", "--tokenizer", tiny_tokenizer, "--data.limit", 48)


@pytest.fixture(scope="session")
def whole_runs(shared: Shared, tiny_tokens: Path) -> dict[str, Path]:
    """By script, the folder of a run of 12 steps that was never stopped."""
    runs = {"train_tokenizer": WHOLE_TOKENIZER, "train_prior": whole_prior(tiny_tokens)}
    return {name: shared(f"whole-{name}", name, *words, plots=False) for name, words in runs.items()}


@pytest.fixture(scope="session")
def tiny_prior(shared: Shared, tiny_tokens: Path) -> Path:
    """A prior after 5 steps on those codes."""
    words = ("--tokens", tiny_tokens, "--max-steps", 5, "--checkpoint-every", 3, "--eval-every", 3)
    return shared("prior", "train_prior", "small", *TINY_PRIOR, *words)


@pytest.fixture(scope="session")
def tiny_codec(shared: Shared) -> Path:
    """A tokenizer of sound after 8 steps on 6 clips."""
    words = ("--max-steps", 8, "--checkpoint-every", 4, "--eval-every", 6)
    return shared("codec", "train_tokenizer", "audio-small-waveform", *TINY_CODEC, *words)


@pytest.fixture(scope="session")
def tiny_codec_tokens(shared: Shared, tiny_codec: Path) -> Path:
    """Its codes of 6 clips, and of as many held out."""
    words = ("--data.path", "embedded:speech", "--data.limit", 6)
    return shared("codec-tokens", "encode_dataset", "--tokenizer", tiny_codec, *words)


@pytest.fixture(scope="session")
def tiny_codec_prior(shared: Shared, tiny_codec_tokens: Path) -> Path:
    """A prior of windows of half a second after 3 steps on those codes."""
    words = ("--tokens", tiny_codec_tokens, "--max-steps", 3, "--seconds", 0.5)
    return shared("codec-prior", "train_prior", "speech", *TINY_PRIOR, *words)


@pytest.fixture(scope="session")
def tiny_vae(shared: Shared) -> Path:
    """A VAE after 4 steps on 32 digits."""
    return shared("vae", "train_tokenizer", "digits-vae", *TINY_VAE, "--max-steps", 4)


@pytest.fixture(scope="session")
def tiny_sound_vae(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE of sound, by a config alone, after 2 steps on 6 clips."""
    config = {"model": {"bottleneck": {"kind": "gaussian", "dim": 4}, "losses": {"l1": 0.0, "l2": 1.0}}}
    file = tmp_path_factory.mktemp("sound-vae") / "vae.json"
    file.write_text(json.dumps(config))
    words = ("--config", file, "--max-steps", 2, "--tracker", "none")
    return shared("sound-vae", "train_tokenizer", "audio-small-waveform", *TINY_SOUND, *words, plots=False)


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
