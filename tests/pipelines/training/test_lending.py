"""Blocks that stay in the host's memory while a sharded run evaluates, each on the device for its own pass.

Left out: sharded runs (`processes/test_sharding.py`).
"""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from pipelines.training.averaging import round_weights
from pipelines.training.sharding import bring_whole, lend
from prior import Prior
from prior.layers import Block
from tests.helpers.priors import SOUND, random_codes, random_prior

CPU = torch.device("cpu")
# Blocks of both transformers.
CONFIG = dataclasses.replace(SOUND, pattern="depth", depth=2, inner_depth=2)


def blocks_of(prior: Prior) -> list[Block]:
    return [module for module in prior.modules() if isinstance(module, Block)]


def places(module: nn.Module) -> list[int]:
    return [weight.data_ptr() for weight in module.parameters()]


@pytest.fixture
def lent() -> Prior:
    prior = random_prior(CONFIG)
    lend(prior, CPU)
    return prior


def test_one_block_at_a_time_is_on_the_device(lent: Prior) -> None:
    blocks, codes = blocks_of(lent), random_codes(CONFIG, 2)
    assert len(blocks) == 4
    at_home = [places(block) for block in blocks]
    away = list[list[int]]()

    def look(*_: object) -> None:
        away.append([i for i, block in enumerate(blocks) if places(block) != at_home[i]])

    for block in blocks:
        block.attention.register_forward_hook(look)
    expected = random_prior(CONFIG).nll(codes)
    assert torch.equal(lent.nll(codes), expected)
    assert away == [[0], [1], [2], [3]]
    assert [places(block) for block in blocks] == at_home


def test_a_pass_that_fails_gives_the_block_back(lent: Prior) -> None:
    block = blocks_of(lent)[1]
    at_home = places(block)

    def fail(*_: object) -> None:
        raise ValueError("broken")

    block.ffn.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="broken"):
        lent.nll(random_codes(CONFIG, 2))
    assert places(block) == at_home


def test_weights_that_are_rounded_meanwhile_are_lent(lent: Prior) -> None:
    round_weights(lent)
    rounded = random_prior(CONFIG)
    round_weights(rounded)
    codes = random_codes(CONFIG, 2)
    assert torch.equal(lent.nll(codes), rounded.nll(codes))


def test_a_model_that_is_brought_whole_draws_as_ever(lent: Prior) -> None:
    bring_whole(lent)
    bring_whole(lent)  # nothing is left to do
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks_of(lent))
    expected = random_prior(CONFIG).sample(2, generator=0)
    assert torch.equal(lent.sample(2, generator=0), expected)


def test_all_but_the_blocks_goes_to_the_device() -> None:
    prior = random_prior(CONFIG)
    lend(prior, torch.device("meta"))
    inside = {id(weight) for block in blocks_of(prior) for weight in block.parameters()}
    where: dict[bool, set[str]] = {True: set(), False: set()}
    tensors: list[Tensor] = [*prior.parameters(), *prior.buffers()]
    for tensor in tensors:
        where[id(tensor) in inside].add(tensor.device.type)
    assert where == {True: {"cpu"}, False: {"meta"}}
