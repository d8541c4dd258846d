"""Where a prior finds codes hard to predict: bits by position and codebook, in numbers and in a plot.

Left out: the totals (`evaluation.py`), and the likelihood itself (`Prior.likelihood`).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor

from pipelines.evaluation import EVAL_BATCH, code_batches
from pipelines.plots import BLUE, ORANGE, panel_figure, save_figure
from pipelines.run.processes import sum_over_processes
from pipelines.tokens.info import TokenInfo
from pipelines.tokens.items import Rows
from prior import Prior
from tokenizer.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "prior-positions"


@dataclass(frozen=True)
class Positions:
    """Means over items, in bits, (K, *grid): `bits` that codes took, and `entropy` of their predictions."""

    bits: Tensor
    entropy: Tensor

    def by_codebook(self) -> dict[str, float]:
        """bits_per_code_1, ...: of each codebook, if there are several."""
        means = self.bits.flatten(1).mean(1).tolist() if len(self.bits) > 1 else []
        return {f"bits_per_code_{k + 1}": value for k, value in enumerate(means)}


def measure_positions(
    prior: Prior, split: Rows, accelerator: Accelerator, batch_size: int = EVAL_BATCH
) -> Positions:
    """Of all items of `split`, given their labels, each counted once over all processes. `ValueError` if
    there are none."""
    if not len(split):
        raise ValueError("there are no items to measure")
    config = prior.config
    totals = torch.zeros(2, config.num_codebooks, *config.grid, dtype=torch.float64)
    for codes, labels in code_batches(split, accelerator, batch_size):
        totals += torch.stack(prior.likelihood(codes, labels)).double().sum(1).cpu()
    bits, entropy = sum_over_processes(accelerator, totals) / math.log(2) / len(split)
    return Positions(bits, entropy)


def write_positions(positions: Positions, info: TokenInfo, folder: Path) -> None:
    """prior-positions.json, nested lists [codebook][row][column] (sound: [codebook][frame]), and the plot
    prior-positions.png: maps of a picture, curves over the seconds of a window."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"bits": positions.bits.tolist(), "entropy": positions.entropy.tolist()}) + "\n"
    write_atomically(folder / f"{NAME}.json", lambda path: path.write_text(text, encoding="utf-8"))
    count = len(positions.bits)
    figure, axes = panel_figure(2 * count if not info.is_sound else count, columns=2)
    for k in range(count):
        of = f"codebook {k + 1}: " if count > 1 else ""
        bits, entropy = positions.bits[k], positions.entropy[k]
        if info.is_sound:
            _curves(axes[k], of, bits, entropy, info.frame_rate)
        else:
            top = float(torch.maximum(bits, entropy).max())
            _map(axes[2 * k], f"{of}bits per code, mean {float(bits.mean()):.2f}", bits, top)
            _map(axes[2 * k + 1], f"{of}entropy of its predictions", entropy, top)
    save_figure(figure, folder / f"{NAME}.png")


def _map(ax: "Axes", title: str, values: Tensor, top: float) -> None:
    image = ax.imshow(values.numpy(), cmap="viridis", vmin=0, vmax=top)
    ax.grid(False)
    ax.set(title=title, xlabel="column", ylabel="row")
    assert ax.figure is not None
    ax.figure.colorbar(image, ax=ax, shrink=0.9, label="bits")


def _curves(ax: "Axes", of: str, bits: Tensor, entropy: Tensor, frame_rate: float) -> None:
    seconds = torch.arange(len(bits)).div(frame_rate).numpy()
    ax.plot(seconds, bits.numpy(), color=BLUE, lw=1, label="bits that codes took")
    ax.plot(seconds, entropy.numpy(), color=ORANGE, lw=1, ls="--", label="entropy of predictions")
    ax.set(title=f"{of}mean {float(bits.mean()):.2f} bits", xlabel="seconds into the window", ylabel="bits")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
