"""On a GPU: each preset trains in each precision, without waiting for the device, and goes on where it was
stopped.

Left out: the checks themselves (training.py).
"""

from pathlib import Path

import pytest
import torch

from tests.gpu import training
from tests.gpu.card import Card, NotRun

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("precision", training.PRECISIONS)
@pytest.mark.parametrize("name", training.preset_names())
def test_steps_of_presets(
    name: str, precision: str, device: torch.device, card: Card, tmp_path: Path
) -> None:
    try:
        trained = training.train(device, name, precision, tmp_path / "run")
    except torch.OutOfMemoryError as error:
        raise NotRun(f"the card's memory is too small for {name} in {precision}") from error
    card.note(trained.text())
    trained.waits.check(trained.counted_steps)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_run_goes_on(deterministic: bool, device: torch.device, card: Card, tmp_path: Path) -> None:
    card.note(training.stop_and_go_on(device, tmp_path, deterministic))
