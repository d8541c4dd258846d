"""On a GPU: the search finds the codes that a CPU finds, by which blocks, and how fast.

Left out: the checks themselves (search.py).
"""

from pathlib import Path

import pytest
import torch

from tests.gpu import search
from tests.gpu.card import Card

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

WIDTHS = (1, 2, 3, 8, 16, 17, 31, 64, 65, 128, 255, 256)
PAIRS = ((1, 1), (1, 16384), (16384, 1), (17, 4096), (4096, 17), (1000, 257))
# Vectors x entries x dimensions; those of `benchmark.py search`, and a batch of a small tokenizer.
SHAPES = ((16384, 8192, 64), (16384, 16384, 8), (16384, 16384, 256), (16384, 1024, 64), (4096, 1024, 8))


def test_the_kernel_runs(device: torch.device) -> None:
    search.kernel_runs(device)


def codes_at(width: int, device: torch.device) -> str:
    count = search.codes_of_a_cpu(device, [(m, n, width) for m, n in PAIRS], ["normal", "ties"])
    return f"{count + search.codes_of_a_cpu(device, [(1000, 257, width)], search.KINDS)} codes"


@pytest.mark.parametrize("width", WIDTHS)
def test_codes_are_those_of_a_cpu(width: int, device: torch.device, card: Card) -> None:
    card.note(codes_at(width, device))


@pytest.mark.parametrize("width", [16, 64, 256])
def test_codes_in_high_matmul_precision(width: int, device: torch.device, card: Card) -> None:
    with search.matmul_precision("high"):
        card.note(codes_at(width, device))


@pytest.mark.parametrize("width", [8, 64, 256])
def test_codes_of_many_vectors_are_those_of_a_cpu(width: int, device: torch.device, card: Card) -> None:
    card.note(f"{search.codes_of_a_cpu(device, [(16384, 16384, width)], ['normal'])} codes")


def test_errors_are_those_of_a_cpu(device: torch.device, card: Card) -> None:
    card.note(f"{search.errors_of_a_cpu(device)} kinds")


def test_blocks_run(device: torch.device, card: Card) -> None:
    search.kernel_runs(device)
    card.note(search.usable_blocks(device, [(1000, 700, 64)]))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_time_of_the_search(shape: search.Shape, device: torch.device, card: Card) -> None:
    card.note(search.timed(device, shape, turns=20))


def test_tuned_blocks(device: torch.device, card: Card, tmp_path: Path) -> None:
    search.kernel_runs(device)
    for line in search.tuned(device, SHAPES, 20, tmp_path):
        card.note(line)
