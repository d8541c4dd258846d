"""DNSMOS of speech: the package's own figures.

Left out: rates, channels, and what is not measured (test_sound_metrics.py).
"""

from pathlib import Path

import pytest
import torch

from tests.helpers.speech import noise, speech
from tokenizer import dnsmos
from tokenizer.dnsmos import RATE, WINDOW, load_session, overall_score, window_starts


@pytest.mark.parametrize(
    ("clip", "seconds", "level", "wanted"),
    [
        (4, 2.0, 0.02, 1.98678),  # 16 s in 7 windows
        (5, 3.7, 0.005, 2.66652),  # 14.8 s in 5
        (5, 9.01, 0.0, 3.34746),  # one
        (11, 1.0, 0.0, 2.24802),  # 0.376 s, 32 times
    ],
)
def test_scores_are_those_of_speechmos(clip: int, seconds: float, level: float, wanted: float) -> None:
    """By dnsmos.run(x.numpy(), 16000)["ovrl_mos"] of speechmos 0.0.1.1 with librosa 0.11, which doubles x
    until it fills a window."""
    x = speech(clip, seconds)
    x = (x + noise(x, level)).clamp(-1, 1)[0]
    doubled = x
    while len(doubled) < WINDOW:
        doubled = torch.cat([doubled, doubled])
    assert overall_score(doubled) == pytest.approx(wanted, abs=1e-4)
    assert overall_score(x) == pytest.approx(wanted, abs=0.1)
    assert overall_score(x) == overall_score(doubled[:WINDOW])


def test_windows_are_those_of_the_package() -> None:
    """By its loop over whole seconds, with what it skips as too short by a sample."""
    assert window_starts(WINDOW) == window_starts(10 * RATE) == window_starts(11 * RATE - 1) == [0]
    assert window_starts(11 * RATE) == [0, 1]
    assert window_starts(16 * RATE) == window_starts(33 * RATE) == [0, 1, 2, 3, 4, 5, 6]
    assert window_starts(45 * RATE) == [0, 1, 2, 3, 4, 5, 6, *range(24, 36)]


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(b"no network")
    monkeypatch.setattr(dnsmos, "weights_file", lambda: other)
    load_session.cache_clear()
    with pytest.raises(ValueError, match=r"other\.onnx .*speechmos 0\.0\.1\.1; .*\.\[metrics\]"):
        overall_score(torch.zeros(RATE))
