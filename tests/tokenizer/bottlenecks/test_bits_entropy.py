"""Quantizers of bits: their entropy objective, on one or several processes.

Left out: codes, gradients and bad input (`test_bits.py`).
"""

import math
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from vector_quantize_pytorch import LFQ as OtherLFQ

from tests.helpers.tiny import bottleneck_config, latents, trained
from tests.helpers.warm import run_ranks
from tests.tokenizer.bottlenecks.test_bits import KINDS, assignment, entropy, quantizer
from tokenizer.bottlenecks.parts.bits import MeanEntropy, mean_of_products
from tokenizer.distributed import Step

# Entropies


@pytest.mark.parametrize("kind", KINDS)
def test_codes_commitment_and_entropies_are_another_implementations(kind: str) -> None:
    bottleneck = quantizer(
        kind, 6, torch.float32, temperature=2.0, beta=0.25, entropy_weight=1, diversity=1.5, decay=0
    )
    other = OtherLFQ(
        dim=6,
        codebook_size=64,
        entropy_loss_weight=1,
        commitment_loss_weight=0.25,
        diversity_gamma=1.5,
        spherical=kind == "bsq",
    ).train()
    z = 0.5 * latents(bottleneck, 8, 50)
    bottleneck(z)  # p̄ is now the mean of this batch
    out = bottleneck(z)
    # It has the first channel count most.
    result, parts = other(
        rearrange(z.flip(1), "b d p -> b p d"),
        inv_temperature=(6 if kind == "bsq" else 1) / 2,
        return_loss_breakdown=True,
    )
    assert torch.equal(out.codes[:, 0], result.indices.long())
    torch.testing.assert_close(out.z_q.flip(1), rearrange(result.quantized, "b p d -> b d p"))
    torch.testing.assert_close(out.stats["entropy_sample"], parts.per_sample_entropy, rtol=1e-4, atol=0)
    torch.testing.assert_close(out.stats["entropy_mean"], parts.batch_entropy, rtol=1e-5, atol=0)
    torch.testing.assert_close(out.stats["commitment"], parts.commitment)
    total = torch.stack(list(out.losses.values())).sum()
    torch.testing.assert_close(total, result.entropy_aux_loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.02, 0.3, 5.0])
@pytest.mark.parametrize("bits", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_entropies_and_gradients_are_those_of_the_definition(
    kind: str, bits: int, temperature: float
) -> None:
    fields = {"temperature": temperature, "entropy_weight": 0.3, "diversity": 1.7, "decay": 0.0}
    bottleneck = quantizer(kind, bits, **fields)
    z = (0.2 * latents(bottleneck, 4, 20) + 0.1).double().requires_grad_()
    bottleneck(z)  # with a decay of 0 p̄ is now the mean of this batch
    out = bottleneck(z)
    q = assignment(kind, z, temperature)
    q = q.clamp(min=1e-300)
    sample, mean = entropy(q).mean(), entropy(q.mean(0))
    assert out.stats["entropy_sample"].item() == pytest.approx(sample.item(), abs=1e-9)
    assert out.stats["entropy_mean"].item() == pytest.approx(mean.item(), abs=1e-9)
    expected = 0.3 * (sample - 1.7 * mean)
    assert out.losses["entropy"].item() == pytest.approx(expected.item(), abs=1e-9)
    (wanted,) = torch.autograd.grad(expected, z)
    (found,) = torch.autograd.grad(out.losses["entropy"], z)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    assert (bits == 1 and kind == "bsq") or wanted.abs().max() > 1e-5


@pytest.mark.parametrize("bits", [1, 2, 3, 7])
def test_the_mean_of_products_is_that_of_the_table(bits: int) -> None:
    z = torch.randn(50, bits, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mean_of_products(4 * z), assignment("lfq", z[..., None], 1.0).mean(0))


def test_more_bits_than_a_table_has_are_groups_of_like_size_whose_entropies_add() -> None:
    for bits, group_bits, sizes in [(10, 12, [10]), (10, 9, [5, 5]), (24, 9, [8, 8, 8]), (19, 9, [6, 6, 7])]:
        assert MeanEntropy(bits, group_bits, 0.9).sizes == sizes
    bottleneck = quantizer("lfq", 5, group_bits=3, decay=0.0, temperature=2.0)
    z = 0.3 * latents(bottleneck, 4, 20).double() + torch.linspace(-1, 1, 20)  # bits that depend
    found = [bottleneck(z) for _ in range(2)][1].stats["entropy_mean"]
    q = rearrange(assignment("lfq", z, 2.0).mean(0), "(h l) -> h l", l=4)  # two bits, then three
    expected = entropy(q.sum(0)) + entropy(q.sum(1))
    assert found.item() == pytest.approx(expected.item()) and found > entropy(q.flatten()) + 1e-4


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return out


def test_no_table_is_as_wide_as_a_large_codebook() -> None:
    module = MeanEntropy(24, 12, 0.9)
    logits = torch.randn(100, 24, requires_grad=True)
    with Largest() as largest:
        module(logits, None).backward()
    # Tables of 2^12, and 2^6 numbers for each half of a group and row.
    assert largest.elements <= 2 * 2**12 + 1
    assert torch.isfinite(logits.grad).all()


def test_the_moving_average_starts_uniform_and_follows_in_training_only() -> None:
    bottleneck = quantizer("lfq", 3, decay=0.75, temperature=2.0)
    mean = bottleneck.mean_entropy.mean
    torch.testing.assert_close(mean(), torch.full((8,), 1 / 8, dtype=torch.float64))
    z = latents(bottleneck, 4, 20).double().requires_grad_()
    out = bottleneck(z, Step(0, 0, 0, 4))
    q = assignment("lfq", z, 2.0)
    first = q.mean(0).detach()
    torch.testing.assert_close(mean(), first, rtol=1e-4, atol=0)  # its start weighs next to nothing
    # Under a uniform p̄ only the entropy of single z acts.
    (found,) = torch.autograd.grad(out.losses["entropy"], z)
    weight = bottleneck.config.entropy_weight
    (wanted,) = torch.autograd.grad(weight * entropy(q).mean(), z)
    torch.testing.assert_close(found, wanted)
    bottleneck(2 * z + 0.5, Step(0, 1, 0, 4))
    second = assignment("lfq", 2 * z + 0.5, 2.0).mean(0).detach()
    expected = (0.75 * first + second) / 1.75
    torch.testing.assert_close(mean(), expected, rtol=1e-4, atol=0)
    before = mean().clone()
    bottleneck.eval()(z)
    assert torch.equal(mean(), before)
    assert "mean_entropy.ema" in bottleneck.state_dict()
    assert bottleneck.statistics == {"mean_entropy.ema"} and bottleneck.statistics < bottleneck.not_coding


@pytest.mark.parametrize("kind", KINDS)
def test_the_entropy_objective_brings_all_codes_into_use(kind: str) -> None:
    bottleneck = quantizer(kind, 4, entropy_weight=1.0, beta=0.0, diversity=2.0)
    z = (1 + 0.2 * latents(bottleneck, 64, 4)).double()  # nearly all of one code
    assert bottleneck.encode(z).unique().numel() < 4
    z.requires_grad_()
    optimizer = torch.optim.Adam([z], 0.02)
    for index in range(300):
        optimizer.zero_grad()
        out = bottleneck(z, Step(0, index, 0, 64))
        out.losses["entropy"].backward()
        optimizer.step()
    assert out.stats["entropy_mean"] > 0.85 * 4 * math.log(2)
    assert out.stats["entropy_sample"] < 0.15 * 4 * math.log(2)
    assert bottleneck.encode(z.detach()).unique().numel() == 16


# One or several processes and passes


def data(steps: int) -> list[Tensor]:
    """Global batches (12, 6, 5), off centre so that p̄ moves."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(12, 6, 5, generator=generator, dtype=torch.float64) + i % 3 - 0.5 for i in range(steps)
    ]


def gradients(kind: str, rank: int = 0, world: int = 1, passes: int = 1) -> Tensor:
    """Of the entropy loss by `project_in.weight`, summed over this rank's passes, per step."""
    torch.manual_seed(0)
    bottleneck = bottleneck_config(kind, bits=5, dim=6, decay=0.5).build().double().train()
    found = []
    for index, z in enumerate(data(4)):
        share = len(z) // (world * passes)
        total = torch.zeros_like(bottleneck.project_in.weight)
        for i in range(passes):
            offset = (rank * passes + i) * share
            step = Step(0, index, offset, len(z), last=i == passes - 1)
            loss = bottleneck(z[offset : offset + share], step).losses["entropy"]
            (gradient,) = torch.autograd.grad(loss, bottleneck.project_in.weight)
            total += gradient / (world * passes)
        found.append(total)
    return torch.stack(found)


@pytest.mark.parametrize("passes", [2, 3, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_passes_have_the_gradient_of_the_whole_batch(kind: str, passes: int) -> None:
    whole = gradients(kind)
    torch.testing.assert_close(gradients(kind, passes=passes), whole, rtol=1e-9, atol=1e-12)
    assert whole.abs().amax(dim=(1, 2)).min() > 1e-4


RANK = """
import sys
import torch.distributed as dist
from safetensors.torch import save_file
from pipelines.run.command_line import leave_group
from tests.tokenizer.bottlenecks.test_bits_entropy import KINDS, gradients

dist.init_process_group("gloo")
rank = dist.get_rank()
save_file({kind: gradients(kind, rank, world=2, passes=2) for kind in KINDS}, f"{sys.argv[1]}/{rank}")
leave_group()
"""


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    ranks = run_ranks(2, "-c", RANK, tmp_path)
    assert not any(rank.code for rank in ranks), ranks
    parts = [load_file(tmp_path / str(rank)) for rank in range(2)]
    for kind in KINDS:
        # DDP averages over processes; the share is already in `gradients`.
        torch.testing.assert_close(parts[0][kind] + parts[1][kind], gradients(kind), rtol=1e-9, atol=1e-12)


def test_a_pass_without_its_last_one_is_dropped_on_resume() -> None:
    bottleneck, other = (trained("lfq", torch.float64) for _ in range(2))
    z = latents(bottleneck, 4, 5, seed=7).double()
    bottleneck(z, Step(0, 6, 0, 8, last=False))
    bottleneck.load_training_state(bottleneck.training_state())
    for each in (bottleneck, other):
        each(z, Step(0, 6, 0, 4))
    assert torch.equal(bottleneck.mean_entropy.ema, other.mean_entropy.ema)
