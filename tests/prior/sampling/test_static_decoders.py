"""The decoders for GPUs that a prior keeps: one for every power of 2 of sequences, for one thread.

Left out: what their steps give (test_decoder_cuda.py), and CUDA graphs themselves.
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from prior import Prior, PriorConfig
from prior.sampling import decoder_cuda
from prior.sampling import generate as generation
from prior.sampling.decoder import Decoder
from prior.sampling.decoder_cuda import StaticDecoder, static_decoder
from prior.sampling.weights import PreparedWeights
from tests.helpers.decoders import CONFIG, DEPTH, random_prior

# Tracing takes long.
SMALL = dataclasses.replace(CONFIG, depth=1, grid=(2, 3))


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[StaticDecoder]:
    """The decoders that calls were given, with steps traced into one graph each, as for a GPU."""
    given: list[StaticDecoder] = []

    class Traced(StaticDecoder):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, options={"backend": "eager"})

    def chosen(prior: Prior, prepared: PreparedWeights, rows: int, _: int) -> StaticDecoder:
        given.append(static_decoder(prior, prepared, rows))
        return given[-1]

    monkeypatch.setattr(decoder_cuda, "StaticDecoder", Traced)
    monkeypatch.setattr(generation, "chosen_decoder", chosen)
    return given


def sample(prior: Prior, batch_size: int, **options: Any) -> Tensor:
    return prior.sample(batch_size, 0, generator=list(range(batch_size)), **options)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch's own
@pytest.mark.parametrize(
    ("config", "sizes", "rooms"),
    [
        (SMALL, [*range(1, 10), 3, 9, 1], [1, 2, 4, 4, 8, 8, 8, 8, 16, 4, 16, 1]),
        (DEPTH, [3, 1, 4], [4, 1, 4]),
    ],
)
def test_any_numbers_of_sequences_in_any_order(
    config: PriorConfig, sizes: list[int], rooms: list[int], kept: list[StaticDecoder]
) -> None:
    prior = random_prior(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "chosen_decoder", Decoder)
        plain = {size: sample(prior, size) for size in sizes}
    ready = prior.for_sampling()
    for size in sizes:
        assert torch.equal(sample(ready, size), plain[size]), size
    assert [decoder.rows for decoder in kept] == rooms
    assert len({id(decoder) for decoder in kept}) == len(set(rooms))


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
def test_more_priors_than_torch_compiles_one_code_for(kept: list[StaticDecoder]) -> None:
    for width in range(1, torch._dynamo.config.recompile_limit + 2):  # without torch.compiler.reset()
        sample(random_prior(dataclasses.replace(SMALL, grid=(2, width))).for_sampling(), 1)
    assert len({id(decoder) for decoder in kept}) == len(kept)


def test_other_threads_are_refused(kept: list[StaticDecoder]) -> None:
    ready = random_prior(SMALL).for_sampling()
    expected = sample(ready, 2)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match=r"another thread.*for_sampling\(compile=True\)"):
            pool.submit(sample, ready, 2).result()
        assert torch.equal(pool.submit(sample, ready.for_sampling(), 2).result(), expected)
    assert torch.equal(sample(ready, 2), expected)
