"""On a GPU: NCCL's collectives and FSDP2, in one process.

Left out: the checks themselves (processes.py, training.py).
"""

from pathlib import Path

import pytest
import torch

from prior import PriorConfig
from tests.gpu import processes, training
from tests.gpu.card import Card
from tests.helpers import tiny
from tokenizer.bottlenecks import kinds

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

LARGE = PriorConfig(codebook_size=1024, grid=(16, 16), dim=768, depth=12, heads=12, dropout=0.0)


def test_collectives(device: torch.device, card: Card) -> None:
    card.note(processes.collectives(device))


def test_training_in_a_group(device: torch.device, card: Card) -> None:
    card.note(processes.trained_in_a_group(device, [*kinds(), *tiny.VARIANTS]))


def test_a_sharded_prior(device: torch.device, card: Card) -> None:
    card.note(processes.sharded(device, LARGE, batch=8))


@pytest.mark.parametrize("sharded", [False, True])
def test_steps_and_a_checkpoint_of_a_large_prior(
    sharded: bool, device: torch.device, card: Card, tmp_path: Path
) -> None:
    trained = training.train(device, "prior/base", "bf16", tmp_path / "run", steps=8, sharded=sharded)
    card.note(trained.text())
    assert trained.peak_of_checkpoint <= trained.peak


def test_a_sharded_tokenizer(device: torch.device, card: Card, tmp_path: Path) -> None:
    alone, sharded = (
        training.train(
            device, "tokenizer/emoji", "no", tmp_path / str(s), 12, sharded=s, optimizer="adamw"
        ).losses
        for s in (False, True)
    )
    assert sharded == pytest.approx(alone, rel=0.05)
    card.note(f"loss {sharded[-1]:.4g}, alone {alone[-1]:.4g}")
