"""The start of a VQ codebook by k-means, from a reservoir of the first steps.

Left out: what the codebook does later (test_vq.py), and learnt codebooks (test_codebooks.py).
"""

import pytest
import torch
from einops import rearrange
from torch import Tensor

from tests.helpers.tiny import latents
from tests.tokenizer.bottlenecks.test_vq import vq
from tokenizer.bottlenecks import Event
from tokenizer.bottlenecks.parts.codebooks import kmeans
from tokenizer.distributed import Step


def clusters(steps: int, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """8 centres (8, 3) far apart, and batches (16, 3, 8) of vectors close to them."""
    generator = torch.Generator().manual_seed(seed)
    centres = 10 * torch.tensor([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]).double()
    batches = []
    for _ in range(steps):
        which = torch.randint(8, (128,), generator=generator)
        z = centres[which] + 0.05 * torch.randn(128, 3, generator=generator, dtype=torch.float64)
        batches.append(rearrange(z, "(b p) d -> b d p", b=16))
    return centres, batches


def test_kmeans_starts_after_its_steps_and_finds_the_clusters() -> None:
    bottleneck = vq(codebook_size=24, kmeans_steps=5)
    initial = bottleneck.codebook.entries.clone()
    centres, batches = clusters(6)
    for index, z in enumerate(batches):
        z = z.clone().requires_grad_()
        started = bool(bottleneck.codebook.started)
        assert started == (index >= 5)
        out = bottleneck(z, Step(0, index, 0, 16))
        if started:
            assert out.losses["commitment"] > 0
            continue
        # Before the start z passes through, no loss acts on it, and the entries stay.
        assert torch.equal(out.z_q, z) and out.losses["commitment"].item() == 0
        assert torch.equal(bottleneck.codebook.entries, initial) == (index < 4)
        placed = [Event("k-means placed 24 entries among 640 vectors", 5)]
        assert bottleneck.events() == ([] if index < 4 else placed)
    distances = torch.cdist(centres, bottleneck.codebook.entries)
    assert distances.amin(dim=1).max() < 0.1  # each cluster has an entry at its centre
    assert distances.amin(dim=0).max() < 0.3  # and no entry stands between clusters
    assert out.losses["commitment"] < 0.25 * 0.01


def test_whether_it_has_started_is_loaded_with_the_weights() -> None:
    fresh, begun = vq(kmeans_steps=2), vq(kmeans_steps=2)
    for index, z in enumerate(clusters(2)[1]):
        begun(z, Step(0, index, 0, 16))
    states = {ready: bottleneck.state_dict() for ready, bottleneck in ((False, fresh), (True, begun))}
    states = {ready: {k: v.clone() for k, v in state.items()} for ready, state in states.items()}
    for bottleneck in (fresh, begun):
        for ready, state in states.items():
            bottleneck.load_state_dict(state)
            assert bottleneck.ready == ready


def test_counts_after_kmeans_are_those_of_one_global_batch() -> None:
    """Else every entry of a small codebook is called dead right after the start."""
    bottleneck = vq(codebook_size=4, kmeans_steps=4, revive_below=0.1)
    _, batches = clusters(6)
    large = [torch.cat(batches) for _ in range(5)]  # 768 vectors a step, of which the reservoir takes 64
    for index in range(4):
        bottleneck(large[index], Step(0, index, 0, 96))
    assert bottleneck.codebook.ema_count.sum().item() == pytest.approx(768)
    bottleneck.events()
    bottleneck(large[4], Step(0, 4, 0, 96))
    assert bottleneck.events() == []


def test_a_small_reservoir_is_topped_up_and_says_so() -> None:
    bottleneck = vq(codebook_size=50, kmeans_steps=2)
    seen = [latents(bottleneck, 2, 6, seed=i).double() for i in range(2)]
    for index, z in enumerate(seen):
        bottleneck(z, Step(0, index, 0, 2))
    (event,) = bottleneck.events()
    assert event == ("k-means placed 50 entries among 50 vectors, 26 of them jittered copies", 2)
    rows = rearrange(torch.stack(seen), "s b d p -> (s b p) d")
    distances = torch.cdist(bottleneck.codebook.entries, rows).amin(dim=1)
    assert distances.max() < 0.2 and (distances > 0).any()
    assert len(bottleneck.codebook.entries.unique(dim=0)) == 50


def test_the_reservoir_draws_from_every_step_and_all_rows() -> None:
    bottleneck = vq(codebook_size=6, kmeans_steps=8)
    state = bottleneck.codebook
    for index in range(7):
        z = latents(bottleneck, 16, 20, seed=index).double()
        bottleneck(z, Step(0, index, 0, 16))
        rows = rearrange(z, "b d p -> (b p) d")
        kept = bottleneck.training_state()["reservoir"][-1]
        assert bottleneck.training_state()["reservoir"].shape == (index + 1, 48, 3)  # 64 · 6 / 8
        found = (kept[:, None] == rows).all(-1)
        assert (found.sum(1) == 1).all() and found.any(0).sum() == 48  # 48 different rows of this step
        assert found.nonzero()[:, 1].max() > 240 and found.nonzero()[:, 1].min() < 80
    assert not bool(state.started)


def test_kmeans_recovers_centres_and_counts() -> None:
    centres, batches = clusters(4)
    x = rearrange(torch.stack(batches), "s b d p -> (s b p) d")
    found, counts = kmeans(x, 40, torch.Generator().manual_seed(0))
    assert counts.sum() == len(x) and found.shape == (40, 3)
    assert torch.cdist(centres, found).amin(dim=1).max() < 0.2
    again, _ = kmeans(x, 40, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)
