"""On a GPU: compiled steps draw the codes that others do, in CUDA graphs, and how fast.

Left out: the checks themselves (sampling.py).
"""

import pytest
import torch

from prior import PriorConfig
from prior.checks import require_compiler
from tests.gpu import sampling
from tests.gpu.card import Card, NotRun
from tests.helpers.decoders import CONFIG, DEPTH, VARIANTS

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

LARGE = PriorConfig(codebook_size=1024, grid=(8, 8), class_names=("a",), dim=768, depth=12, heads=12)


def needs_a_compiler() -> None:
    try:
        require_compiler("cuda", "compile")
    except ValueError as error:
        raise NotRun(str(error)) from error


@pytest.mark.parametrize("config", [CONFIG, DEPTH], ids=["flatten", "depth"])
def test_compiled_codes_of_1_to_10_sequences(config: PriorConfig, device: torch.device, card: Card) -> None:
    needs_a_compiler()
    card.note(sampling.compiled_codes(device, config, [*range(1, 11), 3, 10, 1]))


@pytest.mark.parametrize("config", VARIANTS[1:], ids=["plain", "delay"])
def test_compiled_codes(config: PriorConfig, device: torch.device, card: Card) -> None:
    needs_a_compiler()
    card.note(sampling.compiled_codes(device, config, [1, 3, 10, 3]))


@pytest.mark.parametrize("batch", [1, 16])
def test_time_of_a_step(batch: int, device: torch.device, card: Card) -> None:
    needs_a_compiler()
    card.note(sampling.speed(device, LARGE, batch, turns=10))
