"""Plots of a run: how a codebook is used, and how losses and held-out metrics went.

Left out: pictures of the data (pipelines.reports.sheets), and interactive figures.
"""

import json
import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenizer.hub.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

BLUE, ORANGE, GREEN, GREY = "#2f6db5", "#d9622b", "#4f9d4f", "#b8b8b8"
COLORS = {"train": BLUE, "valid": ORANGE}
LOSS_WORDS = ("loss", "l1", "l2", "mse", "ms_ssim", "perceptual", "nll", "kl", "bits")


def codebook_plot(
    counts: Tensor, path: str | Path, codebook: Tensor | None = None, outputs: Tensor | None = None
) -> None:
    """Write a PNG of how often each code is used, sorted: counts (K, N), a panel per codebook.

    With `codebook` (N, D), or (K, N, D), also its vectors on two principal axes, larger where used more, and
    behind them `outputs` (K, M, D), vectors of an encoder that are compared with them; the axes are those of
    the outputs, if there are any. `ValueError` for wrong shapes, or a codebook of which nothing was counted.
    """
    counts = counts.detach().cpu().double()
    if counts.ndim != 2 or counts.numel() == 0:
        raise ValueError(f"expected counts (K, N), got {tuple(counts.shape)}")
    if not bool((counts.sum(1) > 0).all()):
        raise ValueError("the counts of a codebook are all 0; count the codes of some data first")
    vectors = None
    if codebook is not None:
        vectors = codebook.detach().cpu().double()
        vectors = vectors[None] if vectors.ndim == 2 else vectors
        if vectors.ndim != 3 or vectors.shape[:2] != counts.shape or not bool(vectors.isfinite().all()):
            expected = "(N, D) or (K, N, D)" if len(counts) == 1 else "(K, N, D)"
            raise ValueError(
                f"expected a finite codebook {expected} for counts {tuple(counts.shape)}, "
                f"got {tuple(codebook.shape)}"
            )
    if outputs is not None:
        outputs = outputs.detach().cpu().double()
        if vectors is None or outputs.ndim != 3 or outputs.shape[::2] != vectors.shape[::2]:
            wanted = (
                "none without a codebook" if vectors is None else f"{len(vectors)}, M, {vectors.shape[2]}"
            )
            raise ValueError(f"expected outputs ({wanted}), got {tuple(outputs.shape)}")
    each = 1 if vectors is None else 2
    figure, axes = panel_figure(each * len(counts), columns=2)
    for k, count in enumerate(counts):
        _plot_usage(axes[each * k], count, f"codebook {k + 1}: " if len(counts) > 1 else "")
        if vectors is not None:
            _plot_vectors(axes[each * k + 1], count, vectors[k], None if outputs is None else outputs[k])
    save_figure(figure, path)


def _plot_usage(ax: "Axes", count: Tensor, prefix: str) -> None:
    """Sorted counts (N,), with the usage and perplexity in the title."""
    size, used = len(count), int((count > 0).sum())
    perplexity = torch.special.entr(count / count.sum()).sum().exp().item()
    ordered = count.sort(descending=True).values
    ax.stairs(ordered.numpy(), fill=True, color=BLUE)
    even = count.mean().item()
    ax.axhline(even, color=ORANGE, linestyle="--", linewidth=1, label=f"if all were used equally: {even:.4g}")
    if ordered[0] > 20 * ordered[size // 2]:  # on a linear axis most codes would look unused
        ax.set_yscale("log")
        ax.set_ylim(bottom=0.7 * min(1.0, even))
    ax.set(xlim=(0, size), xlabel="codes, most used first", ylabel="times used")
    ax.set_title(f"{prefix}{used} of {size} used ({used / size:.1%}), perplexity {perplexity:.1f}")
    ax.legend(frameon=False)


def _plot_vectors(ax: "Axes", count: Tensor, vectors: Tensor, outputs: Tensor | None) -> None:
    """Vectors (N, D) with an area by their counts (N,), before encoder outputs (M, D) if there are any, on
    the first two principal axes of these, else of the vectors."""
    cloud = vectors if outputs is None else outputs
    centre = cloud.mean(0)
    _, scales, axes = torch.linalg.svd(cloud - centre, full_matrices=False)
    shares = [*(scales.square() / scales.square().sum().clamp(min=1e-30)).tolist(), 0.0]

    def projected(rows: Tensor) -> Tensor:
        points = (rows - centre) @ axes[:2].T
        return torch.nn.functional.pad(points, (0, 2 - points.shape[1]))

    if outputs is not None:
        x, y = projected(outputs).T.numpy()
        ax.scatter(x, y, s=4, color=GREY, alpha=0.5, linewidths=0, zorder=0, label="encoder outputs")
    points, used = projected(vectors), count > 0
    area = 3 + 150 * min(1.0, 128 / len(count)) * count / count.max()
    x, y = points[used].T.numpy()
    label = "used (area: how often)"
    ax.scatter(x, y, s=area[used].numpy(), color=BLUE, alpha=0.6, linewidths=0, label=label)
    if not bool(used.all()):
        x, y = points[~used].T.numpy()
        ax.scatter(x, y, s=14, color=ORANGE, marker="x", linewidths=1, zorder=0, label="never used")
    ax.set(xlabel=f"first principal axis ({shares[0]:.0%} of variance)", ylabel=f"second ({shares[1]:.0%})")
    ax.set_title("codebook vectors" if outputs is None else "codebook vectors and encoder outputs")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(-0.04, -0.14), ncols=3, fontsize="small")


def loss_plot(metrics_jsonl: str | Path, path: str | Path) -> None:
    """Write a PNG of all numbers in a run's metrics.jsonl by step: a panel per quantity, a curve per split.

    The split is what stands before the last "/" of a key ("train/l1"). Losses that are always positive get
    a logarithmic axis. A weighted loss ("loss_l1") has no panel beside the one without its weight. The
    bitrate, what is of single codebooks ("usage_2", see codebook.png) and the speed of training, which
    differs between equal runs, have no panel. Lines that cannot be read, as a killed run leaves, are ignored
    with a warning. `ValueError` if there is nothing to plot.
    """
    panels: dict[str, dict[str, dict[float, float]]] = defaultdict(dict)
    for key, curve in _read_curves(Path(metrics_jsonl)).items():
        split, _, quantity = key.rpartition("/")
        if not re.fullmatch(r"bitrate|items_per_second|(usage|perplexity)_\d+", quantity):
            panels[quantity][split] = curve
    for weighted in [q for q in panels if q.startswith("loss_")]:
        plain = panels.get(weighted.removeprefix("loss_"), {})
        if panels[weighted].keys() <= plain.keys():
            del panels[weighted]
    last = max(step for curves in panels.values() for curve in curves.values() for step in curve)
    figure, axes = panel_figure(len(panels), columns=3)
    for ax, (quantity, curves) in zip(axes, panels.items(), strict=True):
        for split, curve in sorted(curves.items()):
            steps = sorted(curve)
            heights = [curve[s] for s in steps]
            marked = None if len(steps) <= 30 else _lonely(heights)
            color = COLORS.get(split, GREEN)
            ax.plot(steps, heights, "o-", markevery=marked, ms=3.5, lw=1.2, color=color, label=split)
        values = [v for curve in curves.values() for v in curve.values() if math.isfinite(v)]
        if any(word in quantity for word in LOSS_WORDS) and values and min(values) > 0:
            _log_axis(ax, min(values), max(values))
        if len({step for curve in curves.values() for step in curve}) == 1:
            _axes_of_a_point(ax, values, last)
        ax.set(title=quantity, xlabel="step")
        if any(curves):
            ax.legend(frameon=False)
    save_figure(figure, path)


def _lonely(heights: list[float]) -> list[int]:
    """The places of values that no line shows, because the ones beside them are not finite."""
    finite = [False, *map(math.isfinite, heights), False]
    return [i for i in range(len(heights)) if finite[i : i + 3] == [False, True, False]]


def _axes_of_a_point(ax: "Axes", values: list[float], last: float) -> None:
    """Axes from 0, on which a point is no more than that: those that matplotlib chooses show differences of
    a percent or less, and steps that never were."""
    ax.set_xlim(0, 1.05 * max(last, 1.0))
    if values and ax.get_yscale() == "linear":
        low, high = min(0.0, *values), max(0.0, *values)
        ax.set_ylim(*((1.25 * low, 1.25 * high) if low < high else (-1.0, 1.0)))


def _log_axis(ax: "Axes", low: float, high: float) -> None:
    """A logarithmic y axis with plain numbers, unless the values span less than a factor of 2."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if high < 2 * low:
        return
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    if high < 100 * low:  # too few powers of 10 to read the axis by
        ax.yaxis.set_minor_locator(LogLocator(subs=(1.5, 2, 3, 5, 7)))
        ax.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))


def _read_curves(path: Path) -> dict[str, dict[float, float]]:
    """{key: {step: value}}; where a resumed run logged a step again, the later value counts."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    curves: dict[str, dict[float, float]] = defaultdict(dict)
    ignored = 0
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
            step = float(row.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            ignored += 1
            continue
        for key, value in row.items():
            if type(value) in (int, float):
                curves[key][step] = value
    if ignored:
        logger.warning("%s: ignored %d line(s) that are unreadable or without a step", path, ignored)
    if not curves:
        raise ValueError(f'{path}: no line is like {{"step": 10, "train/loss": 0.5}}; was anything logged?')
    return curves


def panel_figure(panels: int, columns: int) -> "tuple[Figure, list[Axes]]":
    """A figure with `panels` axes in rows of at most `columns`; without pyplot it needs no display."""
    from matplotlib.figure import Figure

    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(5.6 * columns, 3.8 * rows), dpi=110, layout="constrained")
    axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[panels:]:
        ax.remove()
    for ax in axes[:panels]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
        ax.set_axisbelow(True)
    return figure, axes[:panels]


def save_figure(figure: "Figure", path: str | Path) -> None:
    # The format is named because the name beside the final one ends in no suffix to infer it from.
    save_picture(path, lambda beside: figure.savefig(beside, format="png"))


def save_picture(path: str | Path, write: Callable[[Path], object]) -> None:
    """Make the folder of `path`, then the file as a whole: `write(beside)` and a rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)
