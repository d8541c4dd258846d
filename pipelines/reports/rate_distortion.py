"""How good rebuilt sound is at each number of codebooks: as rows, a table of text, and a plot.

Left out: measuring (`tokenizer.sound_metrics`, `tokenizer.spectral`).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.reports.plots import BLUE, panel_figure, save_figure

# {number of codebooks: {name of a metric: value}}, with "bitrate" in bits per second.
RateDistortion = Mapping[int, Mapping[str, float | None]]


@dataclass(frozen=True)
class Quantity:
    """How a metric is shown: its name, unit, which way is better ("" if neither), and decimals, None for six
    digits."""

    name: str
    unit: str = ""
    better: str = ""
    decimals: int | None = 3
    scale: float = 1.0


QUANTITIES = {
    "bitrate": Quantity("bitrate", "kbit/s", "", 3, 1e-3),
    "si_sdr": Quantity("SI-SDR", "dB", "higher", 2),
    "mel_distance": Quantity("mel distance", "log10", "lower"),
    "stft_distance": Quantity("STFT distance", "", "lower"),
    "stoi": Quantity("STOI", "0 to 1", "higher"),
    "pesq": Quantity("PESQ", "1 to 4.6", "higher", 2),
    "dnsmos": Quantity("DNSMOS", "1 to 5", "higher", 2),
    "dnsmos_original": Quantity("DNSMOS of the data", "1 to 5", "", 2),
    "psnr": Quantity("PSNR", "dB", "higher", 2),
    "l1": Quantity("L1", "", "lower", 4),
    "l2": Quantity("L2", "", "lower", 5),
    "usage": Quantity("codes used", "%", "", 1, 100),
    "usage_least": Quantity("codes used, least of the codebooks", "%", "", 1, 100),
    "perplexity": Quantity("perplexity", "codes", "", 1),
    "bits_per_code": Quantity("bits per code", "bits", "lower"),
    "encode_speed": Quantity("encode speed", "x real time", "higher", 1),
    "decode_speed": Quantity("decode speed", "x real time", "higher", 1),
}
# Least height of a panel: as a share of the largest value, and in units of the last decimal that is shown.
LEAST_SHARE, LEAST_UNITS = 0.05, 10


def quantity(key: str) -> Quantity:
    """How the metric `key`, perhaps of one codebook ("usage_2"), is shown; one that is not known keeps its
    key as its name."""
    of_one = re.fullmatch(r"(.+)_(\d+)", key)
    if key not in QUANTITIES and of_one and of_one[1] in QUANTITIES:
        whole = QUANTITIES[of_one[1]]
        return replace(whole, name=f"{whole.name}, codebook {of_one[2]}")
    return QUANTITIES.get(key, Quantity(key.replace("_", " "), decimals=None))


def shown(key: str, value: float | None) -> str:
    """A value of the metric `key` in its unit, with its decimals; "–" for None and NaN."""
    if value is None or math.isnan(value):
        return "–"
    what = quantity(key)
    return f"{value:.6g}" if what.decimals is None else f"{value * what.scale:.{what.decimals}f}"


def rate_distortion_rows(measured: RateDistortion) -> list[dict[str, float | None]]:
    """For JSON: a dict for each number of codebooks, fewest first, None for what was not measured or is not
    finite."""
    keys = _keys(measured)
    return [
        {"num_codebooks": k} | {key: _finite(measured[k].get(key)) for key in keys} for k in sorted(measured)
    ]


def rate_distortion_table(measured: RateDistortion) -> str:
    """A line of text for each number of codebooks, fewest first, under a line of names and one of units."""
    keys = _keys(measured)
    names = ["codebooks", *(quantity(key).name for key in keys)]
    units = ["", *(quantity(key).unit for key in keys)]
    lines = [[str(k), *(shown(key, measured[k].get(key)) for key in keys)] for k in sorted(measured)]
    widths = [max(map(len, column)) for column in zip(names, units, *lines, strict=True)]
    rows = [names, units, *lines] if any(units) else [names, *lines]
    return "\n".join("  ".join(map(str.rjust, row, widths)).rstrip() for row in rows)


def rate_distortion_plot(measured: RateDistortion, path: str | Path) -> None:
    """Write a PNG with a panel for each metric over the bitrate, its points labelled by number of codebooks.

    Values that are missing or not finite are left out. `ValueError` if nothing is left, or a number of
    codebooks has no bitrate.
    """
    rows = rate_distortion_rows(measured)
    if without := [row["num_codebooks"] for row in rows if row.get("bitrate") is None]:
        raise ValueError(
            "measured: expected a bitrate in bits per second for every number of codebooks, got none for "
            f"{', '.join(map(str, without))}"
        )
    keys = [key for key in _keys(measured) if key != "bitrate" and any(row[key] is not None for row in rows)]
    if not keys:
        raise ValueError(f"measured: expected a metric for some number of codebooks, got {dict(measured)}")
    figure, axes = panel_figure(len(keys), columns=3)
    for ax, key in zip(axes, keys, strict=True):
        what = quantity(key)
        points = {}
        for row in rows:
            bits, value, k = row["bitrate"], row[key], row["num_codebooks"]
            if bits is not None and value is not None:
                points[k] = (bits / 1000, value * what.scale)
        ax.plot(*zip(*points.values(), strict=True), "o-", color=BLUE, ms=4.5, lw=1.4)
        for k, (x, y) in points.items():
            # Above a curve that falls and below one that rises there is room on the right.
            below = what.better == "higher"
            offset, side = ((5, -5), "top") if below else ((5, 5), "bottom")
            ax.annotate(str(k), (x, y), offset, textcoords="offset points", va=side, fontsize=8)
        ax.margins(x=0.08, y=0.14)
        heights = [y for _, y in points.values()]
        missing = least_span(what, heights) - (max(heights) - min(heights))
        if missing > 0:  # differences that nobody hears or sees must not fill the panel
            ax.set_ylim(min(heights) - missing / 2, max(heights) + missing / 2)
        ax.set(xlabel="kbit/s (points: codebooks)", ylabel=what.unit)
        ax.set_title(what.name + (f" ({what.better} is better)" if what.better else ""))
    save_figure(figure, path)


def least_span(what: Quantity, heights: list[float]) -> float:
    """The least height of a panel of these values."""
    resolution = 0.0 if what.decimals is None else LEAST_UNITS * 10.0**-what.decimals
    return max(LEAST_SHARE * max(map(abs, heights)), resolution)


def _keys(measured: RateDistortion) -> list[str]:
    """All metrics, the bitrate first, then in the order of `QUANTITIES`, then as they come."""
    found = dict.fromkeys(key for k in sorted(measured) for key in measured[k])
    known = [key for key in QUANTITIES if key in found]
    return known + [key for key in found if key not in QUANTITIES]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
