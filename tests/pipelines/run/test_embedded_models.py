"""The models that ship: small, rounded, good enough to be shown, and had by name wherever a model is named.

Left out: training them anew, which takes long (tests/pipelines/scripts/test_embedded_soak.py).
"""

import io
import math
import zipfile
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from pipelines.browser.models import read_models
from pipelines.browser.space import write_space
from pipelines.run.generator import Generator
from pipelines.run.models import load_models, public_name
from prior import Prior
from tests.helpers.running import TINY_PRIOR, Script, assert_refused, names_in, size_of
from tokenizer import Tokenizer
from tokenizer.hub.embedded import MODELS, embedded_models
from tokenizer.hub.files import SAVED
from tokenizer.hub.model import license_in
from tokenizer.metrics import psnr
from tokenizer.sound_metrics import si_sdr

PRIORS = embedded_models(Prior.model_type)
# Megabytes of all of them in the wheel, which compresses each file.
MOST = 25
DATA = MODELS.parent
# What each reaches and more: decibels of held-out PSNR (speech: SI-SDR), held-out bits per code without a
# class.
REACHED = {"embedded:digits": (27.0, 3.8), "embedded:emoji": (24.5, 4.4), "embedded:speech": (2.0, 8.5)}


def test_they_are_small_whole_and_rounded() -> None:
    assert PRIORS == embedded_models(Tokenizer.model_type) == sorted(REACHED)
    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert sum(len(zlib.compress(path.read_bytes())) for path in files) < MOST * 1_000_000
    for folder in {path.parent for path in files}:
        assert names_in(folder) >= set(SAVED)
        assert license_in(folder / "README.md").startswith("cc-by")  # that of what it was trained on
        for weight in load_file(folder / "model.safetensors").values():
            if weight.is_floating_point():
                assert torch.equal(weight, weight.bfloat16().to(weight.dtype))


@pytest.mark.parametrize("name", PRIORS)
def test_held_out_items_are_rebuilt_and_likely(name: str) -> None:
    prior, tok = load_models(name, "", "cpu")
    assert prior is not None
    x = held_out(name, tok, prior)
    with torch.no_grad():
        codes = tok.encode(x)
        x_hat = tok.decode(codes, x.shape[2:] if x.ndim == 4 else x.shape[2])
    decibels, bits = REACHED[name]
    assert float((psnr(x_hat, x) if x.ndim == 4 else si_sdr(x_hat, x)).mean()) > decibels
    assert float(prior.nll(codes).mean()) / (codes[0].numel() * math.log(2)) < bits


def held_out(name: str, tok: Tokenizer, prior: Prior) -> Tensor:
    """Some pictures that the models never saw, or beginnings of clips, as long as the prior's window."""
    kind = "audio" if name == "embedded:speech" else "image"
    table = pq.read_table(DATA / f"{name.removeprefix('embedded:')}-test.parquet", columns=[kind])
    files = [io.BytesIO(row["bytes"]) for row in table[kind].to_pylist()]
    if kind == "image":
        return tok.preprocess([Image.open(file) for file in files[:: len(files) // 64]])
    length = prior.config.grid[0] * tok.stride
    clips = (torch.from_numpy(soundfile.read(file, dtype="float32")[0]) for file in files)
    return torch.stack([clip[None, :length] for clip in clips if len(clip) >= length][:8])


def test_digits_are_told_with_their_middle_rows_hidden() -> None:
    prior, tok = load_models("embedded:digits", "", "cpu")
    assert prior is not None
    labels = pq.read_table(DATA / "digits-test.parquet", columns=["label"])["label"].to_pylist()
    codes = tok.encode(held_out("embedded:digits", tok, prior))
    mask = torch.zeros(7, 7, dtype=torch.bool)
    mask[2:4] = True
    told = prior.label_posterior(codes, mask).argmax(1)
    right = told == torch.tensor(labels[:: len(labels) // 64])
    assert float(right.float().mean()) > 0.75


def test_without_words_emoji_are_drawn(script: Script, tmp_path: Path) -> None:
    script("sample", "--output", tmp_path / "drawn")
    names = names_in(tmp_path / "drawn")
    assert {"flags-0000.png", "flags-0009.png", "samples.png"} <= names
    assert len([name for name in names if name.endswith(".png")]) == 9 * 10 + 1
    assert min(size_of(tmp_path / "drawn" / "samples.png")) > 300


def test_a_flag_beside_goes_over_what_is_drawn_without_words(script: Script, tmp_path: Path) -> None:
    script("sample", "--num", "1", "--label", "flags", "--output", tmp_path / "drawn")
    assert len(list((tmp_path / "drawn").glob("flags-*.png"))) == 1


def test_a_page_without_words_is_of_them() -> None:
    models = read_models((), ())
    assert sorted(entry.source for entry in models.priors.values()) == PRIORS


def test_a_space_without_words_has_them_in_its_wheel(tmp_path: Path) -> None:
    write_space(tmp_path / "space", (), (), ())
    app = (tmp_path / "space" / "app.py").read_text()
    assert all(app.count(f"'{name}'") == 2 for name in PRIORS)  # as tokenizer and as prior
    readme = (tmp_path / "space" / "README.md").read_text()
    assert (
        readme.count("licence cc-by-sa-3.0; credit:") == 4 and readme.count("licence cc-by-4.0; credit:") == 2
    )
    (wheel,) = (tmp_path / "space").glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {
        f"pipelines/embedded/models/emoji/{kind}/model.safetensors" for kind in ("tokenizer", "prior")
    } <= held


def test_a_generator_has_them_by_name() -> None:
    generator = Generator.from_pretrained("embedded:digits")
    (codes,) = generator.draw(3, 2, seed=0)
    assert generator.decode(codes).shape == (2, 1, 28, 28)


def test_what_is_made_of_one_names_it() -> None:
    assert public_name("embedded:digits") == "embedded:digits"
    assert Prior.from_pretrained("embedded:digits").config.tokenizer_id == "embedded:digits"


@pytest.mark.parametrize("words", [("--prior", ""), ("--tokenizer", ""), ("--interpolate", "flags", "food")])
def test_who_names_something_else_does_not_get_them(
    words: tuple[str, ...], script: Script, tmp_path: Path
) -> None:
    assert_refused(script("sample", *words, "--output", tmp_path / "drawn", code=2), "--prior DIR")


def test_codes_of_one_are_learnt_and_drawn_from(script: Script, no_plots: None, tmp_path: Path) -> None:
    tokens, prior, drawn = (tmp_path / name for name in ("tokens", "prior", "drawn"))
    data = ("--data.path", "embedded:digits", "--data.limit", 40)
    script("encode_dataset", "--tokenizer", "embedded:digits", *data, "--output", tokens)
    script("train_prior", "small", *TINY_PRIOR, "--tokens", tokens, "--max-steps", 1, "--output", prior)
    assert Prior.from_pretrained(prior).config.tokenizer_id == "embedded:digits"
    script("sample", "--prior", prior, "--num", 2, "--output", drawn)
    assert min(size_of(drawn / "samples.png")) > 20


@pytest.mark.parametrize("subfolder", ["..", "/", "none"])
def test_nothing_beside_one_is_loaded(subfolder: str) -> None:
    with pytest.raises(ValueError, match="subfolder"):
        Tokenizer.from_pretrained("embedded:digits", subfolder=subfolder)


@pytest.mark.parametrize("kind", [Tokenizer, Prior])
def test_one_that_does_not_ship_is_refused_with_the_known_ones(kind: type[Tokenizer] | type[Prior]) -> None:
    with pytest.raises(
        ValueError, match=r"embedded:horses.*embedded:digits, embedded:emoji, embedded:speech"
    ):
        kind.from_pretrained("embedded:horses")


def test_a_script_refuses_one_that_does_not_ship(script: Script, tmp_path: Path) -> None:
    finished = script("sample", "--prior", "embedded:../../x", "--output", tmp_path / "out", code=2)
    assert_refused(finished, "embedded:../../x", *PRIORS)
    assert not (tmp_path / "out").exists()
