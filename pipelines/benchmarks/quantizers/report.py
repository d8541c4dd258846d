"""What `benchmark.py quantizers` shows: its rows over seeds, a table for each number of bits, and the plot.

Left out: measuring (`training/setup.py`).
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.benchmarks.quantizers.contestants import REFERENCE, Contestant
from pipelines.benchmarks.registry import print_table, ratios, spread
from pipelines.reports.plots import BLUE, ORANGE, panel_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What is measured on every seed, and how it is shown.
COLUMNS = {
    "psnr": ("PSNR, dB", "{:.2f}"),
    "usage_train": ("usage, training", "{:.1%}"),
    "usage_held_out": ("held out", "{:.1%}"),
    "perplexity": ("perplexity", "{:.4g}"),
    "bits_per_code": ("bits per code", "{:.3f}"),
    "bits_per_position": ("per position", "{:.3f}"),
}


@dataclass(frozen=True)
class OverSeeds:
    """A value over seeds."""

    mean: float
    low: float
    high: float

    def shown(self, form: str) -> str:
        """Mean, and least and greatest where they look different."""
        mean, low, high = (form.format(v) for v in (self.mean, self.low, self.high))
        return mean if low == high else f"{mean} ({low}..{high})"


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """Mean, least and greatest."""
    return OverSeeds(statistics.fmean(values), min(values), max(values))


def result(
    contestant: Contestant,
    trainings: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, Sequence[float]],
    memory_mib: float | None,
) -> dict[str, Any]:
    """A contestant's row, as JSON values: its trainings over seeds, its step's time and memory."""
    first = trainings[0]
    return {
        "contestant": contestant.name,
        "peer": contestant.peer,
        "bits": first["bits"],
        "codes": codes(first),
        "seeds": len(trainings),
        **{name: asdict(over_seeds([row[name] for row in trainings])) for name in COLUMNS},
        "step_seconds": asdict(spread(seconds[contestant.name])),
        "step_time_ratio": asdict(ratios(seconds[contestant.name], seconds[REFERENCE])),
        "memory_mib": memory_mib,
    }


def codes(training: Mapping[str, Any]) -> str:
    """What a position's codes are: codebooks × entries, and levels if there are any."""
    chosen = training["config"].get("levels")
    text = f"{training['num_codebooks']} × {training['codebook_size']}"
    return f"{text} ({'·'.join(map(str, chosen))})" if chosen else text


def show(results: Sequence[Mapping[str, Any]], held_out: int) -> None:
    """A table for each number of bits on stdout."""
    for bits in dict.fromkeys(row["bits"] for row in results):
        rows = [row for row in results if row["bits"] == bits]
        print_table(
            f"{bits} bits per position: mean over {rows[0]['seeds']} seed(s) (least..greatest); quality, "
            f"perplexity and bits of the prior\non {held_out} held-out pictures; time of a training step / "
            f"{REFERENCE}'s, in turns; memory of the bottleneck's part of it",
            [
                ("", "codes", *(head for head, _ in COLUMNS.values()), "step time", "memory, MiB"),
                *(_cells(row) for row in rows),
            ],
        )


def _cells(row: Mapping[str, Any]) -> list[str]:
    ratio = row["step_time_ratio"]
    return [
        row["contestant"],
        row["codes"],
        *(OverSeeds(**row[name]).shown(form) for name, (_, form) in COLUMNS.items()),
        f"{ratio['median']:.2f} ({ratio['low']:.2f}..{ratio['high']:.2f})",
        "–" if row["memory_mib"] is None else f"{row['memory_mib']:.1f}",
    ]


def plot(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a PNG of PSNR over the bits per position that the prior needs, a panel for each number of bits
    and a point with its spread for each contestant."""
    sizes = list(dict.fromkeys(row["bits"] for row in results))
    figure, axes = panel_figure(len(sizes), columns=2)
    figure.set_size_inches(figure.get_figwidth() * 1.35, figure.get_figheight() * 1.25)
    for ax, bits in zip(axes, sizes, strict=True):
        rows = sorted((r for r in results if r["bits"] == bits), key=lambda r: r["psnr"]["mean"])
        for peer, color, label in ((False, BLUE, "ours"), (True, ORANGE, "peers")):
            if chosen := [r for r in rows if r["peer"] == peer]:
                _points(ax, chosen, color, label)
        _labels(ax, rows)
        ax.set(xlabel="bits per position of a small prior (lower: easier to learn)", ylabel="PSNR, dB")
        ax.set_title(f"{bits} bits per position, {rows[0]['seeds']} seed(s)")
        ax.legend(frameon=False, loc="lower right")
    save_figure(figure, path)


def _points(ax: "Axes", rows: Sequence[Mapping[str, Any]], color: str, label: str) -> None:
    """Means, with bars from the least to the greatest of all seeds."""
    x, y = ([r[name] for r in rows] for name in ("bits_per_position", "psnr"))
    (x_mean, x_bars), (y_mean, y_bars) = _bars(x), _bars(y)
    style: dict[str, Any] = {"fmt": "o", "ms": 5, "elinewidth": 1, "alpha": 0.9, "linewidth": 0}
    ax.errorbar(x_mean, y_mean, yerr=y_bars, xerr=x_bars, color=color, label=label, **style)


def _bars(values: Sequence[Mapping[str, float]]) -> tuple[list[float], list[list[float]]]:
    """Means, and how far bars reach below and above them. A mean may lie beyond all values by rounding."""
    below = [max(0.0, v["mean"] - v["low"]) for v in values]
    above = [max(0.0, v["high"] - v["mean"]) for v in values]
    return [v["mean"] for v in values], [below, above]


def _labels(ax: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    """Names of the rows, PSNR rising, in a column at the right: points often lie too close for names."""
    points = [(row["bits_per_position"]["mean"], row["psnr"]["mean"]) for row in rows]
    to_axes = ax.transData + ax.transAxes.inverted()
    heights = spaced([float(to_axes.transform(point)[1]) for point in points])
    for row, point, height in zip(rows, points, heights, strict=True):
        ax.annotate(
            row["contestant"],
            point,
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=ORANGE if row["peer"] else BLUE,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "0.7", "relpos": (0, 0.5), "shrinkB": 3},
        )


def spaced(heights: Sequence[float], gap: float = 0.05) -> list[float]:
    """Rising heights in [0, 1] moved up as far as needed to lie `gap` apart, and down again from above 1."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    top = 1 + gap
    for i in reversed(range(len(moved))):
        moved[i] = top = min(moved[i], top - gap)
    return moved
