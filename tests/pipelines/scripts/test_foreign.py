"""Tokenizers of other libraries through the scripts: tokens, a prior, samples, measures, and a decoder
trained anew that the library loads too.

Left out: what each family keeps (tokenizer/foreign/test_contract.py).
"""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipelines.run.models import load_tokenizer, public_name, split_name
from prior import Prior
from tests.helpers.foreign import TINY, model_of, saved, sounds
from tests.helpers.running import MODEL, TINY_PRIOR, Script, assert_refused, names_in, read
from tokenizer import Tokenizer

RATE = 4000


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EnCodec in a folder within a folder."""
    folder = tmp_path_factory.mktemp("foreign")
    saved("encodec", folder / "codec")
    (folder / "codec" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n\n# Theirs\n")
    return folder


@pytest.fixture(scope="module")
def wavs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wavs")
    rng = np.random.default_rng(0)
    for i, seconds in enumerate((0.3, 0.5, 0.26, 0.4)):
        soundfile.write(folder / f"{i}.wav", 0.3 * rng.standard_normal(round(RATE * seconds)), RATE)
    return folder


def test_from_its_name_to_samples(
    script: Script, theirs: Path, wavs: Path, no_plots: None, tmp_path: Path
) -> None:
    data, name = ("--data.path", wavs, "--data.valid-fraction", 0.25), f"{theirs}:codec"
    script("encode_dataset", "--tokenizer", name, *data, "--output", tmp_path / "tokens")
    words = ("--tokens", tmp_path / "tokens", "--output", tmp_path / "prior", "--seconds", 0.05)
    script("train_prior", "speech", *TINY_PRIOR, *words, "--max-steps", 2, "--tracker", "none")
    prior, tok = Prior.from_pretrained(tmp_path / "prior"), load_tokenizer(name)
    assert prior.config.tokenizer_fingerprint == tok.fingerprint() and prior.config.tokenizer_id == "codec"
    assert (prior.config.num_codebooks, prior.config.codebook_size) == (4, 16)
    assert read(tmp_path / "tokens" / "tokens.json")["license"] == tok.license == "cc-by-nc-4.0"
    card = (tmp_path / "prior" / "README.md").read_text()
    assert "license: cc-by-nc-4.0\n" in card and "codes are those of codec, licence cc-by-nc-4.0." in card
    out = tmp_path / "samples"
    script("sample", "--prior", tmp_path / "prior", "--num", 2, "--seconds", 0.05, "--output", out)
    assert (out / "samples.html").exists()
    script("evaluate", "--tokenizer", name, *data, "--output", tmp_path / "eval")
    assert read(tmp_path / "eval" / "metrics.json")["bitrate"] == 4 * 4 * RATE / 4


def test_a_decoder_is_trained_anew(
    script: Script, theirs: Path, wavs: Path, no_plots: None, tmp_path: Path
) -> None:
    words = ("--tokenizer", f"{theirs}:codec", "--data.path", wavs, "--data.valid-fraction", 0.25)
    words += ("--batch-size", 2, "--max-steps", 2, "--warmup-steps", 1, "--learning-rate", 0.01)
    words += (
        "--adversarial.weight",
        0,
        "--adversarial.feature-weight",
        0,
        "--tracker",
        "none",
        "--output",
        tmp_path / "sharp",
    )
    done = script("train_decoder", "speech", *words, "--license", "mit")
    assert names_in(tmp_path / "sharp") >= MODEL
    card = (tmp_path / "sharp" / "README.md").read_text()
    assert "license: mit\n" in card and "codes are those of codec, licence cc-by-nc-4.0." in card
    assert "--license is mit, but the tokenizer's own card says cc-by-nc-4.0" in done.err
    old, new = load_tokenizer(f"{theirs}:codec"), Tokenizer.from_pretrained(tmp_path / "sharp")
    x = sounds(2, 200)
    codes = old.encode(x)
    assert new.fingerprint() == old.fingerprint() and torch.equal(new.encode(x), codes)
    x_hat = new.decode(codes)
    assert not torch.equal(x_hat, old.decode(codes))
    peer = type(model_of("encodec")).from_pretrained(tmp_path / "sharp").eval()
    with torch.no_grad():
        assert torch.equal(TINY["encodec"].encode(peer, x), codes)
        assert torch.equal(TINY["encodec"].decode(peer, codes), x_hat)


def test_pictures_from_its_name_to_samples(script: Script, no_plots: None, tmp_path: Path) -> None:
    data, name = ("--data.path", "embedded:emoji", "--data.limit", 24), saved("janus_vqgan", tmp_path / "vq")
    script("encode_dataset", "--tokenizer", name, *data, "--output", tmp_path / "tokens")
    words = ("--tokens", tmp_path / "tokens", "--output", tmp_path / "prior", "--max-steps", 2)
    script("train_prior", "small", *TINY_PRIOR, *words, "--batch-size", 4, "--tracker", "none")
    assert Prior.from_pretrained(tmp_path / "prior").config.grid == (4, 4)
    card = (tmp_path / "prior" / "README.md").read_text()
    assert "license: unknown\n" in card and "codes are those of vq, whose licence is unknown here" in card
    words = ("--prior", tmp_path / "prior", "--tokenizer", name, "--num", 2, "--output", tmp_path / "new")
    script("sample", *words)
    assert (tmp_path / "new" / "samples.png").exists()
    words = ("--tokenizer", name, *data, "--batch-size", 2, "--max-steps", 2, "--warmup-steps", 1)
    words += ("--tracker", "none", "--output", tmp_path / "sharp")
    assert_refused(script("train_decoder", "pictures", *words, code=2), "deeper is 4", "give 0")
    script("train_decoder", "pictures", *words, "--decoder.deeper", 0)
    new, old = Tokenizer.from_pretrained(tmp_path / "sharp"), Tokenizer.from_pretrained(name)
    assert new.fingerprint() == old.fingerprint()


def test_a_model_of_diffusers_from_its_name_to_samples(
    script: Script, no_plots: None, tmp_path: Path
) -> None:
    data, name = ("--data.path", "embedded:emoji", "--data.limit", 12), saved("VQModel", tmp_path / "vqgan")
    script("encode_dataset", "--tokenizer", name, *data, "--output", tmp_path / "tokens")
    assert read(tmp_path / "tokens" / "tokens.json")["grid"] == [8, 8]
    words = ("--tokens", tmp_path / "tokens", "--output", tmp_path / "prior", "--max-steps", 1)
    script("train_prior", "small", *TINY_PRIOR, *words, "--batch-size", 4, "--tracker", "none")
    words = ("--prior", tmp_path / "prior", "--tokenizer", name, "--num", 2, "--output", tmp_path / "new")
    script("sample", *words)
    assert (tmp_path / "new" / "samples.png").exists()


def test_names_of_models_within_others(theirs: Path) -> None:
    assert split_name("user/name:vae") == ("user/name", "vae")
    assert split_name("user/name") == ("user/name", "") and split_name(":vae") == (":vae", "")
    assert public_name("user/name:vae") == "user/name:vae" and public_name(f"{theirs}:codec") == "codec"
