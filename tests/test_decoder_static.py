"""The decoder for GPUs: its step is one graph, and gives what whole passes give.

Left out: CUDA graphs themselves, and how fast they are.
"""

from typing import Any

import pytest
import torch
from test_decoder import DEPTH, VARIANTS, both_logits, random_prior

from prior import PriorConfig
from prior.decoder_static import StaticDecoder


class Traced(StaticDecoder):
    """With its step traced into one graph, as for a GPU, and run as it is."""

    def __init__(self, *arguments: Any) -> None:
        torch.compiler.reset()
        super().__init__(*arguments, options={"backend": "eager"})


@pytest.mark.parametrize("config", [*VARIANTS, DEPTH])
@pytest.mark.parametrize(("batch", "first"), [(1, 1), (5, 4)])
@pytest.mark.parametrize(("weights", "off"), [("full", 1e-5), ("bf16", 0.05)])
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch's own
def test_steps_of_fixed_shapes_give_what_whole_passes_give(
    config: PriorConfig, batch: int, first: int, weights: str, off: float
) -> None:
    ours, whole = both_logits(random_prior(config), weights, batch, first, Traced)
    assert (ours - whole).std() / whole.std() < off
