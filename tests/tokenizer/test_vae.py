"""A tokenizer that is a VAE: no codes, but a posterior and latents that decode.

Left out: its bottleneck (tokenizer/bottlenecks/test_gaussian.py), its KL (test_objective.py), and codes for a
trained one (test_quantized_vae.py).
"""

import math

import pytest
import torch

from tests.helpers.tiny import pictures, tokenizer
from tests.tokenizer.test_model import SIZES


def test_a_vae_has_no_codes() -> None:
    tok = tokenizer("gaussian")
    x = pictures(2, 3, 9, 7)
    for call in (
        lambda: tok.encode(x),
        lambda: tok.decode(torch.zeros(1, 1, 2, 2, dtype=torch.int64)),
        lambda: tok.codebook_size,
        lambda: tok.num_codebooks,
        lambda: tok.bits_per_code,
    ):
        with pytest.raises(TypeError, match=r"VAE.*posterior\(x\) .*decode_latents\(z\)"):
            call()
    assert tok(x).codes is None
    with pytest.raises(TypeError, match=r"posterior .*VAE .*use encode"):
        tokenizer("vq").posterior(x)


@pytest.mark.parametrize("size", SIZES)
def test_posterior_and_decode_latents_are_the_forward_pass(size: tuple[int, int]) -> None:
    tok = tokenizer("gaussian")
    x = pictures(3, 3, *size)
    out, posterior = tok(x), tok.posterior(x)
    grid = (math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    assert posterior.mean.shape == posterior.logvar.shape == out.z_q.shape == (3, 6, *grid)
    assert torch.equal(out.z_q, posterior.mode())
    assert torch.equal(tok.decode_latents(posterior.mode(), size), out.x_hat)
    sample = tok.decode_latents(posterior.sample(torch.Generator().manual_seed(0)), size)
    assert sample.shape == x.shape and not torch.equal(sample, out.x_hat)
    new = tok.decode_latents(torch.randn(2, 6, 5, 3, generator=torch.Generator().manual_seed(0)))
    assert new.shape == (2, 3, 20, 12) and torch.isfinite(new).all()


def test_decode_latents_is_differentiable() -> None:
    tok = tokenizer("gaussian")
    z = torch.randn(1, 6, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    tok.decode_latents(z).sum().backward()
    assert z.grad is not None and (z.grad != 0).all()
