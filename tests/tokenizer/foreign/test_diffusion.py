"""The autoencoders of diffusers as tokenizers, beside their own calls."""

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.foreign import model_of, saved
from tests.helpers.tiny import pictures
from tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with both, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("foreign")
    saved("VQModel", folder / "vq")
    saved("AutoencoderKL", folder / "vae")
    return folder


def test_codes_and_pictures_of_a_vqgan(folder: Path) -> None:
    tok, peer, x = (
        Tokenizer.from_pretrained(folder, subfolder="vq"),
        model_of("VQModel"),
        pictures(3, 3, 16, 16),
    )
    with torch.no_grad():
        h = peer.encode(x).latents
        indices = peer.quantize(h)[2][2]
        x_hat = peer.decode(h).sample
    codes = tok.encode(x)
    assert codes.shape == (3, 1, 8, 8) and codes.unique().numel() > 4
    assert torch.equal(codes.flatten(), indices)
    torch.testing.assert_close(tok.decode(codes), x_hat, rtol=0, atol=1e-5)
    assert tok.decode(tok.encode(x[:, :, :1, :5]), size=(1, 5)).shape == (3, 3, 1, 5)


def test_the_posterior_of_a_vae(folder: Path) -> None:
    tok, peer = Tokenizer.from_pretrained(folder, subfolder="vae"), model_of("AutoencoderKL")
    x = pictures(3, 3, 16, 16)
    with torch.no_grad():
        theirs = peer.encode(x).latent_dist
        x_hat = peer.decode(theirs.mean).sample
        ours = tok.posterior(x)
    assert not tok.is_discrete
    assert torch.equal(ours.mean, theirs.mean) and torch.equal(ours.logvar, theirs.logvar)
    assert torch.equal(tok.decode_latents(ours.mean), x_hat)


@pytest.mark.parametrize("name", ["vq", "vae"])
def test_what_is_saved_loads_here_and_in_the_library(folder: Path, name: str, tmp_path: Path) -> None:
    tok = Tokenizer.from_pretrained(folder, subfolder=name)
    with torch.no_grad():
        next(tok.decoder.parameters()).mul_(1.5)
    tok.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    peer = type(model_of({"vq": "VQModel", "vae": "AutoencoderKL"}[name])).from_pretrained(tmp_path)
    z = torch.randn(1, tok.bottleneck.out_dim, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x_hat = tok.decode_latents(z)
        theirs = peer.decode(z, **({"force_not_quantize": True} if name == "vq" else {})).sample
    assert again.fingerprint() == tok.fingerprint()
    assert torch.equal(again.decode_latents(z), x_hat) and torch.equal(theirs, x_hat)
    assert not (tmp_path / "model.safetensors").exists()


def test_codes_made_of_a_vae_are_saved_as_ours(folder: Path, tmp_path: Path) -> None:
    vae = Tokenizer.from_pretrained(folder, subfolder="vae")
    tok, x = vae.quantized(64, 2), pictures(2, 3, 16, 16)
    codes = tok.encode(x)
    assert codes.shape == (2, 2, 8, 8) and tok.fingerprint() != vae.quantized(64, 2, seed=1).fingerprint()
    tok.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.fingerprint() == tok.fingerprint() and again.config == tok.config
    assert torch.equal(again.encode(x), codes) and torch.equal(again.decode(codes), tok.decode(codes))
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()


def test_what_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    for file in (folder / "vq").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())

    def refused(match: str, **values: object) -> None:
        path.write_text(json.dumps({**config, **values}))
        with pytest.raises(ValueError, match=match):
            Tokenizer.from_pretrained(tmp_path)

    refused("tensor 'quantize.embedding.weight' has shape", num_vq_embeddings=8)
    refused("holds .* bytes", num_vq_embeddings=1 << 30)
    refused("norm_type is 'spatial'", norm_type="spatial")
    refused("diffusers refuses", down_block_types=["No"] * 2)
    refused("'UNet2DModel'.*VQModel", _class_name="UNet2DModel")
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    refused("pickled weights")
