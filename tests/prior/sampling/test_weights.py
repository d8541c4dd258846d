"""Weights made ready for sampling follow those that they were made of, whatever changes them.

Left out: what the forms of weights compute (test_decoder.py), and a GPU.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prior import Prior, PriorConfig
from prior.sampling.weights import LOOKED_AT, WEIGHTS
from tests.helpers import decoders
from tests.helpers.decoders import CONFIG, DEPTH

# Few codes: what was changed shows in each of them.
SMALL = dataclasses.replace(CONFIG, grid=(2, 2), depth=2)


def random_prior(config: PriorConfig = SMALL, scale: float = 0.1) -> Prior:
    return decoders.random_prior(config, scale)


def fresh(prior: Prior, weights: Any, compile: bool) -> Prior:
    """A copy of a prior of these weights that has drawn nothing yet."""
    return copy.deepcopy(prior).for_sampling(weights, compile)


def drawn(prior: Prior) -> list[Tensor]:
    """Codes of few and of many at once, which read other forms of the weights."""
    mask = torch.ones(SMALL.grid, dtype=torch.bool)
    codes = prior.sample(5, 1, generator=3)
    return [prior.sample(1, 1, generator=2), codes, prior.inpaint(codes, mask, 1, generator=4)]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def step(prior: Prior, make: Callable[..., torch.optim.Optimizer]) -> None:
    """One step of an optimizer that reverses most weights: what is drawn is sure to differ."""
    for parameter in prior.parameters():
        parameter.grad = 2 * parameter.detach().clone()
    make(prior.parameters(), lr=1.0).step()


def through_half(prior: Prior) -> None:
    """Rounds the weights, and leaves them in their old type."""
    prior.to(torch.float16).to(torch.float32)


def through_data(prior: Prior) -> None:
    for parameter in prior.parameters():
        parameter.data.neg_()


def beside(weight: Tensor) -> None:
    """Changes a matrix, but for the numbers that are looked at."""
    weight.view(LOOKED_AT, -1)[:, 1:].mul_(-3)


def replaced(prior: Prior) -> None:
    """The same, in a matrix that lies elsewhere from now on."""
    weight = prior.blocks[0].attention.qkv.weight
    weight.data = weight.detach().clone()
    beside(weight.data)


CHANGES: dict[str, Callable[[Prior], object]] = {
    "sgd": lambda p: step(p, torch.optim.SGD),
    # Torch does not count what these change.
    "fused": lambda p: step(p, lambda q, lr: torch.optim.AdamW(q, lr=lr, fused=True)),
    "data": through_data,
    "load_state_dict": lambda p: p.load_state_dict(random_prior(p.config, scale=0.3).state_dict()),
    "assign": lambda p: p.load_state_dict(random_prior(p.config, scale=0.3).state_dict(), assign=True),
    "double": lambda p: p.double(),
    "half": through_half,
    "unseen": lambda p: beside(p.blocks[0].attention.qkv.weight.detach()),
    "replaced": replaced,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("weights", "compile"), [*((w, False) for w in WEIGHTS), ("full", True), ("int8", True)]
)
def test_the_next_call_reads_the_weights_of_now(change: str, weights: Any, compile: bool) -> None:
    prior = random_prior()
    fast = prior.for_sampling(weights, compile)
    before = drawn(fast)
    CHANGES[change](prior)
    after = drawn(fast)
    assert equal(after, drawn(fresh(prior, weights, compile)))
    assert change in ("double", "half") or not equal(after, before)


@pytest.mark.parametrize("compile", [False, True])
def test_those_of_a_depth_transformer_too(compile: bool) -> None:
    prior = random_prior(DEPTH)
    fast = prior.for_sampling(compile=compile)
    before = fast.sample(5, generator=3)
    assert prior.inner is not None
    with torch.no_grad():
        prior.inner.blocks[0].ffn.out.weight.mul_(-3)
        prior.inner.start.weight.mul_(-3)
    after = fast.sample(5, generator=3)
    assert torch.equal(after, fresh(prior, "full", compile).sample(5, generator=3))
    assert not torch.equal(after, before)


def test_what_did_not_change_is_made_once() -> None:
    fast = random_prior().for_sampling()
    drawn(fast)
    assert fast.prepared is not None
    made = fast.prepared.of(fast, 1), fast.prepared.of(fast, 5)
    drawn(fast)
    fast.train()
    fast.nll(fast.sample(2))
    assert made == (fast.prepared.of(fast, 1), fast.prepared.of(fast, 5))


def test_weights_of_inference_mode_serve_too() -> None:
    with torch.inference_mode():
        fast = random_prior().for_sampling()
        before = drawn(fast)
        through_data(fast)
        assert not equal(drawn(fast), before)


def test_a_device_that_has_not_what_was_asked_for_is_refused() -> None:
    fast = random_prior().for_sampling("int8")
    drawn(fast)
    assert fast.prepared is not None
    fast.to("meta")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"weights: int8.*CPUs.*meta.*bf16"):
            fast.prepared.follow(fast)
