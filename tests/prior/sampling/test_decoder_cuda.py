"""The decoder for GPUs: its step is one graph, and gives what whole passes give.

Left out: CUDA graphs themselves, and how fast they are; mixed devices (prior/test_devices.py).
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from prior import Prior, PriorConfig
from prior.sampling import decoder_cuda as decoder_static
from prior.sampling import generate as generation
from prior.sampling.decoder import Decoder
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


@dataclass
class Recorded:
    """Graphs that torch.compile makes, run as they are. Of each: the inputs that are to lie in the same place
    in every call, those that it changes, and the tensors of each call."""

    static: list[set[int]] = field(default_factory=list)
    changed: list[set[int]] = field(default_factory=list)
    calls: list[list[list[Tensor]]] = field(default_factory=list)

    def compiler(self) -> Any:
        return aot_autograd(fw_compiler=self._compiled, keep_inference_input_mutations=True)

    def _compiled(self, graph: torch.fx.GraphModule, _: Any) -> Any:
        known = torch._guards.TracingContext.get().fw_metadata
        self.static.append(set(known.static_input_indices))
        self.changed.append({i for i, of in enumerate(known.input_info) if of.mutates_data})
        self.calls.append(calls := [])

        def run(*inputs: Tensor) -> Any:
            calls.append([*inputs])
            return graph(*inputs)

        return make_boxed_func(run)


# What a CUDA graph would copy before every step, or refuse to be captured with, if it were not so.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize(("config", "weights"), [(CONFIG, "full"), (DEPTH, "bf16")])
def test_a_graph_finds_all_but_its_input_where_it_was(config: PriorConfig, weights: Any) -> None:
    recorded = Recorded()

    class Graphs(StaticDecoder):
        def __init__(self, *arguments: Any) -> None:
            torch.compiler.reset()
            super().__init__(*arguments, options={"backend": recorded.compiler()})
            decoders.append(self)

    decoders: list[Graphs] = []
    prior = random_prior(dataclasses.replace(config, depth=1))
    ours, _ = both_logits(prior, weights, 2, 2, Graphs)
    expected, _ = both_logits(prior, weights, 2, 2, Decoder)
    torch.testing.assert_close(ours, expected, atol=1e-5 if weights == "full" else 0.05, rtol=0)
    (decoder,) = decoders
    ((calls,), (static,), (changed,)) = recorded.calls, recorded.static, recorded.changed  # one graph
    assert len(calls) == decoder.length - 2 and changed <= static
    free = set(range(len(calls[0]))) - static
    assert len(free) == 1 and calls[0][free.pop()].shape == (2, config.dim)
    for i in static:
        assert len({call[i].data_ptr() for call in calls}) == 1
    assert {calls[0][i].data_ptr() for i in changed} == {cache.data_ptr() for cache in decoder.both}
