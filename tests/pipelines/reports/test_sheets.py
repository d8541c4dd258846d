"""Sheets hold the right pixels in the right places, and progress is quiet in log files."""

import logging
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from pipelines.reports.sheets import image_grid, reconstruction_sheet, sample_sheet
from pipelines.run.progress import PlainProgress, progress

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def flat(*colors: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> Tensor:
    """Pictures (N, 3, H, W) uint8, each of one colour."""
    return torch.tensor(colors, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, *size).contiguous()


def box(picture: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the pixels of `color`, all of which must be there."""
    where = np.argwhere((np.asarray(picture) == color).all(-1))
    (top, left), (bottom, right) = where.min(0), where.max(0) + 1
    assert len(where) == (right - left) * (bottom - top)
    return int(left), int(top), int(right), int(bottom)


def test_image_grid_places_and_enlarges() -> None:
    grid = image_grid(flat(RED, GREEN, BLUE, size=(2, 3)), columns=2, scale=4)
    assert grid.mode == "RGB"
    (left, top, right, bottom), green, blue = (box(grid, c) for c in (RED, GREEN, BLUE))
    assert (right - left, bottom - top) == (12, 8)
    assert green[1] == top and 0 < green[0] - right <= 4  # beside red, with a thin gap
    assert blue[0] == left and 0 < blue[1] - bottom <= 4  # below red
    assert (np.asarray(grid)[-3, -3] == 255).all()  # the place without a picture is paper


def test_image_grid_keeps_every_pixel() -> None:
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    pixels = np.asarray(image_grid(x, scale=2))
    assert (pixels[2:-2:2, 2:-2:2] == x[0, 0, :, :, None].numpy()).all()
    assert (pixels[3:-2:2, 3:-2:2] == x[0, 0, :, :, None].numpy()).all()
    as_float = x.float() / 127.5 - 1
    assert np.array_equal(np.asarray(image_grid(as_float, scale=2)), pixels)
    beyond = image_grid(torch.tensor([[[[-3.0, 3.0]]]]))
    assert np.asarray(beyond)[2, 2:4, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 3, 4, 4), r"\(N, C, H, W\).*empty, got \(0, 3, 4, 4\)"),
        (torch.zeros(3, 4, 4), r"\(N, C, H, W\).*got \(3, 4, 4\)"),
        (torch.zeros(1, 2, 4, 4), r"C 1 or 3.*got \(1, 2, 4, 4\)"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.int64), r"uint8.*float in \[-1, 1\], got torch\.int64"),
        (torch.full((1, 1, 4, 4), torch.nan), "NaN or infinity"),
    ],
)
def test_pictures_that_cannot_be_shown(x: Tensor, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^x: .*{message}"):
        image_grid(x)
    with pytest.raises(ValueError, match=f"^x: .*{message}"):
        reconstruction_sheet(x, x, tmp_path / "sheet.png")
    with pytest.raises(ValueError, match=rf"^rows\[1\], 'a': .*{message}"):
        sample_sheet([("b", torch.zeros(1, 1, 4, 4)), ("a", x)], tmp_path / "sheet.png")
    if x.numel() and not x.isfinite().all():
        with pytest.raises(ValueError, match=f"^x_hat: .*{message}"):
            reconstruction_sheet(torch.zeros_like(x), x, tmp_path / "sheet.png")
    assert list(tmp_path.iterdir()) == []


def test_reconstruction_sheet_has_originals_above(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sheet.png"
    reconstruction_sheet(flat(RED, BLUE), flat(GREEN, YELLOW), path)
    assert [p.name for p in path.parent.iterdir()] == ["sheet.png"]
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        red, green, blue, yellow = (box(sheet, c) for c in (RED, GREEN, BLUE, YELLOW))
        assert red[2] - red[0] == 112  # 8 pixels enlarged 14 times
        assert red[0] == green[0] and red[3] < green[1] < red[3] + 8
        assert blue[0] == yellow[0] and red[2] < blue[0] < red[2] + 4
        labels = np.asarray(sheet)[red[1] : green[3], : red[0] - 2]
        assert labels.min() < 100 and (labels[:, :16] == 255).all()  # type, and a free margin


def test_long_reconstruction_sheets_wrap_evenly(tmp_path: Path) -> None:
    x = torch.full((16, 1, 32, 32), 255, dtype=torch.uint8)
    x[0], x[8] = 1, 2
    reconstruction_sheet(x, torch.full_like(x, 255), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        first, ninth = box(sheet, (1, 1, 1)), box(sheet, (2, 2, 2))
    assert ninth[0] == first[0] and ninth[1] > first[3] + 96  # a rebuilt row lies between
    with pytest.raises(ValueError, match=r"one shape, got \(16, 1, 32, 32\) and \(3, 1, 32, 32\)"):
        reconstruction_sheet(x, x[:3], tmp_path / "other.png")


def test_sample_sheet_has_a_row_per_name(tmp_path: Path) -> None:
    rows = [("a", flat(RED, GREEN)), ("a rather long class name " * 3, flat(BLUE))]
    sample_sheet(rows, tmp_path / "long.png")
    sample_sheet([("a", rows[0][1]), ("b", rows[1][1])], tmp_path / "short.png")
    with Image.open(tmp_path / "long.png") as long, Image.open(tmp_path / "short.png") as short:
        for sheet in (long, short):
            red, green, blue = (box(sheet, c) for c in (RED, GREEN, BLUE))
            assert red[1] == green[1] and blue[0] == red[0] and blue[1] > red[3]
            assert (np.asarray(sheet)[:, -8:] == 255).all()  # nothing is cut off
        assert (
            250 < box(long, RED)[0] < 320 and box(short, RED)[0] < 60
        )  # names are shortened, not squeezed in


def test_names_without_signs_in_the_font_are_numbered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    x = flat(RED)
    named = ["cat", "Katze ñ Ω", "", "猫", "犬 dog", ""]
    sample_sheet([(name, x) for name in named], tmp_path / "a.png")
    numbered = ["cat", "Katze ñ Ω", "", "2", "3", ""]
    sample_sheet([(name, x) for name in numbered], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    (message,) = caplog.messages
    assert message.startswith(str(tmp_path / "a.png")) and message.endswith("2: 猫, 3: 犬 dog")


def test_sample_sheet_refuses_nothing_and_mixed_sizes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows: .*one size, got 0 rows"):
        sample_sheet([], tmp_path / "sheet.png")
    with pytest.raises(ValueError, match=r"rows: .*one size, got 2 rows of \[\(4, 4\), \(8, 8\)\]"):
        sample_sheet([("a", flat(RED)), ("b", flat(RED, size=(4, 4)))], tmp_path / "sheet.png")


def test_progress_in_a_log_file_is_a_few_whole_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with progress(100, "training", initial=20) as bar:
        assert isinstance(bar, PlainProgress)
        for _ in range(80):
            clock[0] += 0.5
            bar.set_postfix(loss=0.123456, k=3)
            bar.update()
    bar.close()  # once more says nothing
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and "\r" not in err
    assert len(lines) == 4  # 40 s: every 10 s; the end falls on the last
    assert lines[0].startswith("training:  40% 40/100 [00:10<00:30,  2.00it/s, loss=0.1235, k=3]")
    assert "100/100" in lines[-1]


def test_progress_ends_with_a_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(3, "short") as bar:
        bar.update(3)
    assert capsys.readouterr().err.count("\n") == 1
    with progress(3, "off", enabled=False) as bar:
        bar.update(3)
        bar.set_postfix(loss=1.0)
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress(10, "training", initial=4) as bar:
        assert isinstance(bar, tqdm) and bar.n == 4
        bar.update(6)
    assert "100%" in capsys.readouterr().err
