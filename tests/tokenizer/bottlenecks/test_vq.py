"""VQ: nearest entries, gradients, moving averages and revival, against the paper by hand.

Left out: the start by k-means (test_kmeans_start.py), what every bottleneck keeps (test_contract.py) and
the search (tokenizer/search/test_exact.py).
"""

import copy
import math

import pytest
import torch
from einops import rearrange
from torch import Tensor

from tests.helpers.tiny import bottleneck_config, latents, trained
from tokenizer.bottlenecks import Event
from tokenizer.bottlenecks.parts.codebooks import EMACodebook
from tokenizer.bottlenecks.parts.health import perplexity
from tokenizer.bottlenecks.vq import VQ
from tokenizer.distributed import Step


def values_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in state.items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def vq(dtype: torch.dtype = torch.float64, **changes: object) -> VQ:
    """A VQ without projections or k-means, so that z_e is z and the entries are as given."""
    config = {"dim": 3, "codebook_dim": 3, "codebook_size": 5, "kmeans_steps": 0, "revive_below": 0.0}
    torch.manual_seed(0)
    bottleneck = bottleneck_config("vq", **{**config, **changes}).build()
    assert isinstance(bottleneck, VQ)
    return bottleneck.to(dtype).train()


def test_z_q_is_the_nearest_entry() -> None:
    bottleneck = vq(codebook_size=3).eval()
    bottleneck.codebook.entries.copy_(torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 4, 0]]))
    z = torch.tensor([[[0.4, 0.6, 9.0]], [[0.0, 0.0, 8.0]], [[0.0, 1.0, 0.0]]], dtype=torch.float64)
    z = rearrange(z, "d 1 p -> 1 d p")
    out = bottleneck(z)
    assert out.codes is not None and out.codes.tolist() == [[[0, 1, 2]]]
    assert out.z_q.tolist() == [[[0, 1, 0], [0, 0, 4], [0, 0, 0]]]
    squares = 0.4**2 + (0.4**2 + 1) + (9**2 + 4**2)
    assert out.stats["commitment"].item() == pytest.approx(squares / 9)
    assert out.losses["commitment"].item() == pytest.approx(0.25 * squares / 9)
    assert out.stats["perplexity"].item() == pytest.approx(3) and out.stats["usage"].item() == 1


def test_an_entry_is_nearest_to_itself() -> None:
    bottleneck = trained("vq", codebook_dim=6).eval()
    codes = torch.arange(24).view(2, 1, 12)
    assert torch.equal(bottleneck.encode(bottleneck.decode(codes)), codes)


@pytest.mark.parametrize("beta", [0.25, 2.0])
def test_beta_weighs_the_pull_on_z_e_alone(beta: float) -> None:
    bottleneck = vq(beta=beta)
    z = latents(bottleneck, 2, 7).double().requires_grad_()
    entries = bottleneck.codebook.entries.clone()
    assert not any(p.requires_grad for p in bottleneck.parameters())
    out = bottleneck(z)
    assert out.codes is not None
    e = rearrange(entries[out.codes[:, 0]], "b p d -> b d p")
    out.losses["commitment"].backward()
    # β mean (z − e)² has the gradient 2 β (z − e) / elements.
    torch.testing.assert_close(z.grad, 2 * beta * (z.detach() - e) / z.numel(), rtol=1e-12, atol=0)
    assert out.losses["commitment"].item() == pytest.approx(beta * (z.detach() - e).square().mean().item())


def test_straight_through_is_the_identity_backward_and_the_entry_forward() -> None:
    bottleneck = vq()
    z = latents(bottleneck, 2, 3, 4).double().requires_grad_()
    entries = bottleneck.codebook.entries.clone()
    out = bottleneck(z)
    assert out.codes is not None
    expected = rearrange(entries[out.codes[:, 0]], "b h w d -> b d h w")
    torch.testing.assert_close(out.z_q.detach(), expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn(out.z_q.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * out.z_q).sum(), z)
    assert torch.equal(gradient, weights)


def test_projections_lead_to_the_codebook_and_back() -> None:
    bottleneck = trained("vq", torch.float64).eval()
    assert isinstance(bottleneck, VQ)
    z = latents(bottleneck, 2, 5).double()
    z_e = torch.einsum("bdp,ed->bpe", z, bottleneck.project_in.weight) + bottleneck.project_in.bias
    codes = torch.cdist(z_e, bottleneck.codebook.entries.expand(2, -1, -1)).argmin(-1)
    assert torch.equal(bottleneck.encode(z), codes[:, None])
    e = bottleneck.codebook.entries[codes]
    z_q = torch.einsum("bpe,de->bdp", e, bottleneck.project_out.weight)
    z_q = z_q + bottleneck.project_out.bias[:, None]
    torch.testing.assert_close(bottleneck.decode(codes[:, None]), z_q, rtol=1e-12, atol=1e-12)
    assert torch.equal(bottleneck.codebook_vectors(), bottleneck.codebook.entries)


def test_one_step_of_moving_averages_is_the_papers() -> None:
    """N ← γ N + (1 − γ) n, m ← γ m + (1 − γ) Σ z, e = m / N (van den Oord et al. 2017, appendix A.1)."""
    bottleneck = vq(decay=0.9)
    state = bottleneck.codebook
    state.ema_count.copy_(torch.tensor([3.0, 1, 2, 0, 5]))
    state.ema_sum.copy_(state.entries * state.ema_count[:, None])
    entries, count, total = (v.clone() for v in (state.entries, state.ema_count, state.ema_sum))
    z = latents(bottleneck, 2, 7).double()
    rows = rearrange(z, "b d p -> (b p) d")
    codes = torch.cdist(rows, entries).argmin(1)
    bottleneck(z)
    for k in range(5):
        mine = rows[codes == k]
        n, m = 0.9 * count[k] + 0.1 * len(mine), 0.9 * total[k] + 0.1 * mine.sum(0)
        assert state.ema_count[k].item() == pytest.approx(n.item(), abs=1e-12)
        torch.testing.assert_close(state.ema_sum[k], m, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state.entries[k], m / n if n > 0 else entries[k], rtol=1e-12, atol=1e-12)
    assert len(codes.unique()) > 2 and torch.isfinite(state.entries).all()


def test_dead_entries_move_to_vectors_of_the_batch_with_fresh_statistics() -> None:
    bottleneck = vq(codebook_size=6, revive_below=0.1, decay=0.5)
    state = bottleneck.codebook
    state.entries[:3] = 100 + torch.arange(9.0).view(3, 3)  # far from all data
    state.ema_count.copy_(torch.tensor([0.01, 0.9, 0.0, 4.0, 4.0, 4.0]))
    state.ema_sum.copy_(state.entries * state.ema_count[:, None])
    before = copy.deepcopy(state)
    z = latents(bottleneck, 4, 6).double()
    rows = rearrange(z, "b d p -> (b p) d")
    bottleneck(z, Step(0, 0, 0, 4))
    # Uniform use is 24 / 6 = 4 vectors a step; dead is below 0.4 after halving: 0.005, 0.45, 0.
    for k in (0, 2):
        assert (rows == state.entries[k]).all(dim=1).any()
        assert state.ema_count[k].item() == 2.0  # half of uniform use
        torch.testing.assert_close(state.ema_sum[k], 2 * state.entries[k])
    torch.testing.assert_close(state.entries[1], before.entries[1])
    assert state.ema_count[1].item() == pytest.approx(0.45)
    assert not any((rows == state.entries[k]).all(dim=1).any() for k in (1, 3, 4, 5))
    revived_two = (
        "revived 2 codebook entries since the last report, used below 0.1 of uniform use: "
        "moved to vectors of the batch, as is usual early in a run"
    )
    assert bottleneck.events() == [Event(revived_two)]
    assert bottleneck.events() == []
    revived = state.entries[[0, 2]].clone()
    bottleneck(z, Step(0, 1, 0, 4))
    # Entry 1 has decayed to 0.225 by now; the two revived ones stay alive.
    assert bottleneck.events() == [Event(revived_two.replace("2", "1", 1))]
    assert (state.entries[[0, 2]] - revived).norm(dim=1).max() < 3


def test_revival_off_leaves_dead_entries_where_they_are() -> None:
    bottleneck = vq(codebook_size=4)
    bottleneck.codebook.entries[0] = 100.0
    bottleneck.codebook.ema_sum.copy_(bottleneck.codebook.entries)
    for index in range(20):
        bottleneck(latents(bottleneck, 4, 6, seed=index).double(), Step(0, index, 0, 4))
    torch.testing.assert_close(bottleneck.codebook.entries[0], torch.full((3,), 100.0, dtype=torch.float64))
    assert bottleneck.events() == []


def test_revival_keeps_the_codebook_in_use() -> None:
    def usage(revive_below: float) -> float:
        bottleneck = vq(torch.float32, codebook_size=64, revive_below=revive_below, decay=0.9)
        bottleneck.codebook.entries.add_(20.0)
        bottleneck.codebook.ema_sum.copy_(bottleneck.codebook.entries)
        for index in range(60):
            z = latents(bottleneck, 32, 16, seed=index)
            stats = bottleneck(z, Step(0, index, 0, 32)).stats
        return stats["usage"].item()

    assert usage(0.0) < 0.2
    assert usage(0.1) > 0.9


def test_perplexity_counts_entries_in_even_use() -> None:
    assert perplexity(torch.tensor([5.0, 5, 0, 0])).item() == pytest.approx(2)
    assert perplexity(torch.ones(3, 7)).tolist() == pytest.approx([7, 7, 7])
    assert perplexity(torch.zeros(4)).item() == pytest.approx(1)
    assert perplexity(torch.tensor([3.0, 1])).item() == pytest.approx(4 / 27**0.25)


def test_only_the_last_pass_moves_the_codebook() -> None:
    bottleneck = vq()
    z = latents(bottleneck, 4, 6).double()
    before = values_of(bottleneck.state_dict())
    bottleneck(z[:2], Step(0, 0, 0, 4, last=False))
    assert_same(values_of(bottleneck.state_dict()), before)
    out = bottleneck(z[2:], Step(0, 0, 2, 4, last=True))
    assert not torch.equal(bottleneck.codebook.entries, before["codebook.entries"])
    whole = vq()(z, Step(0, 0, 0, 4)).stats
    assert out.stats["perplexity"].item() == pytest.approx(whole["perplexity"].item())
    assert out.stats["usage"].item() == whole["usage"].item()


def test_an_unfinished_optimizer_step_is_dropped_on_resume() -> None:
    bottleneck, expected = vq(), vq()
    z = latents(bottleneck, 4, 6).double()
    bottleneck(z[:2] + 5, Step(0, 0, 0, 4, last=False))
    bottleneck.load_training_state(bottleneck.training_state())
    for each in (bottleneck, expected):
        each(z, Step(0, 0, 0, 4))
    assert_same(bottleneck.state_dict(), expected.state_dict())


def test_without_a_step_every_pass_is_one() -> None:
    bottleneck = vq(torch.float32, kmeans_steps=2, codebook_size=8)
    torch.manual_seed(4)
    for index in range(4):
        bottleneck(latents(bottleneck, 8, 6, seed=index))
        assert bool(bottleneck.codebook.started) == (index >= 1)
    assert torch.isfinite(bottleneck.codebook.entries).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 0}, "codebook_size is 0, expected 1 to"),
        ({"dim": 0}, "dim is 0, expected 1 to 4096"),
        ({"codebook_dim": 5000}, "codebook_dim is 5000, expected 1 to dim, 6"),
        ({"beta": -1.0}, "beta is -1.0, expected 0 or more"),
        ({"beta": math.nan}, "beta is nan, expected 0 or more"),
        ({"decay": 1.0}, "decay is 1.0, expected 0 or more and less than 1, or none"),
        ({"kmeans_steps": -1}, "kmeans_steps is -1, expected 0 or more"),
        ({"revive_below": 1.0}, "revive_below is 1.0, expected 0 or more, below 1, or none"),
    ],
)
def test_bad_vq_configs_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bottleneck_config("vq", **changes)


def test_a_codebook_of_one_entry_works() -> None:
    codebook = EMACodebook(1, 2, decay=0.0, kmeans_steps=0, revive_below=0.03)
    z = torch.tensor([[1.0, 3.0], [3.0, 5.0]])
    codebook.update(z, torch.zeros(2, dtype=torch.int64), 2, None)
    assert codebook.ema_count.tolist() == [2] and codebook.entries.tolist() == [[2, 4]]


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("update", ["ema", "gradient", "simvq"])
def test_every_choice_trains_through_its_start_and_revivals(
    update: str, distance: str, gradient: str
) -> None:
    """The upkeep of the codebook comes between forward and backward, and must leave what backward needs."""
    choice = {"update": update, "distance": distance, "gradient": gradient}
    bottleneck = vq(kmeans_steps=2, revive_below=0.9, decay=0.5, **choice)
    for index in range(6):
        z = latents(bottleneck, 8, 3, seed=index).double().requires_grad_()
        out = bottleneck(z, Step(0, index, 0, 8))
        (out.z_q.square().mean() + torch.stack(list(out.losses.values())).sum()).backward()
        assert z.grad is not None and bool(z.grad.isfinite().all()) and bool(z.grad.any())
    assert any(e.text.startswith("revived") for e in bottleneck.events())


@pytest.mark.parametrize(
    ("size", "decay"), [(5, 0.9), (1024, 1 - 4096 / 1024 / 64), (4096, 1 - 1 / 64), (1 << 16, 0.99)]
)
def test_the_decay_follows_from_the_vectors_per_entry(size: int, decay: float) -> None:
    codebook = EMACodebook(size, 2, decay=None, kmeans_steps=0, revive_below=0.0)
    assert codebook.decay_for(4096) == pytest.approx(decay)
    z = torch.randn(4096, 2, generator=torch.Generator().manual_seed(0))
    codebook.update(z, torch.zeros(4096, dtype=torch.int64), 64, Step(0, 0, 0, 64))
    assert codebook.ema_count[0].item() == pytest.approx(decay + (1 - decay) * 4096, rel=1e-5)
    torch.testing.assert_close(codebook.entries[0], codebook.ema_sum[0] / codebook.ema_count[0])
