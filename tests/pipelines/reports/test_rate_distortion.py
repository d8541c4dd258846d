"""Rate-distortion of sound by the number of codebooks: as text, as JSON and as a plot.

Left out: the rest of the report on sound (test_spectrograms.py), and the metrics
(tokenizer/test_sound_metrics.py).
"""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from pipelines.reports.rate_distortion import (
    quantity,
    rate_distortion_plot,
    rate_distortion_rows,
    rate_distortion_table,
    shown,
)

MEASURED = {
    4: {"bitrate": 1000.0, "si_sdr": 6.0, "mel_distance": 0.41234, "stoi": 0.9, "pesq": math.nan},
    1: {"bitrate": 250.0, "si_sdr": -1.5, "mel_distance": 0.7, "stoi": None, "extra_value": 1234.5678},
}


def test_rate_distortion_as_text() -> None:
    assert rate_distortion_table(MEASURED).split("\n") == [
        "codebooks  bitrate  SI-SDR  mel distance    STOI      PESQ  extra value",
        "            kbit/s      dB         log10  0 to 1  1 to 4.6",
        "        1    0.250   -1.50         0.700       –         –      1234.57",
        "        4    1.000    6.00         0.412   0.900         –            –",
    ]
    assert rate_distortion_table({2: {"usage_x": 1.0}}) == "codebooks  usage x\n        2        1"


def test_rate_distortion_as_json() -> None:
    rows = rate_distortion_rows(MEASURED)
    assert [row["num_codebooks"] for row in rows] == [1, 4]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert rows[1] == {
        **{"num_codebooks": 4, "bitrate": 1000.0, "si_sdr": 6.0, "mel_distance": 0.41234},
        **{"stoi": 0.9, "pesq": None, "extra_value": None},
    }


def test_rate_distortion_plot_has_a_panel_for_each_metric(tmp_path: Path) -> None:
    rate_distortion_plot(MEASURED, tmp_path / "four.png")  # all but the bitrate and PESQ, which has no value
    rate_distortion_plot({k: {"bitrate": 9.0 * k, "stoi": 0.1 * k} for k in (1, 2)}, tmp_path / "one.png")
    rate_distortion_plot({k: {"bitrate": 9.0 * k, "stoi": 0.2 * k} for k in (1, 2)}, tmp_path / "other.png")
    with Image.open(tmp_path / "four.png") as four, Image.open(tmp_path / "one.png") as one:
        assert four.format == one.format == "PNG"
        assert four.width == pytest.approx(3 * one.width, rel=0.01)
        assert four.height == pytest.approx(2 * one.height, rel=0.01)
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "other.png").read_bytes()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_panel_has_a_least_span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    name = "pipelines.reports.rate_distortion.save_figure"
    monkeypatch.setattr(name, lambda figure, path: figures.append(figure))
    measured = {
        k: {"bitrate": 9.0 * k, "psnr": 20 + 1e-5 * k, "l2": 1e-6 * k, "stoi": 0.3 * k} for k in (1, 2)
    }
    rate_distortion_plot(measured, tmp_path / "plot.png")
    spans = {ax.get_title().split(" (")[0]: ax.get_ylim() for ax in figures[0].axes}
    assert spans["PSNR"] == pytest.approx((19.5, 20.5), abs=1e-3)
    assert spans["L2"][1] - spans["L2"][0] == pytest.approx(1e-4)
    low, high = spans["STOI"]
    assert low < 0.3 < 0.6 < high and high - low < 0.4


def test_names_units_and_decimals() -> None:
    wanted = {
        **{"usage": ("codes used", "%", "98.4"), "usage_2": ("codes used, codebook 2", "%", "98.4")},
        **{"encode_speed": ("encode speed", "x real time", "1.0"), "new_3": ("new 3", "", "0.98438")},
    }
    for key, (name, unit, text) in wanted.items():
        assert (quantity(key).name, quantity(key).unit, shown(key, 0.98438)) == (name, unit, text)


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ({}, "measured: expected a metric"),
        ({1: {"bitrate": 10.0}}, "measured: expected a metric"),
        ({1: {"bitrate": 10.0, "stoi": math.nan}}, "measured: expected a metric"),
        ({1: {"stoi": 0.5}, 3: {"stoi": 0.5}}, "measured: expected a bitrate .*got none for 1, 3$"),
        (
            {1: {"stoi": 0.5, "bitrate": 1.0}, 2: {"stoi": 0.6, "bitrate": None}},
            "measured: .*got none for 2$",
        ),
    ],
)
def test_rate_distortion_that_cannot_be_plotted(
    measured: dict[int, dict[str, float | None]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        rate_distortion_plot(measured, tmp_path / "plot.png")
    assert list(tmp_path.iterdir()) == []
