"""The optimizers: Muon against its definition by hand, and which weights each optimizer gets.

Left out: their rates over a run (test_setup.py).
"""

import math
from typing import Any

import pytest
import torch
from torch import nn

from pipelines.training.optimizers import Muon, build_optimizers, orthogonalise
from prior import Prior
from tests.pipelines.training.test_setup import PRIOR, tiny_tokenizer_model
from tokenizer import Tokenizer, TokenizerConfig
from tokenizer.bottlenecks.vq import VQConfig


@pytest.mark.parametrize("shape", [(32, 32), (24, 96), (96, 24), (64, 1000)])
def test_orthogonalise_brings_singular_values_near_1(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(shape[0], shape[0], generator=generator)).Q
    right = torch.linalg.qr(torch.randn(shape[1], shape[1], generator=generator)).Q
    # Singular values over a range of 30, in directions that the result must keep.
    values = torch.logspace(0, -1.5, min(shape))
    matrix = 100 * left[:, : len(values)] * values @ right[: len(values)]
    result = orthogonalise(matrix)
    assert result.shape == matrix.shape and result.dtype == matrix.dtype
    found = torch.linalg.svdvals(result)
    assert float(found.min()) > 0.6 and float(found.max()) < 1.3
    kept = torch.diagonal(left[:, : len(values)].T @ result @ right[: len(values)].T)
    assert bool((kept > 0.6).all())


def test_orthogonalise_of_nothing_is_nothing() -> None:
    assert torch.equal(orthogonalise(torch.zeros(24, 24)), torch.zeros(24, 24))


def test_muons_first_step_on_a_convolution_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(48, 24, 1, 1, generator=generator))
    before, grad = weight.detach().clone(), torch.randn(48, 24, 1, 1, generator=generator)
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    weight.grad = grad.clone()
    optimizer.step()
    # Nesterov: 0.1 g is the average, g + 0.9 (0.1 g − g) = 0.19 g the update; its length does not count.
    expected = before * (1 - 0.1 * 0.5) - 0.1 * math.sqrt(2) * orthogonalise(grad.flatten(1)).view(
        48, 24, 1, 1
    )
    torch.testing.assert_close(weight.detach(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(optimizer.state[weight]["momentum"], 0.1 * grad)
    moved = torch.linalg.svdvals((before * 0.95 - weight.detach()).flatten(1))
    assert 0.6 * 0.1 * math.sqrt(2) < float(moved.min()) <= float(moved.max()) < 1.3 * 0.1 * math.sqrt(2)


def test_muons_second_step_remembers_the_first() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = nn.Parameter(torch.zeros(24, 30))
    grads = [torch.randn(24, 30, generator=generator) for _ in range(2)]
    optimizer = Muon([weight], lr=1.0, momentum=0.9)
    for grad in grads:
        before = weight.detach().clone()
        weight.grad = grad.clone()
        optimizer.step()
    momentum = 0.9 * 0.1 * grads[0] + 0.1 * grads[1]
    expected = orthogonalise(0.1 * grads[1] + 0.9 * momentum)
    torch.testing.assert_close(before - weight.detach(), expected, atol=1e-4, rtol=1e-4)


def test_muon_leaves_weights_without_a_gradient_alone() -> None:
    weight = nn.Parameter(torch.ones(24, 24))
    Muon([weight], lr=1.0, weight_decay=0.5).step()
    assert torch.equal(weight, torch.ones(24, 24))


def parts(model: nn.Module, kind: str, **options: Any) -> list[list[set[str]]]:
    """The names of the parameters in each group of each optimizer."""
    names = {id(p): n for n, p in model.named_parameters()}
    optimizers = build_optimizers(model, kind, 1e-3, 0.02, 0.1, **options)
    return [[{names[id(p)] for p in g["params"]} for g in o.param_groups] for o in optimizers]


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("build", [tiny_tokenizer_model, lambda: Prior(PRIOR)])
def test_every_parameter_has_one_optimizer(build: Any, kind: str) -> None:
    model = build()
    groups = [group for optimizer in parts(model, kind) for group in optimizer]
    assert sum(map(len, groups)) == len(list(model.parameters()))
    assert set().union(*groups) == {n for n, _ in model.named_parameters()}


def test_muon_gets_the_hidden_matrices_of_the_tokenizer() -> None:
    model = tiny_tokenizer_model()
    (decayed, plain), (muon,) = parts(model, "muon")
    shapes = {n: p.shape for n, p in model.named_parameters()}
    assert muon and all(len(shapes[n]) == 4 and min(shapes[n][:2]) >= 24 for n in muon)
    first = next(n for n in shapes if n.startswith("encoder") and n.endswith("weight"))
    last = [n for n in shapes if n.startswith("decoder") and n.endswith("weight")][-1]
    assert {first, last} <= decayed  # 3 channels of pixels
    assert all(len(shapes[n]) == 1 for n in plain)


def test_muon_gets_the_hidden_matrices_of_the_prior() -> None:
    (decayed, plain), (muon,) = parts(Prior(PRIOR), "muon")
    assert muon and all(n.startswith("blocks.") and n.endswith(".weight") for n in muon)
    assert {"code_embedding.weight", "class_embedding.weight", "target_embedding", "head"} <= decayed
    assert "norm.weight" in plain


def test_frozen_weights_stay_away_from_the_optimizers() -> None:
    model = Prior(PRIOR)
    (_, _), (muon,) = parts(model, "muon")
    chosen = min(muon)
    model.get_parameter(chosen).requires_grad_(False)
    groups = [group for optimizer in parts(model, "muon") for group in optimizer]
    assert all(chosen not in group for group in groups)


def test_only_matrices_decay_and_rates_are_those_given() -> None:
    adamw, muon = build_optimizers(Prior(PRIOR), "muon", 1e-3, 0.02, 0.1, betas=(0.9, 0.95))
    assert [g["weight_decay"] for g in adamw.param_groups] == [0.1, 0.0]
    assert {g["lr"] for g in adamw.param_groups} == {1e-3} and adamw.defaults["betas"] == (0.9, 0.95)
    assert [(g["lr"], g["weight_decay"]) for g in muon.param_groups] == [(0.02, 0.1)]
    assert len(build_optimizers(Prior(PRIOR), "adamw", 1e-3, 0.02, 0.1)) == 1


def test_codebooks_do_not_decay() -> None:
    for update in ("gradient", "simvq"):
        tok = Tokenizer(TokenizerConfig(bottleneck=VQConfig(update=update, dim=8, codebook_dim=4)))
        (adamw,) = build_optimizers(tok, "adamw", 1e-3, 0.02, 0.1)
        decayed = {id(p) for group in adamw.param_groups if group["weight_decay"] for p in group["params"]}
        names = {n for n, p in tok.bottleneck.named_parameters() if id(p) in decayed}
        assert names == {"project_in.weight", "project_out.weight"}
