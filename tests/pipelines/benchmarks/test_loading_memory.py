"""Memory while data are loaded: it does not grow with what is read, and is measured in all processes.

Left out: how much it is for much data, which `pipelines/benchmark.py data --memory` measures.
"""

import mmap
import multiprocessing
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines.benchmarks.data import made as made_data
from pipelines.benchmarks.data import memory
from pipelines.benchmarks.data.made import MAKERS, SECONDS
from pipelines.benchmarks.data.memory import loading_memory, slope
from pipelines.benchmarks.process_memory import MIB, own_memory
from pipelines.data.batches import load_splits
from pipelines.data.config import DataConfig
from tests.helpers.running import environment
from tests.helpers.tiny import audio_config, image_config


@pytest.fixture(autouse=True)
def in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


@pytest.mark.parametrize(
    ("kind", "count", "bound"),
    [("pictures in files", 1200, 1.0), ("pictures in Parquet", 1200, 1.0), ("sound in files", 16, 2.0)],
)
def test_memory_does_not_grow_with_what_is_read(kind: str, count: int, bound: float) -> None:
    """The second epoch reads 3.6 MB of pictures and 10 MB of sound, decoded, and `bound` MiB stay at most."""
    values = loading_memory(kind, count, workers=0)
    places, memory = map(np.array, values["samples"])
    after_one = memory[places >= values["items"]][0]
    assert values["examples"] == count and places[-1] >= 2 * values["items"] * 0.98
    assert memory[-1] - after_one < bound * MIB
    assert values["largest"] - values["before"] < 32 * MIB


def test_loader_processes_are_measured_too() -> None:
    values = loading_memory("pictures in files", 600, workers=1)
    assert values["largest"] > values["before"] + 4 * MIB  # an interpreter's own pages
    assert values["largest"] < values["before"] + 200 * MIB  # but those it shares count once


def _write(memory: np.ndarray, go: Event, done: Event, end: Event) -> None:
    go.wait()
    memory[:] = 1
    done.set()
    end.wait()


def test_pages_that_are_shared_count_once() -> None:
    context = multiprocessing.get_context("fork")
    before = own_memory()
    # Mapped anew: an array might lie where something else was freed.
    memory = np.frombuffer(mmap.mmap(-1, 64 * MIB, mmap.MAP_PRIVATE), np.uint8)
    memory[:] = 2
    alone = own_memory()
    assert 63 * MIB < alone - before < 70 * MIB
    go, done, end = (context.Event() for _ in range(3))
    child = context.Process(target=_write, args=(memory, go, done, end), daemon=True)
    child.start()
    shared = own_memory()
    assert shared - alone < 40 * MIB
    go.set()
    done.wait()
    assert 56 * MIB < own_memory() - shared < 90 * MIB
    end.set()
    child.join()
    assert abs(own_memory() - alone) < 8 * MIB


def test_slopes_are_least_squares() -> None:
    x = np.arange(0, 1000, 10)
    found = slope(x, 5 + 3 * x, 200, 1000)
    assert found.value == pytest.approx(3) and found.error == pytest.approx(0, abs=1e-9)
    rng = np.random.default_rng(0)
    y = 2 * x + rng.normal(0, 50, 100)
    found = slope(x, y, 0, 1000)
    (expected, _), covariance = np.polyfit(x, y, 1, cov=True)
    assert found.value == pytest.approx(expected)
    assert found.error == pytest.approx(covariance[0, 0] ** 0.5)
    with pytest.raises(ValueError, match=r"only 2 samples.*expected 3 .*more data"):
        slope(x, y, 0, 20)


def test_made_data_are_each_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_data, "GROUP", 5)
    for kind, make in MAKERS.items():
        make(tmp_path / kind, 12)
        sound = kind.startswith("sound")
        modality = (audio_config() if sound else image_config(size=(32, 32))).build()
        train = load_splits(DataConfig(path=str(tmp_path / kind), valid_fraction=0), modality).train
        assert len(train) == 12 and train.skipped == ()
        assert len({train.x(i).numpy().tobytes() for i in range(12)}) == 12
        if not sound:
            assert train.shape == (3, 32, 32) and sorted(train.labels) == sorted([*range(10), 0, 1])
    found = [soundfile.info(f) for f in sorted((tmp_path / "sound in files").iterdir())]
    assert [(f.format, f.samplerate, f.channels) for f in found[:2]] == [
        ("WAV", 16000, 1),
        ("FLAC", 24000, 2),
    ]
    assert all(f.duration == SECONDS for f in found)


def test_the_benchmark_says_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def small(kind: str, count: int, workers: int) -> dict[str, object]:
        asked.append((kind, count, workers))
        slopes = [{"value": 9.0, "error": 0.0}, {"value": 3.5, "error": 0.25}]
        return {
            "before": 100 * MIB,
            "largest": 120 * MIB,
            "per_example": 70.0,
            "slopes": slopes,
            "to_goal": 3.5 * MIB,
        }

    monkeypatch.setattr(memory, "loading_memory", small)
    values = memory.measure_all(5000, 1.5, (0, 2))
    assert asked == [(k, 540 if k.startswith("sound") else 5000, w) for k in MAKERS for w in (0, 2)]
    assert list(values) == list(MAKERS) and list(values["sound in files"]) == ["0", "2"]
    text = capsys.readouterr().out
    for part in ("5,000 pictures in Parquet", "1.5 hours of sound in 540 files", "+20.0 MiB", "3.5 ± 0.2"):
        assert part in text
    assert "1,000,000 pictures" in text and "10 hours" in text and "70 bytes" in text
