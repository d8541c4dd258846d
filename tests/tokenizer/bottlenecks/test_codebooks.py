"""The codebooks and gradients of vq beside the default: cosine, learnt by gradient, SimVQ, rotation.

Left out: what all bottlenecks keep (test_contract.py), and moving averages (test_vq.py).
"""

import math

import pytest
import torch
from einops import rearrange
from torch import Tensor

from tests.helpers.tiny import bottleneck_config, latents
from tokenizer.bottlenecks.parts.codebooks import SimVQCodebook, kmeans
from tokenizer.bottlenecks.parts.estimators import rotate, straight_through
from tokenizer.bottlenecks.vq import VQ
from tokenizer.distributed import Step


def vq(steps: int = 0, **changes: object) -> VQ:
    """A VQ in float64 without projections, in training mode, after some steps on normal vectors."""
    torch.manual_seed(0)
    config = {"dim": 3, "codebook_dim": 3, "codebook_size": 16, "kmeans_steps": 2, **changes}
    bottleneck = bottleneck_config("vq", **config).build().double().train()
    assert isinstance(bottleneck, VQ)
    for index in range(steps):
        bottleneck(latents(bottleneck, 8, 10, seed=index).double(), Step(0, index, 0, 8))
    return bottleneck


def rows(z: Tensor) -> Tensor:
    return rearrange(z, "b d p -> (b p) d")


# Gradients


def test_the_rotation_takes_z_to_its_entry_and_keeps_angles() -> None:
    generator = torch.Generator().manual_seed(0)
    z, e, g = torch.randn(3, 50, 4, generator=generator, dtype=torch.float64)
    z.requires_grad_()
    q = rotate(z, e)
    assert torch.equal(q, e)
    q.backward(g)
    for i in range(50):  # the matrix λR of the paper, by hand
        a, b = z[i].detach() / z[i].norm().detach(), e[i] / e[i].norm()
        r = (a + b) / (a + b).norm()
        matrix = torch.eye(4, dtype=torch.float64) - 2 * torch.outer(r, r) + 2 * torch.outer(b, a)
        torch.testing.assert_close(matrix @ a, b)
        scale = e[i].norm() / z[i].norm().detach()
        torch.testing.assert_close(z.grad[i], scale * matrix.T @ g[i])
        cosine = torch.nn.functional.cosine_similarity
        torch.testing.assert_close(cosine(z.grad[i], z[i], 0), cosine(g[i], e[i], 0))


def test_the_rotation_is_finite_where_there_is_none() -> None:
    z = torch.tensor([[1.0, 0], [0, 0], [1, 0], [2, 0]], requires_grad=True)
    e = torch.tensor([[-1.0, 0], [1, 1], [0, 0], [2, 0]])
    rotate(z, e).sum().backward()
    assert torch.equal(rotate(z, e), e) and torch.isfinite(z.grad).all()
    torch.testing.assert_close(z.grad[3], torch.ones(2))  # no rotation at all: straight through


def test_straight_through_is_the_identity_backward() -> None:
    z, e = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    z.requires_grad_()
    straight_through(z, e).backward(e)
    assert torch.equal(z.grad, e)


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_the_option_reaches_the_encoder(gradient: str) -> None:
    bottleneck = vq(3, gradient=gradient, beta=0.0)
    z = latents(bottleneck, 2, 4, seed=9).double().requires_grad_()
    out = bottleneck(z, Step(0, 9, 0, 2))
    weights = torch.randn(out.z_q.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (out.z_q * weights).sum().backward()
    assert torch.equal(z.grad, weights) == (gradient == "straight_through")
    assert bottleneck.identity_gradient == (gradient == "straight_through")


# Cosine


@pytest.mark.parametrize("update", ["ema", "gradient", "simvq"])
def test_cosine_codes_are_those_of_the_nearest_direction(update: str) -> None:
    bottleneck = vq(6, distance="cosine", update=update).eval()
    vectors = bottleneck.codebook.vectors
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(16, dtype=torch.float64))
    z = latents(bottleneck, 4, 50, seed=9).double()
    cosines = torch.nn.functional.cosine_similarity(rows(z)[:, None], vectors[None], dim=2)
    assert torch.equal(bottleneck.encode(z).flatten(), cosines.argmax(1))
    assert torch.equal(bottleneck.encode(z), bottleneck.encode(z * 37))
    torch.testing.assert_close(rows(bottleneck.decode(bottleneck.encode(z))), vectors[cosines.argmax(1)])


def test_spherical_kmeans_finds_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(5, 3, generator=generator))
    x = centres[torch.randint(5, (500,), generator=generator)]
    x = torch.nn.functional.normalize(x + 0.02 * torch.randn(500, 3, generator=generator))
    found, counts = kmeans(x, 30, generator, spherical=True)
    assert counts.sum() == 500 and (found.norm(dim=1) - 1).abs().max() < 1e-6
    assert (centres @ found.T).amax(1).min() > 0.999


# Learnt codebooks


def test_the_codebook_loss_pulls_entries_and_the_commitment_z() -> None:
    bottleneck = vq(3, update="gradient", beta=0.25)
    z = latents(bottleneck, 2, 4, seed=9).double().requires_grad_()
    entries = bottleneck.codebook.entries
    before = entries.detach().clone()
    out = bottleneck(z, Step(0, 9, 0, 2))
    errors = rows(z).detach() - before[out.codes.flatten()]
    assert out.losses["codebook"].item() == pytest.approx(errors.square().mean().item())
    assert out.losses["commitment"].item() == pytest.approx(0.25 * errors.square().mean().item())
    torch.stack(list(out.losses.values())).sum().backward()
    expected = torch.zeros_like(before).index_add_(0, out.codes.flatten(), -2 * errors / errors.numel())
    torch.testing.assert_close(entries.grad, expected)
    torch.testing.assert_close(rows(z.grad), 0.25 * 2 * errors / errors.numel())


def test_before_the_start_no_gradient_reaches_a_codebook() -> None:
    for update in ("gradient", "simvq"):
        bottleneck = vq(update=update)
        z = latents(bottleneck, 2, 4).double()
        out = bottleneck(z, Step(0, 0, 0, 2))
        assert torch.equal(out.z_q, z)
        torch.stack(list(out.losses.values())).sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in bottleneck.parameters())


@pytest.mark.parametrize("update", ["gradient", "simvq"])
def test_learnt_codebooks_follow_moving_vectors(update: str) -> None:
    bottleneck = vq(update=update, codebook_size=32)
    optimizer = torch.optim.Adam(bottleneck.parameters(), 0.03)
    scale = torch.tensor([3.0, 1.0, 0.3])[:, None]
    errors = []
    for index in range(200):
        z = scale * latents(bottleneck, 16, 8, seed=index).double() + 0.01 * index
        out = bottleneck(z, Step(0, index, 0, 16))
        optimizer.zero_grad()
        torch.stack(list(out.losses.values())).sum().backward()
        optimizer.step()
        errors.append(out.stats["commitment"].item())
    assert bottleneck.codebook.vectors.mean(0)[2].item() == pytest.approx(2.0, abs=0.6)
    assert sum(errors[-10:]) < 1.3 * sum(errors[2:12])


def test_simvq_starts_from_kmeans_with_a_whitened_basis() -> None:
    codebook = SimVQCodebook(200, 3, 0.99, 1, 0.0).double()
    mix = torch.tensor([[2.0, 0, 0], [1, 0.5, 0], [0, 0, 0.01]], dtype=torch.float64)
    z = torch.randn(8000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ mix + 5
    step = Step(0, 0, 0, 8000)
    codebook.update(z, torch.zeros(8000, dtype=torch.int64), 8000, step)
    entries, counts = kmeans(
        z[torch.randperm(8000, generator=step.generator("reservoir"))], 200, step.generator("kmeans")
    )
    torch.testing.assert_close(codebook.vectors.detach(), entries)
    torch.testing.assert_close(codebook.ema_count, counts)
    torch.testing.assert_close(codebook.map.T @ codebook.map, z.T.cov(correction=0))
    assert codebook.basis.var(0).max() < 2
    assert [e.text for e in codebook.events()] == ["k-means placed a basis of 200 entries among 8000 vectors"]


@pytest.mark.parametrize("shortest", [1.0, 1e-3, 0.0])
def test_simvq_moves_entries_to_where_they_belong(shortest: float) -> None:
    """Or, if its map has lost a direction, to the nearest place that it reaches; never to NaN."""
    numbers = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(3, 3, generator=numbers))
    codebook = SimVQCodebook(8, 3, 0.99, 1, 0.0).requires_grad_(False)
    codebook.map.copy_(left * torch.tensor([2.0, 1.0, shortest]) @ right)
    wanted, index = torch.randn(4, 3, generator=numbers), torch.tensor([6, 0, 3, 1])
    dead = torch.tensor([True, True, False, True])
    before = codebook.vectors.clone()
    codebook._move(index, dead, wanted)
    reached = wanted if shortest else wanted @ (right[:2].T @ right[:2])
    expected = before.index_copy(0, index[dead], reached[dead])
    torch.testing.assert_close(codebook.vectors, expected, rtol=1e-3, atol=1e-4)
    codebook.map.zero_()
    codebook._move(index, dead, wanted)
    assert torch.isfinite(codebook.basis).all()


def test_a_gradient_of_one_entry_moves_all_of_simvq() -> None:
    bottleneck = vq(3, update="simvq", revive_below=0.0)
    before = bottleneck.codebook.vectors.detach().clone()
    z = latents(bottleneck, 1, 1, seed=9).double()
    bottleneck(z, Step(0, 9, 0, 1)).losses["codebook"].backward()
    with torch.no_grad():
        for p in bottleneck.parameters():
            p -= 0.5 * p.grad
    assert ((bottleneck.codebook.vectors - before).norm(dim=1) > 1e-6).all()


@pytest.mark.parametrize("update", ["gradient", "simvq"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_dead_learnt_entries_move_to_vectors_of_the_batch(update: str, distance: str) -> None:
    bottleneck = vq(4, update=update, distance=distance, revive_below=0.1, decay=0.99)
    bottleneck.events()
    state = bottleneck.codebook
    state.ema_count[[3, 7]] = 0.0
    before = state.vectors.detach().clone()
    z = latents(bottleneck, 8, 10, seed=50).double()
    bottleneck(z, Step(0, 50, 0, 8))
    after = state.vectors.detach()
    seen = state.on_sphere(rows(z))
    moved = [k for k in range(16) if not torch.allclose(after[k], before[k], atol=1e-12)]
    assert moved == [3, 7]
    assert (after[[3, 7], None] - seen).norm(dim=2).amin(1).max() < 1e-9
    assert bottleneck.events()[0].text.startswith(
        "revived 2 codebook entries since the last report, used below 0.1"
    )


def test_what_counts_as_dead_follows_from_the_update_unless_it_is_given() -> None:
    for update, least in (("ema", 0.1), ("gradient", 0.1), ("simvq", 0.35)):
        assert vq(update=update).codebook.revive_below == least
        for given in (0.0, 0.2):
            assert vq(update=update, revive_below=given).codebook.revive_below == given


# Mistakes


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_named_and_leaves_the_codebook_alone(value: float) -> None:
    for update in ("ema", "gradient", "simvq"):
        bottleneck = vq(4, update=update)
        before = {k: v.clone() for k, v in bottleneck.state_dict().items()}
        training = {k: v.clone() for k, v in bottleneck.training_state().items()}
        z = latents(bottleneck, 2, 5).double()
        z[1, 2, 3] = value
        with pytest.raises(ValueError, match=r"z_e \(2, 3, 5\) .*NaN.* step 8;"):
            bottleneck(z, Step(0, 7, 0, 2))
        with pytest.raises(ValueError, match=r"z .*not finite.* x"):
            bottleneck.encode(z)
        assert all(torch.equal(v, before[k]) for k, v in bottleneck.state_dict().items())
        assert all(torch.equal(v, training[k]) for k, v in bottleneck.training_state().items())


def test_large_values_are_not_taken_for_infinite_ones() -> None:
    bottleneck = vq(4).float()
    z = torch.full((1, 3, 200), 2e18)
    assert bottleneck.eval()(z).codes.unique().numel() == 1


def test_a_codebook_wider_than_what_the_encoder_gives_is_refused() -> None:
    with pytest.raises(ValueError, match="codebook_dim is 9, expected 1 to dim, 8"):
        bottleneck_config("vq", dim=8, codebook_dim=9)


@pytest.mark.parametrize("shape", [(2, 3), (1, 5, 4), (0, 5, 3), (1, 0, 3), (1, 1, 5, 3)])
def test_a_reservoir_of_other_vectors_is_refused(shape: tuple[int, ...]) -> None:
    state = vq(1).training_state()
    with pytest.raises(ValueError, match=r"reservoir is .*, expected \(steps, vectors, 3\)"):
        vq().load_training_state({**state, "reservoir": torch.zeros(shape)})
    with pytest.raises(ValueError, match=r"reservoir \(1, 5, 3\) .*NaN"):
        vq().load_training_state({**state, "reservoir": torch.full((1, 5, 3), math.nan)})
