"""Bits and entropies by position: means over items by hand, the file, and plots of pictures and sound.

Left out: the likelihood itself (prior/test_model.py).
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from pipelines.evaluation.priors import Positions, measure_positions
from pipelines.reports.priors import write_positions
from pipelines.tokens.info import TokenInfo
from pipelines.tokens.items import TokenSplit
from prior import PriorConfig
from tests.helpers.priors import PICTURE, SOUND, random_codes, random_prior
from tests.helpers.running import as_a_new_process, size_of


def info(config: PriorConfig, frame_rate: float = 0.0) -> TokenInfo:
    return TokenInfo(
        tokenizer="tok",
        fingerprint="abc",
        codebook_size=config.codebook_size,
        num_codebooks=config.num_codebooks,
        grid=config.grid,
        item_shape=(1,) if frame_rate else (3, 12, 16),
        frame_rate=frame_rate,
        sample_rate=round(frame_rate * 10),
        stride=10 if frame_rate else 0,
    )


@pytest.mark.parametrize("config", [PICTURE, SOUND])
def test_means_over_items(config: PriorConfig) -> None:
    prior, codes, labels = random_prior(config), random_codes(config, 7), np.arange(7) % 4 - 1
    with as_a_new_process():
        found = measure_positions(prior, TokenSplit(codes.numpy(), labels), Accelerator(cpu=True), 3)
        with pytest.raises(ValueError, match=r"split: expected an item .*got none; give data"):
            measure_positions(prior, TokenSplit(codes.numpy()[:0], labels[:0]), Accelerator(cpu=True))
    expected = prior.likelihood(codes, torch.from_numpy(labels))
    torch.testing.assert_close(found.bits, expected.nats.mean(0) / math.log(2))
    torch.testing.assert_close(found.entropy, expected.entropy.mean(0) / math.log(2))
    assert (found.entropy > 0).all() and (found.entropy <= math.log2(5)).all()
    per_codebook = found.by_codebook()
    assert list(per_codebook) == ([] if config is PICTURE else ["bits_per_code_1", "bits_per_code_2"])
    for k, value in enumerate(per_codebook.values()):
        assert value == pytest.approx(float(found.bits[k].mean()))


@pytest.mark.parametrize(("config", "frame_rate", "panels"), [(PICTURE, 0.0, 2), (SOUND, 50.0, 2)])
def test_numbers_and_plot_are_written(
    config: PriorConfig, frame_rate: float, panels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    bits, entropy = torch.rand(2, config.num_codebooks, *config.grid, generator=generator).double() * 5
    write_positions(Positions(bits, entropy), info(config, frame_rate), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"prior-positions.json", "prior-positions.png"}
    assert json.loads((tmp_path / "prior-positions.json").read_text()) == {
        "bits": bits.tolist(),
        "entropy": entropy.tolist(),
    }
    assert min(size_of(tmp_path / "prior-positions.png")) > 300
    figures = []
    monkeypatch.setattr("pipelines.reports.priors.save_figure", lambda figure, path: figures.append(figure))
    write_positions(Positions(bits, entropy), info(config, frame_rate), tmp_path)
    axes = [ax for ax in figures[0].axes if ax.get_title()]
    assert len(axes) == panels
    if frame_rate:
        for k, ax in enumerate(axes):
            (first, second), name = ax.get_lines(), ax.get_title()
            assert np.array_equal(first.get_ydata(), bits[k]) and np.array_equal(
                second.get_ydata(), entropy[k]
            )
            assert np.allclose(first.get_xdata(), np.arange(6) / 50)
            assert name == f"codebook {k + 1}: mean {float(bits[k].mean()):.2f} bits"
    else:
        shown = [ax.get_images()[0].get_array() for ax in axes]
        assert np.array_equal(shown[0], bits[0]) and np.array_equal(shown[1], entropy[0])
        for ticks in (axes[0].get_xticks(), axes[0].get_yticks()):
            assert np.array_equal(ticks, np.round(ticks))
