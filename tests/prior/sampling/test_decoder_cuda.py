"""The decoder for GPUs: its step is one graph, and gives what whole passes give.

Left out: CUDA graphs themselves, and how fast they are.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from prior import Prior, PriorConfig
from prior.sampling import decoder_cuda as decoder_static
from prior.sampling import generate as generation
from prior.sampling.decoder_cuda import StaticDecoder, static_decoder
from prior.sampling.weights import PreparedWeights
from tests.helpers.decoders import CONFIG, DEPTH, VARIANTS, both_logits, random_prior

# By form of the weights, how far logits may be off, as a part of their spread.
OFF = {"full": 1e-5, "bf16": 0.05}


class Traced(StaticDecoder):
    """With its step traced into one graph, as for a GPU, and run as it is."""

    def __init__(self, *arguments: Any) -> None:
        torch.compiler.reset()
        super().__init__(*arguments, options={"backend": "eager"})


# Tracing takes long: of the form of weights, how many rows and which prior, all pairs.
@pytest.mark.parametrize(
    ("config", "batch", "first", "weights"),
    [
        (config, batch, first, [*OFF][(number + many) % 2])
        for number, config in enumerate([*VARIANTS, DEPTH])
        for many, (batch, first) in enumerate([(1, 1), (5, 4)])
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch's own
def test_steps_of_fixed_shapes_give_what_whole_passes_give(
    config: PriorConfig, batch: int, first: int, weights: str
) -> None:
    ours, whole = both_logits(random_prior(config), weights, batch, first, Traced)
    assert (ours - whole).std() / whole.std() < OFF[weights]


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("config", [CONFIG, DEPTH])
def test_one_decoder_serves_all_calls(config: PriorConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = random_prior(config)

    def samples(prior: Prior) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        whole = prior.sample(3, 0, cfg_scale=2.0, generator=generator)
        return [
            whole,
            prior.sample(3, 1, whole[:, :, :2], cfg_scale=2.0, generator=generator),
            prior.sample(2),
        ]

    torch.manual_seed(0)
    expected = samples(prior)
    ready = prior.for_sampling()
    kept = []

    def chosen(prior: Prior, prepared: PreparedWeights, rows: int, _: int) -> StaticDecoder:
        kept.append(static_decoder(prior, prepared, rows))
        assert kept[-1].length == 0
        return kept[-1]

    monkeypatch.setattr(decoder_static, "StaticDecoder", Traced)
    monkeypatch.setattr(generation, "chosen_decoder", chosen)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(samples(ready), expected, strict=True))
    assert kept[0] is kept[1] and kept[2].rows == 2
