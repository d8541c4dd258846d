"""Codes of a trained VAE.

Left out: the bottleneck `gaussian_quant` itself (`tokenizer/bottlenecks/test_gaussian_quant.py`).
"""

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny import codec, pictures, sounds, tokenizer
from tokenizer import Tokenizer
from tokenizer.distributed import Step


def test_a_vae_gets_codes_without_training(tmp_path: Path) -> None:
    vae = tokenizer("gaussian")
    tok = vae.quantized(512, group_dim=3, seed=4)
    assert (tok.codebook_size, tok.num_codebooks, tok.bits_per_code) == (512, 2, 9.0)
    assert not tok.training and tok.config.modality == vae.config.modality
    assert tok.config.bottleneck.kl_weight == vae.config.bottleneck.kl_weight
    x = pictures(4, 3, 21, 30)
    assert torch.equal(tok.posterior(x).mean, vae.posterior(x).mean)
    codes = tok.encode(x)
    assert codes.shape == (4, 2, 6, 8) and codes.unique().numel() > 20
    assert torch.equal(tok.decode(codes, size=(21, 30)), tok(x).x_hat)
    z_q = tok.bottleneck.decode(codes)
    assert torch.equal(vae.decode_latents(z_q, (21, 30)), tok(x).x_hat)
    loaded = Tokenizer.from_pretrained(tok.save_pretrained(tmp_path))
    assert loaded.fingerprint() == tok.fingerprint() and torch.equal(loaded.encode(x), codes)
    prints = {vae.quantized(512, 3, seed=4).fingerprint(), tok.fingerprint()}
    assert len(prints) == 1
    prints |= {vae.quantized(512, 3).fingerprint(), vae.quantized(256, 3, 4).fingerprint()}
    assert len(prints) == 3


def test_the_vae_stays_as_it_is() -> None:
    vae = tokenizer("gaussian")
    tok = vae.quantized(16)
    with torch.no_grad():
        for parameter in tok.parameters():
            parameter.zero_()
    assert all(p.any() for p in vae.encoder[0].parameters())
    assert vae.double().quantized(16).encode(pictures(1, 3, 8, 8).double()).shape == (1, 6, 2, 2)
    assert {v.dtype for v in vae.quantized(16).state_dict().values()} == {torch.float64}


def test_more_entries_rebuild_more_of_what_the_mean_does() -> None:
    vae = tokenizer("gaussian")
    x = pictures(8, 3, 32, 32)
    mean = vae(x).x_hat
    errors = [(vae.quantized(n)(x).x_hat - mean).square().mean().item() for n in (4, 64, 4096)]
    assert errors[0] > 1.2 * errors[1] > 1.44 * errors[2]


def test_a_vae_of_sound_gets_codes() -> None:
    vae = codec("gaussian")
    tok = vae.quantized(256, group_dim=2)
    x = sounds(2, 1, 1000)
    codes = tok.encode(x)
    assert codes.shape == (2, 3, 17)
    streamed = torch.cat(list(tok.encode_stream(x.split(130, dim=2))), dim=2)
    assert (streamed == codes).float().mean() > 0.99


def test_only_a_vae_without_codes_can_be_quantized() -> None:
    for kind in ("vq", "gaussian_quant"):
        with pytest.raises(TypeError, match=f"quantized .*{kind} .*use encode"):
            tokenizer(kind).quantized(16)
    with pytest.raises(TypeError, match=r"posterior\(x\) .*quantized\(\.\.\.\)\.encode\(x\)"):
        tokenizer("gaussian").encode(pictures(1, 3, 8, 8))
    with pytest.raises(ValueError, match="group_dim is 4, expected a divisor of dim, 6"):
        tokenizer("gaussian").quantized(16, group_dim=4)


def test_training_goes_on_with_the_objective_of_the_vae() -> None:
    vae = tokenizer("gaussian")
    tok, x, step = vae.quantized(64).train(), pictures(4, 3, 16, 16), Step(0, 9, 0, 4)
    out, expected = tok(x, step), vae.train()(x, step)
    assert torch.equal(out.x_hat, expected.x_hat)
    torch.testing.assert_close(out.losses["kl"], expected.losses["kl"])
    assert (
        dataclasses.asdict(vae.config.bottleneck).items() <= dataclasses.asdict(tok.config.bottleneck).items()
    )
