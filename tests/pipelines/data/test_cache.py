"""What fits into memory is decoded once, and found again at the next start while no file has changed.

Left out: sets larger than memory (test_order.py).
"""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipelines.data import cache as decoded
from pipelines.data import clip_scan, pictures
from pipelines.data.batches import Splits, load_splits
from pipelines.data.config import DataConfig
from tests.helpers.pictures_on_disk import load, png, write
from tokenizer.modalities.audio import AudioConfig


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, into which small sets go too."""
    monkeypatch.setattr(decoded, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(decoded, "WORTH", 0)
    return tmp_path / "cache"


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Titles of the looks at data that decode them."""
    titles: list[str] = []
    for module in (pictures, clip_scan):
        real = module.look_at_all

        def look(see: object, rows: object, title: str, real: object = real) -> None:
            titles.append(title)
            real(see, rows, title)  # type: ignore[operator]

        monkeypatch.setattr(module, "look_at_all", look)
    return titles


def settle() -> None:
    """Wait until all that is being written is there, or was given up."""
    for thread in decoded._writing.values():
        thread.join()


def kept(cache: Path) -> set[Path]:
    """The files in the cache, once all are there."""
    settle()
    return set(cache.iterdir())


def same(a: Splits, b: Splits) -> bool:
    """Whether two loads gave the same examples, to the bit."""
    return a.digest() == b.digest() and all(
        torch.equal(x.x(i), y.x(i))
        for x, y in ((a.train, b.train), (a.held_out, b.held_out))
        for i in range(len(x))
    )


def test_pictures_are_decoded_once(tmp_path: Path, decodings: list[str]) -> None:
    root = write(tmp_path / "zoo", [f"a/{i}.png" for i in range(9)])
    (root / "a/broken.png").write_bytes(png(3)[:60])
    first = load(root)
    assert decodings == ["reading pictures"]
    second = load(root)
    assert decodings == ["reading pictures"] and same(first, second)
    assert second.train.skipped == first.train.skipped and len(second.train.skipped) == 1


@pytest.mark.parametrize("change", ["content", "time", "more", "fewer", "size"])
def test_another_state_of_the_files_is_decoded_anew(
    change: str, tmp_path: Path, decodings: list[str]
) -> None:
    root = write(tmp_path / "zoo", [f"{i}.png" for i in range(9)])
    load(root, valid_fraction=0)
    options: dict[str, object] = {}
    if change == "content":
        (root / "3.png").write_bytes(png(77))
    elif change == "time":
        os.utime(root / "3.png", (1, 1))
    elif change == "more":
        (root / "9.png").write_bytes(png(9))
    elif change == "fewer":
        (root / "3.png").unlink()
    else:
        options["limit"] = 4
    again = load(root, valid_fraction=0, **options)
    assert decodings == ["reading pictures"] * 2
    assert len(again.train) == {"more": 10, "fewer": 8, "size": 4}.get(change, 9)
    if change == "content":
        fresh = load(write(tmp_path / "new", ["3.png"]), valid_fraction=0).train.x(0)
        assert again.train.id(3) == "3.png" and not torch.equal(again.train.x(3), fresh)


def clips(config: AudioConfig, root: Path, cache_bytes: int = 1 << 30) -> Splits:
    return load_splits(DataConfig(path=str(root), valid_fraction=0.3), config.build(), cache_bytes)


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_sounds_are_looked_at_once(cache_bytes: int, tmp_path: Path, decodings: list[str]) -> None:
    root, config = tmp_path / "sounds", AudioConfig(size=(400,))
    root.mkdir()
    for i in range(6):
        noise = np.random.default_rng(i).uniform(-0.5, 0.5, 900 + i)
        soundfile.write(root / f"{i}.wav", noise, 16000)
    (root / "broken.wav").write_bytes((root / "0.wav").read_bytes()[:300])
    first = clips(config, root, cache_bytes)
    seen = list(decodings)
    second = clips(config, root, cache_bytes)
    assert decodings == seen and "looking at sound files" in seen and same(first, second)
    assert second.train.skipped == first.train.skipped and len(second.train.skipped) == 1
    clips(AudioConfig(size=(400,), sample_rate=8000), root, cache_bytes)
    assert len(decodings) == 2 * len(seen)


def test_a_sound_damaged_in_its_middle_is_left_out_however_large_the_set_is(tmp_path: Path) -> None:
    root, config = tmp_path / "sounds", AudioConfig(size=(400,))
    root.mkdir()
    for i in range(4):
        noise = np.random.default_rng(i).uniform(-0.5, 0.5, 60_000)
        soundfile.write(root / f"{i}.flac", noise, 16000)
    data = bytearray((root / "2.flac").read_bytes())
    data[40_000:50_000] = bytes(10_000)
    (root / "2.flac").write_bytes(data)
    loads = [clips(config, root, cache_bytes).train for cache_bytes in (1 << 30, 0)]
    assert [name for name, _ in loads[0].skipped] == [name for name, _ in loads[1].skipped] == ["2.flac"]
    ids = [[split.id(i) for i in range(len(split))] for split in loads]
    assert ids[0] == ids[1] and "2.flac" not in ids[0]


@pytest.mark.parametrize("spoil", ["cut", "nothing", "folder"])
def test_a_cache_that_cannot_be_used_is_done_without(
    spoil: str, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write(tmp_path / "zoo", [f"{i}.png" for i in range(9)])
    if spoil == "folder":
        cache.touch()
    first = load(root)
    if spoil != "folder":
        (file,) = kept(cache)
        file.write_bytes(file.read_bytes()[:-9] if spoil == "cut" else b"nothing")
    with caplog.at_level("INFO"):
        assert same(load(root), first)
        settle()
    assert any("cannot be" in line and "again" in line for line in caplog.messages)


def test_the_oldest_sets_make_room(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = [write(tmp_path / f"zoo-{i}", [f"{k}.png" for k in range(40)]) for i in range(3)]
    load(roots[0])
    (one,) = kept(cache)
    os.utime(one, (1, 1))
    monkeypatch.setattr(decoded, "MOST", one.stat().st_size * 2 + 10)
    load(roots[1])
    assert one in kept(cache) and len(kept(cache)) == 2
    load(roots[2])
    assert one not in kept(cache) and len(kept(cache)) == 2
