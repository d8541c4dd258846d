"""Plots are whole PNG files that follow their data, and survive the log of a killed run."""

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipelines.reports.plots import codebook_plot, loss_plot


def png(path: Path) -> bytes:
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 300
        assert len(picture.convert("L").getcolors() or []) > 10
    return path.read_bytes()


def test_codebook_plot_follows_its_data(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    even, skewed = torch.full((1, 64), 10), (1000 / torch.arange(1, 65) ** 3).long()[None]
    vectors = torch.randn(64, 4, generator=generator)
    pictures = []
    for i, (counts, codebook) in enumerate(
        [
            (even, None),
            (skewed, None),
            (even, vectors),
            (even, vectors.flip(1) ** 2),
            (skewed, vectors[:, :1]),
        ]
    ):
        codebook_plot(counts, tmp_path / f"{i}.png", codebook)
        pictures.append(png(tmp_path / f"{i}.png"))
    assert len(set(pictures)) == len(pictures)
    codebook_plot(torch.cat([even, skewed]), tmp_path / "two.png", torch.stack([vectors, vectors]))
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "2.png") as one:
        assert two.height > 1.5 * one.height  # a line of panels for each codebook
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".png"] * 6


def test_encoder_outputs_lie_behind_the_codebook_and_choose_the_axes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    monkeypatch.setattr("pipelines.reports.plots.save_figure", lambda figure, path: figures.append(figure))
    generator = torch.Generator().manual_seed(0)
    counts, vectors = torch.full((1, 64), 10), torch.randn(64, 4, generator=generator)
    outputs = torch.randn(1, 300, 4, generator=generator) * torch.tensor([1.0, 9, 1, 1])
    codebook_plot(counts, tmp_path / "plot.png", vectors, outputs)
    axes = figures[0].axes[1]
    assert axes.get_xlabel() == "first principal axis (97% of variance)"
    cloud, entries = (points.get_offsets() for points in axes.collections)
    assert cloud.shape == (300, 2) and entries.shape == (64, 2)
    along = vectors[:, 1] - outputs[0, :, 1].mean()  # the longest direction of the outputs, almost
    assert abs(entries[:, 0]).mean() == pytest.approx(along.abs().mean().item(), rel=0.1)
    for codebook, wrong in ((None, outputs), (vectors, outputs[0]), (vectors, outputs[..., :3])):
        with pytest.raises(ValueError, match=r"expected outputs .*got \("):
            codebook_plot(counts, tmp_path / "plot.png", codebook, wrong)


def test_codebook_plot_refuses_what_it_cannot_show(tmp_path: Path) -> None:
    for counts, codebook, message in [
        (torch.zeros(0, 0), None, r"counts \(K, N\), got \(0, 0\)"),
        (torch.zeros(8), None, r"counts \(K, N\), got \(8,\)"),
        (torch.zeros(1, 8), None, "counts .*all 0.*count"),
        (
            torch.ones(1, 8),
            torch.zeros(7, 2),
            r"codebook \(N, D\) or \(K, N, D\) for counts \(1, 8\), got \(7, 2\)",
        ),
        (torch.ones(2, 8), torch.zeros(8, 2), r"codebook \(K, N, D\) for counts \(2, 8\), got \(8, 2\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            codebook_plot(counts, tmp_path / "plot.png", codebook)


def test_the_line_of_equal_use_lies_on_the_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr("pipelines.reports.plots.save_figure", lambda figure, path: figures.append(figure))
    counts = torch.zeros(1, 1000)
    counts[0, :2] = 100  # 0.2 each, if all were used equally
    codebook_plot(counts, tmp_path / "plot.png")
    (axes,) = figures[0].axes
    assert axes.get_yscale() == "log" and axes.get_ylim()[0] < 0.2 < axes.get_ylim()[1]


def write_log(path: Path, scale: float = 1.0, tail: str = "") -> Path:
    rows = [
        {"step": s, "train/loss": scale / (s + 1), "train/note": "text", "train/ok": True} for s in range(9)
    ]
    rows += [{"step": s, "valid/psnr": 20.0 + s, "valid/loss": 1.1 * scale / (s + 1)} for s in (4, 8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return path


def test_loss_plot_follows_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = write_log(tmp_path / "one.jsonl"), write_log(tmp_path / "two.jsonl", scale=3)
    loss_plot(one, tmp_path / "one.png")
    loss_plot(two, tmp_path / "two.png")
    assert png(tmp_path / "one.png") != png(tmp_path / "two.png")
    assert caplog.records == []
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width > 1000 and picture.height < 600  # two panels: loss (train and valid) and psnr


def test_loss_plot_ignores_a_half_written_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loss_plot(write_log(tmp_path / "whole.jsonl"), tmp_path / "whole.png")
    with caplog.at_level(logging.WARNING):
        loss_plot(write_log(tmp_path / "cut.jsonl", tail='{"step": 9, "train/lo'), tmp_path / "cut.png")
    assert "cut.jsonl: ignored 1 line" in caplog.text
    assert png(tmp_path / "whole.png") == png(tmp_path / "cut.png")


def test_loss_plot_takes_the_later_of_two_values_for_a_step(tmp_path: Path) -> None:
    again = '{"step": 8, "train/loss": 0.5}\n'
    loss_plot(write_log(tmp_path / "a.jsonl", tail=again), tmp_path / "a.png")
    loss_plot(
        write_log(tmp_path / "b.jsonl", tail='{"step": 8, "train/loss": 0.9}\n' + again), tmp_path / "b.png"
    )
    assert png(tmp_path / "a.png") == png(tmp_path / "b.png")


@pytest.mark.parametrize(
    "single",
    [
        '{"step": 8, "valid/usage_1": 0.5, "valid/perplexity_12": 7.0, "valid/bitrate": 900}\n',
        '{"step": 8, "train/items_per_second": 31.5}\n',  # it would make plots of equal runs differ
    ],
)
def test_loss_plot_leaves_single_codebooks_and_the_speed_out(single: str, tmp_path: Path) -> None:
    loss_plot(write_log(tmp_path / "a.jsonl"), tmp_path / "a.png")
    loss_plot(write_log(tmp_path / "b.jsonl", tail=single), tmp_path / "b.png")
    assert png(tmp_path / "a.png") == png(tmp_path / "b.png")


def test_loss_plot_survives_odd_values(tmp_path: Path) -> None:
    lines = [
        '{"step": 1, "loss": NaN}',
        '{"step": 2, "loss": -1.5}',
        '{"step": 3, "loss": Infinity, "x/l1": 0}',
    ]
    (tmp_path / "odd.jsonl").write_text("\n".join(lines))
    loss_plot(tmp_path / "odd.jsonl", tmp_path / "odd.png")
    assert png(tmp_path / "odd.png")


def test_loss_plot_refuses_empty_and_missing_logs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl: .*No such file"):
        loss_plot(tmp_path / "none.jsonl", tmp_path / "plot.png")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"empty\.jsonl: .*\"step\": 10"):
        loss_plot(tmp_path / "empty.jsonl", tmp_path / "plot.png")


@pytest.mark.parametrize("points", [1, 80])
def test_values_that_no_line_joins_are_points(
    points: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One value alone, and in a long log one between steps that were not finite."""
    figures = []
    monkeypatch.setattr("pipelines.reports.plots.save_figure", lambda figure, path: figures.append(figure))
    rows = [{"step": s, "train/loss": 2.0 if s == 3 or s > 9 else math.nan} for s in range(3, 3 + points)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loss_plot(tmp_path / "log.jsonl", tmp_path / "plot.png")
    (line,) = figures[0].axes[0].lines
    assert line.get_marker() == "o" and line.get_markevery() == (None if points == 1 else [0])


def test_a_point_alone_has_axes_from_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr("pipelines.reports.plots.save_figure", lambda figure, path: figures.append(figure))
    alone = {"train/x": 3.0, "valid/x": 4.0, "train/y": -2.0, "train/z": 0.0, "train/w": math.nan}
    rows = [{"step": 5, "train/loss": 2.0}, {"step": 20, "train/loss": 1.5, **alone}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loss_plot(tmp_path / "log.jsonl", tmp_path / "plot.png")
    axes = {ax.get_title(): ax for ax in figures[0].axes}
    for name, height in (("x", (0, 5)), ("y", (-2.5, 0)), ("z", (-1, 1))):
        assert axes[name].get_xlim() == (0, 21) and axes[name].get_ylim() == height
    assert axes["w"].get_xlim() == (0, 21) and axes["loss"].get_xlim() != (0, 21)


def test_a_weighted_loss_stands_aside_for_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    monkeypatch.setattr("pipelines.reports.plots.save_figure", lambda figure, path: figures.append(figure))
    row = {"step": 5, "train/loss_l2": 2.0, "train/l2": 2.0, "train/loss_mel": 1.0, "valid/mel": 1.0}
    (tmp_path / "log.jsonl").write_text(json.dumps(row | {"train/loss_kl": 1.0}) + "\n")
    loss_plot(tmp_path / "log.jsonl", tmp_path / "plot.png")
    assert {ax.get_title() for ax in figures[0].axes} == {"l2", "loss_mel", "mel", "loss_kl"}
