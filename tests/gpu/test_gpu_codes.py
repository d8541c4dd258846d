"""On a GPU: an example has the same codes alone and in a batch of 256.

Left out: the check itself (codes.py).
"""

import pytest
import torch

from tests.gpu import codes
from tests.gpu.card import Card
from tests.helpers import tiny

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("kind", codes.discrete())
def test_codes_of_small_networks(kind: str, device: torch.device, card: Card) -> None:
    card.note(codes.alone_and_together(device, tiny.tokenizer(kind), tiny.pictures(256, 3, 32, 32)))


def test_codes_of_wide_networks_of_pictures(device: torch.device, card: Card) -> None:
    tok = tiny.tokenizer("vq", strides=(2, 2, 2), widths=(64, 128, 256), blocks=(2, 2, 2), size=(64, 64))
    card.note(codes.alone_and_together(device, tok, tiny.pictures(256, 3, 64, 64)))


def test_codes_of_wide_networks_of_sound(device: torch.device, card: Card) -> None:
    tok = tiny.codec("rvq", strides=(4, 4, 5), widths=(64, 128, 256), blocks=(2, 2, 2), size=(8000,))
    card.note(codes.alone_and_together(device, tok, tiny.sounds(256, 1, 8000)))
