"""Sheets show sound where it is, and WAV files hold the right samples.

Left out: the listening page (test_listening.py), rate-distortion (test_rate_distortion.py), and the
metrics themselves (tokenizer/test_sound_metrics.py).
"""

import io
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor

from pipelines.evaluation.tokenizers import Measured
from pipelines.reports.listening import listening_page, write_wav, write_wavs
from pipelines.reports.sounds import SoundReport
from pipelines.reports.spectrograms import mel_sheet, spectrogram_pngs
from tests.helpers.speech import RATE, speech


def tone(hz: float, seconds: float = 1.0, level: float = 0.5, rate: int = RATE) -> Tensor:
    return level * torch.sin(2 * math.pi * hz * torch.arange(round(rate * seconds)) / rate)[None]


def bright(picture: str | Path | bytes, least: int = 150) -> np.ndarray:
    """(row, column) of each pixel in the upper half of the colours, unlike paper, ink and silence."""
    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
        assert opened.format == "PNG"
        red, green, blue = (opened.convert("RGB").getchannel(c) for c in "RGB")
    r, g, b = (np.asarray(channel).astype(int) for channel in (red, green, blue))
    return np.argwhere((r > least) & (r - b > 30) & (r >= g))


def test_a_spectrogram_shows_pitch_and_time() -> None:
    silence = torch.zeros(1, RATE // 2)
    clips = {
        "low": torch.cat([tone(300, 0.5), silence], dim=1),
        "high": torch.cat([silence, tone(4000, 0.5)], dim=1),
    }
    pictures = spectrogram_pngs(clips, RATE)
    low, high = (bright(pictures[name]) for name in clips)
    assert high[:, 0].max() < low[:, 0].min() - 40  # higher up
    with Image.open(io.BytesIO(pictures["low"])) as picture:
        middle = (picture.width + low[:, 1].min()) / 2  # from the axis at the left to the edge
    ends = [low[:, 1].max(), high[:, 1].min()]
    assert ends == pytest.approx([middle, middle], abs=30)  # a window of 64 ms is 35 pixels wide
    # 4 kHz has its place on the mel axis: (mel(4000) / mel(8000)) of the way up.
    whole = 0.1 * torch.randn(1, RATE, generator=torch.Generator().manual_seed(0))
    axis = bright(spectrogram_pngs({"": whole}, RATE)[""])
    top, bottom = axis[:, 0].min(), axis[:, 0].max()
    mel_4k, mel_8k = (15 + 27 * math.log(khz) / math.log(6.4) for khz in (4, 8))
    assert np.median(high[:, 0]) == pytest.approx(bottom - (bottom - top) * mel_4k / mel_8k, abs=4)


def test_clips_of_a_row_share_colours_and_time() -> None:
    loud, quiet = tone(1000), tone(1000, 0.5, level=0.0005)  # 60 dB lower
    alone, beside = spectrogram_pngs({"q": quiet}, RATE)["q"], spectrogram_pngs({"l": loud, "q": quiet}, RATE)
    assert len(bright(alone)) > 1000 and len(bright(beside["q"])) == 0
    assert np.ptp(bright(spectrogram_pngs({"l": loud, "h": loud[:, :8000]}, RATE)["h"])[:, 1]) < 320
    assert np.ptp(bright(spectrogram_pngs({"h": loud[:, :8000]}, RATE)["h"])[:, 1]) > 480  # its own axis
    # Silence is dark, not the loudest of nothing; a stereo clip is the mean of its channels.
    assert len(bright(spectrogram_pngs({"": torch.zeros(2, 500)}, RATE)[""])) == 0
    silence = {"": torch.zeros(2, 8000)}
    plain, marked = (spectrogram_pngs(silence, RATE, mark)[""] for mark in (0.0, 0.2))
    assert plain != marked == spectrogram_pngs(silence, RATE, 0.2)[""]
    assert spectrogram_pngs({"": torch.cat([loud, loud])}, RATE) == spectrogram_pngs({"": loud}, RATE)
    assert len(bright(spectrogram_pngs({"": torch.cat([loud, -loud])}, RATE)[""])) > 1000


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (("stoi", "pesq", "dnsmos"), ""),
        (("stoi", "dnsmos"), "not measured: pesq; install it with: "),
        ((), "not measured: dnsmos, pesq, stoi; install them with: "),
    ],
)
def test_measures_that_are_not_installed_are_named(
    there: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipelines.reports.sounds.available", lambda: there)
    with caplog.at_level(logging.INFO):
        assert SoundReport().remarks(Measured({})) == ""
    assert caplog.text.count("not measured") == bool(said) and said in caplog.text


def test_a_sheet_has_originals_above_reconstructions(tmp_path: Path) -> None:
    rows = [(f"clip {i} $ and _", {"original": tone(300), "rebuilt": tone(4000)}) for i in range(4)]
    path = tmp_path / "new" / "sheet.png"
    mel_sheet(rows, RATE, path)
    assert [p.name for p in path.parent.iterdir()] == ["sheet.png"]
    found = bright(path)
    with Image.open(path) as sheet:
        assert sheet.mode == "P" and sheet.height > 400
        left = found[found[:, 1] < sheet.width * 0.4]  # a column of blocks, without the colour bar
    edges = np.flatnonzero(np.diff(np.unique(left[:, 0])) > 5)
    lines = np.split(np.unique(left[:, 0]), edges + 1)
    assert len(lines) == 4  # two blocks of two
    gaps = np.diff([line.mean() for line in lines])
    assert gaps[0] < 120 and gaps[2] < 120 < 240 < gaps[1]  # 300 Hz lies low in a panel, 4 kHz high


def test_a_sheet_takes_clips_of_all_lengths_and_rates(tmp_path: Path) -> None:
    sheets = {
        "samples": ([(f"sample {i}", {"": speech(i)}) for i in range(5)], 16000),
        "ragged": (
            [("a", {"1": tone(300, 0.2), "2": tone(300, 1.3)}), ("b" * 90, {"1" * 60: tone(90)})],
            16000,
        ),
        "short": ([("one sample", {"": torch.ones(2, 1)})], 44100),
        "low": ([("telephone", {"": tone(300, rate=4000)})], 4000),
    }
    sizes = {}
    for name, (rows, rate) in sheets.items():
        mel_sheet(rows, rate, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as sheet:
            sizes[name] = sheet.size
    assert sizes["samples"][0] > 2.5 * sizes["short"][0] > 1000
    assert sizes["ragged"][1] > 1.5 * sizes["short"][1] == 1.5 * sizes["low"][1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"rows: .*a clip or more each, got \[\]"),
        ([("a", {"x": tone(300)}), ("b", {})], r"rows: .*a clip or more .*got \[1, 0\]"),
        ([("a", {"x": torch.zeros(8)})], r"'a', 'x': expected floats \(C, T\), got torch.float32 \(8,\)"),
        ([("a", {"x": torch.zeros(1, 0)})], r"'a', 'x': expected floats \(C, T\), got .*\(1, 0\)"),
        (
            [("a", {"x": torch.zeros(1, 8, dtype=torch.int16)})],
            r"'a', 'x': expected floats .*got torch\.int16",
        ),
        ([("a", {"x": torch.full((1, 8), torch.nan)})], "'a', 'x' .*NaN.*diverged"),
    ],
)
def test_sound_that_cannot_be_shown(
    rows: list[tuple[str, dict[str, Tensor]]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        mel_sheet(rows, RATE, tmp_path / "sheet.png")
    with pytest.raises(ValueError, match=message):
        listening_page(rows, RATE, tmp_path / "page.html", "title")
    with pytest.raises(ValueError, match=message):
        write_wavs(tmp_path / "wavs", rows, RATE)
    assert list(tmp_path.iterdir()) == []


def test_a_wav_file_holds_the_samples(tmp_path: Path) -> None:
    x = torch.tensor([[0.0, 0.5, 1.0, -1.0, 3.0], [0.1, -0.1, 2 / 32767, -3.0, 0.0]])
    path = tmp_path / "new" / "clip.wav"
    write_wav(path, x, 22050)
    assert [p.name for p in path.parent.iterdir()] == ["clip.wav"]
    info = soundfile.info(path)
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("WAV", "PCM_16", 22050, 2)
    samples, _ = soundfile.read(path, dtype="int16")
    assert samples.T.tolist() == [[0, 16384, 32767, -32767, 32767], [3277, -3277, 2, -32767, 0]]
    write_wav(path, speech(3), RATE)
    samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    assert np.abs(samples.T - speech(3).clamp(-1, 1).numpy()).max() < 1.5 / 32767
    with pytest.raises(ValueError, match=r"'clip', '': expected floats \(C, T\), got .*\(1, 1, 8\)"):
        write_wav(tmp_path / "bad.wav", torch.zeros(1, 1, 8), RATE)


def test_wav_files_of_rows_have_names_that_files_can_have(tmp_path: Path) -> None:
    rows = [
        ("a/b: ../c", {"original": tone(300, 0.01), "rebuilt, 4 of 8": tone(400, 0.01)}),
        ("sample", {"": tone(500, 0.01)}),
        ("名" * 300, {"?": tone(600, 0.01), "!": tone(700, 0.01)}),
    ]
    paths = write_wavs(tmp_path / "wavs", rows, RATE)
    assert [p.name for p in paths] == [
        "001-a-b-c-original.wav",
        "001-a-b-c-rebuilt-4-of-8.wav",
        "002-sample.wav",
        f"003-{'名' * 24}.wav",
        f"003-{'名' * 24}-2.wav",
    ]
    assert sorted((tmp_path / "wavs").iterdir()) == sorted(paths)
    clips = [x for _, clips in rows for x in clips.values()]
    for path, x in zip(paths, clips, strict=True):
        assert np.abs(soundfile.read(path)[0] - x[0].numpy()).max() < 1e-4
