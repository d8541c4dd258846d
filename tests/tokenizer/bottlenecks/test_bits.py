"""LFQ and BSQ: codes, commitment and its gradients against the definitions, and bad input.

Left out: the entropies (`test_bits_entropy.py`), and what every bottleneck keeps (`test_contract.py`).
"""

import math

import pytest
import torch
from einops import rearrange
from torch import Tensor

from tests.helpers.tiny import bottleneck_config, latents, trained
from tokenizer.bottlenecks.bsq import BSQConfig
from tokenizer.bottlenecks.lfq import LFQConfig
from tokenizer.bottlenecks.parts.bits import Bits
from tokenizer.distributed import Step

KINDS = ["bsq", "lfq"]


def quantizer(kind: str, bits: int, dtype: torch.dtype = torch.float64, **changes: object) -> Bits:
    """Without projections, so that z_e is z."""
    bottleneck = bottleneck_config(kind, bits=bits, dim=bits, **changes).build()
    assert isinstance(bottleneck, Bits)
    return bottleneck.to(dtype).train()


def rows(z: Tensor) -> Tensor:
    return rearrange(z, "b d ... -> (b ...) d")


def on_its_scale(kind: str, z: Tensor) -> Tensor:
    """z: (B, D, *grid) → (M, D), what is rounded."""
    return rows(z) / rows(z).norm(dim=1, keepdim=True) if kind == "bsq" else rows(z)


def all_entries(kind: str, bits: int) -> Tensor:
    """(2^bits, bits) float64, in the order of the codes."""
    signs = torch.tensor([[1.0 if c >> i & 1 else -1.0 for i in range(bits)] for c in range(2**bits)])
    return signs.double() / (math.sqrt(bits) if kind == "bsq" else 1)


def assignment(kind: str, z: Tensor, temperature: float) -> Tensor:
    """q(c | z) ∝ exp(−‖z − c‖² / τ), all entries written out: (M, 2^bits)."""
    u = on_its_scale(kind, z)
    squares = (u[:, None] - all_entries(kind, z.shape[1])).square().sum(-1)
    # On a scale on which entries are ±1.
    scale = 1 / math.sqrt(z.shape[1]) if kind == "bsq" else 1
    return torch.softmax(-squares / scale**2 / temperature, dim=1)


def entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(-1)


# Codes and gradients


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_signs_the_first_channel_counting_one(kind: str) -> None:
    bottleneck = quantizer(kind, 3).eval()
    z = torch.tensor([[-1.0, -2, -3], [0.1, -5, -0.2], [-1, 7, -1], [-1, -1, 0.3], [1, 2, 3]]).double()
    z = rearrange(z, "p d -> 1 d p")
    assert bottleneck.encode(z).tolist() == [[[0, 1, 2, 4, 7]]]
    entries = all_entries(kind, 3)
    torch.testing.assert_close(bottleneck.codebook_vectors(), entries, rtol=1e-15, atol=0)
    torch.testing.assert_close(rows(bottleneck(z).z_q), entries[[0, 1, 2, 4, 7]], rtol=1e-15, atol=0)
    torch.testing.assert_close(bottleneck.compared(z)[0], on_its_scale(kind, z), rtol=1e-12, atol=0)


def test_entries_of_bsq_lie_on_the_sphere() -> None:
    norms = quantizer("bsq", 10).codebook_vectors().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(1024, dtype=torch.float64))


def test_a_z_of_length_zero_has_a_code_and_a_finite_gradient() -> None:
    z = torch.zeros(1, 4, 3, requires_grad=True)
    out = quantizer("bsq", 4, torch.float32)(z)
    (out.z_q.sum() + sum(out.losses.values())).backward()
    assert out.codes.tolist() == [[[0, 0, 0]]] and torch.isfinite(z.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_no_code_is_lost_to_a_float(kind: str, dtype: torch.dtype) -> None:
    bottleneck = quantizer(kind, 24, dtype).eval()
    codes = torch.cat([torch.arange(40), (1 << 24) - 1 - torch.arange(40), torch.randint(1 << 24, (200,))])
    with torch.autocast("cpu", dtype):
        z_q = bottleneck.decode(codes.view(1, 1, -1))
        assert torch.equal(bottleneck.encode(z_q.to(dtype))[0, 0], codes)
    assert z_q.dtype == torch.float32 and bottleneck.codebook_vectors() is None


def test_straight_through_is_the_identity_or_goes_through_the_sphere() -> None:
    for kind in KINDS:
        bottleneck = quantizer(kind, 5)
        z = latents(bottleneck, 2, 6).double().requires_grad_()
        out = bottleneck(z)
        weights = torch.randn(out.z_q.shape, dtype=torch.float64)
        (found,) = torch.autograd.grad((weights * out.z_q).sum(), z)
        assert bottleneck.identity_gradient == (kind == "lfq")
        if kind == "lfq":
            assert torch.equal(found, weights)
        else:
            norm = z.norm(dim=1, keepdim=True)
            along = (weights * z).sum(1, keepdim=True) * z / norm**2
            torch.testing.assert_close(found, ((weights - along) / norm).detach(), rtol=1e-9, atol=1e-12)
    assert not bottleneck_config("lfq", bits=5, dim=6).build().identity_gradient


@pytest.mark.parametrize("kind", KINDS)
def test_beta_weighs_the_pull_to_the_entry(kind: str) -> None:
    bottleneck = quantizer(kind, 4, beta=0.7)
    z = latents(bottleneck, 3, 5).double()
    out = bottleneck(z)
    e = all_entries(kind, 4)[out.codes.flatten()]
    expected = (on_its_scale(kind, z) - e).square().mean().item()
    assert out.stats["commitment"].item() == pytest.approx(expected)
    assert out.losses["commitment"].item() == pytest.approx(0.7 * expected)


# Bad input


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_not_finite_are_named_and_change_nothing(kind: str) -> None:
    bottleneck = trained(kind)
    before = {k: v.clone() for k, v in {**bottleneck.state_dict(), **bottleneck.training_state()}.items()}
    z = latents(bottleneck, 2, 5)
    z[0, 1, 2] = math.inf
    with pytest.raises(ValueError, match=r"z_e \(2, 6, 5\) .*NaN.* step 8"):
        bottleneck(z, Step(0, 7, 0, 2))
    with pytest.raises(ValueError, match=r"z_e .*NaN"):
        bottleneck.encode(z)
    after = {**bottleneck.state_dict(), **bottleneck.training_state()}
    assert all(torch.equal(v, before[k]) for k, v in after.items())


@pytest.mark.parametrize("config", [LFQConfig, BSQConfig])
@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("bits", 0, "bits is 0, expected 1 to 24"),
        ("bits", 25, "bits is 25, expected 1 to 24"),
        ("dim", 0, "dim is 0, expected 1 to 4096"),
        ("beta", -0.1, "beta is -0.1, expected 0 or more"),
        ("entropy_weight", math.nan, "entropy_weight is nan, expected 0 or more"),
        ("diversity", math.inf, "diversity is inf, expected 0 or more"),
        ("temperature", 0.0, "temperature is 0.0, expected more than 0"),
        ("group_bits", 17, "group_bits is 17, expected 1 to 16"),
        ("decay", 1.0, "decay is 1.0, expected 0 or more and less than 1"),
    ],
)
def test_configs_check_themselves(config: type, field: str, value: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**{field: value})
