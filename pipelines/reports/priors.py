"""What people look at of a prior: samples of each class, and where it finds codes hard to predict."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipelines.evaluation.priors import NAME, Positions
from pipelines.reports.kinds import report_of
from pipelines.reports.plots import BLUE, ORANGE, panel_figure, save_figure
from pipelines.run.models import load_tokenizer, tokenizer_of
from pipelines.tokens.info import TokenInfo
from prior import Prior
from tokenizer.distributed import keyed_generator
from tokenizer.hub.files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)


def write_positions(positions: Positions, info: TokenInfo, folder: Path) -> None:
    """prior-positions.json, nested lists [codebook][row][column] (sound: [codebook][frame]), and the plot
    prior-positions.png: maps of a picture, curves over the seconds of a window."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"bits": positions.bits.tolist(), "entropy": positions.entropy.tolist()}) + "\n"
    write_text(folder / f"{NAME}.json", text)
    count = len(positions.bits)
    over_time = positions.bits.ndim == 2
    figure, axes = panel_figure(count if over_time else 2 * count, columns=2)
    for k in range(count):
        of = f"codebook {k + 1}: " if count > 1 else ""
        bits, entropy = positions.bits[k], positions.entropy[k]
        if over_time:
            _curves(axes[k], of, bits, entropy, info.frame_rate)
        else:
            top = float(torch.maximum(bits, entropy).max())
            _map(axes[2 * k], f"{of}bits per code, mean {float(bits.mean()):.2f}", bits, top)
            _map(axes[2 * k + 1], f"{of}entropy of its predictions", entropy, top)
    save_figure(figure, folder / f"{NAME}.png")


def _map(ax: "Axes", title: str, values: Tensor, top: float) -> None:
    from matplotlib.ticker import MaxNLocator

    image = ax.imshow(values.numpy(), cmap="viridis", vmin=0, vmax=top)
    ax.grid(False)
    ax.set(title=title, xlabel="column", ylabel="row")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    assert ax.figure is not None
    ax.figure.colorbar(image, ax=ax, shrink=0.9, label="bits")


def _curves(ax: "Axes", of: str, bits: Tensor, entropy: Tensor, frame_rate: float) -> None:
    seconds = torch.arange(len(bits)).div(frame_rate).numpy()
    ax.plot(seconds, bits.numpy(), color=BLUE, lw=1, label="bits that codes took")
    ax.plot(seconds, entropy.numpy(), color=ORANGE, lw=1, ls="--", label="entropy of predictions")
    ax.set(title=f"{of}mean {float(bits.mean()):.2f} bits", xlabel="seconds into the window", ylabel="bits")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)


# Classes on a prior's sample.png.
CLASSES = 12


def write_prior_sample(prior: Prior, folder: Path) -> None:
    """sample.png (and what else its modality has), samples of each class, for the prior's card. A tokenizer
    that is not where the prior says, or is not the one it was, leaves the card without them, and the log says
    so."""
    config = prior.config
    try:
        tok = load_tokenizer(str(tokenizer_of(folder, prior))).to(next(prior.parameters()).device)
        prior.check_tokenizer(tok.fingerprint())
    except ValueError as error:
        logger.warning("no sample.png: %s", error)
        return
    shown, rows = report_of(tok.modality), []
    for name in config.class_names[:CLASSES] or ("samples",):
        label = name if config.class_names else None
        scale = 2.0 if label and config.unconditional else 1.0
        codes = prior.sample(
            shown.each, label, temperature=0.9, cfg_scale=scale, generator=keyed_generator(0, name)
        )
        rows.append((name, tok.decode(codes, tok.modality.drawn_size).cpu()))
    shown.card_sample(tok, rows, folder)
