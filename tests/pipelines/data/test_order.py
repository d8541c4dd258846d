"""Data: what is skipped, what is held out, and how examples are ordered and cut into batches over ranks."""

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.data import cache as cache_of_scans
from pipelines.data import pictures
from pipelines.data.augment import Augment
from pipelines.data.batches import (
    Batch,
    batches,
    load_splits,
    order,
)
from pipelines.data.cache import cache_folder as CACHE_FOLDER
from pipelines.data.config import DataConfig
from pipelines.data.examples import Examples
from pipelines.data.kinds import to_float
from pipelines.data.scan import held_out_mask
from tests.helpers.pictures_on_disk import ANY_SIZE, contents, folder_of, load, png, write
from tokenizer.modalities.files.pictures import open_picture

# What is skipped


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_bad_files_are_counted_named_and_left_out(
    tmp_path: Path, cache_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder_of(tmp_path)
    (root / "003.png").write_text("not a picture")
    (root / "005.png").write_bytes(b"")
    (root / "007.png").write_bytes(png(7)[:60])
    splits = load(root, cache_bytes)
    assert len(splits.train) + len(splits.held_out) == 17 and len(splits.held_out) >= 1
    assert [name for name, _ in splits.train.skipped] == ["003.png", "005.png", "007.png"]
    (message,) = [r.getMessage() for r in caplog.records]
    head, *lines = message.splitlines()
    assert head == "skipped 3 of 20 pictures:" and lines[0].startswith("  003.png: not a picture")
    assert [line[:10] for line in lines] == ["  003.png:", "  005.png:", "  007.png:"]


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ValueError, match=r"1 of 1 pictures: a\.png: not a picture.*PNG"):
        load(tmp_path)


def test_pictures_of_several_shapes_are_an_error(tmp_path: Path) -> None:
    root = write(tmp_path, ["a.png"])
    (root / "b.png").write_bytes(png(1, (5, 6)))
    with pytest.raises(ValueError, match=r"b\.png: .*\(3, 5, 6\) .*\(3, 4, 4\); .*one size"):
        load_splits(DataConfig(path=str(root)), ANY_SIZE)


def test_the_set_does_not_depend_on_whether_it_is_decoded_at_once(tmp_path: Path) -> None:
    root = folder_of(tmp_path, 6)
    whole = png(100, (16, 16))
    (root / "no-end.png").write_bytes(whole[:-12])
    (root / "half-an-end.png").write_bytes(whole[:-4])
    (root / "cut.png").write_bytes(whole[:-60])
    pixels = np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)
    for form in ("jpeg", "gif", "tiff", "bmp"):
        Image.fromarray(pixels).save(tmp_path / "whole", form)
        (root / f"cut.{form}").write_bytes((tmp_path / "whole").read_bytes()[:-300])
    Image.fromarray(pixels[..., 0].astype(np.float32)).save(root / "float.tif")
    at_once, on_access = (load(root, n, valid_fraction=0.3) for n in (1 << 30, 0))
    assert at_once.digest() == on_access.digest()
    assert at_once.train.skipped == on_access.train.skipped
    left_out = {name for name, _ in at_once.train.skipped}
    assert left_out >= {"cut.png", "cut.jpeg", "cut.gif", "float.tif"} and "no-end.png" not in left_out
    assert contents(at_once.train) == contents(on_access.train)


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_the_limit_of_pixels_is_an_option(
    cache_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder_of(tmp_path, 3)
    (root / "large.png").write_bytes(png(9, (50, 50)))
    pillows = Image.MAX_IMAGE_PIXELS
    for megapixels, limit, count in ((None, pillows, 4), (0.0025, 1500, 4), (0.002, pillows, 3)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        train = load(root, cache_bytes, valid_fraction=0, max_megapixels=megapixels).train
        # Nothing stands in for the large one, where it is decoded on access.
        assert len(train) == count and train.take(np.arange(count))[2].tolist() == [*range(count)]
    ((name, why),) = train.skipped
    assert name == "large.png" and "2500 pixels are over the limit of 2000" in why
    with pytest.raises(ValueError, match=r"max_megapixels .*more than 0, got -1"):
        DataConfig(max_megapixels=-1)


def test_a_large_set_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of(tmp_path, 8)
    (root / "003.png").write_bytes(png(3)[:60])
    decoded: list[str] = []

    def counted(source: bytes, name: str, max_megapixels: float | None) -> Image.Image:
        decoded.append(name)
        return open_picture(source, name)

    monkeypatch.setattr(pictures, "open_picture", counted)
    first = load(root, 0, valid_fraction=0.3)
    assert decoded == ["000.png", *(f"{i:03}.png" for i in range(8))]  # the first one for its shape
    for change, again in (
        (lambda: None, []),
        (lambda: (root / "005.png").write_bytes(png(5)), ["005.png"]),
        (lambda: (root / "003.png").write_bytes(png(3)), ["003.png"]),
    ):
        change()
        decoded.clear()
        splits = load(root, 0, valid_fraction=0.3)
        assert decoded == ["000.png", *again]
        if again != ["003.png"]:
            assert splits.digest() == first.digest() and splits.train.skipped == first.train.skipped
    assert splits.train.skipped == () and len(splits.train) + len(splits.held_out) == 8


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_warnings_of_pillow_name_the_pictures(
    cache_bytes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder_of(tmp_path, 3)
    for name in ("odd.tif", "odder.tif"):
        Image.open(root / "000.png").save(root / name, tiffinfo={282: 1.0})
        content = (root / name).read_bytes()
        # Two resolutions where one is expected.
        entry = content.index(b"\x1a\x01\x05\x00\x01\x00\x00\x00")
        (root / name).write_bytes(content[: entry + 4] + b"\x02" + content[entry + 5 :])
    before = list(warnings.filters), warnings.showwarning
    splits = load(root, cache_bytes, valid_fraction=0)
    assert len(splits.train) == 5 and (list(warnings.filters), warnings.showwarning) == before
    (message,) = caplog.messages
    assert message.startswith("odd.tif and 1 more: ") and "282" in message


@pytest.mark.parametrize("spoil", ["unwritable", "cut", "no file of ours"])
def test_a_cache_that_cannot_be_used_is_done_without(
    spoil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root, cache = folder_of(tmp_path, 6), tmp_path / "cache"
    monkeypatch.setattr(cache_of_scans, "cache_folder", lambda: cache)
    caplog.set_level(logging.INFO)
    if spoil == "unwritable":
        cache.touch()
    before = load(root, 0).digest()
    if spoil != "unwritable":
        (kept,) = cache.iterdir()
        kept.write_bytes(kept.read_bytes()[:-9] if spoil == "cut" else b"nothing")
    caplog.clear()
    assert load(root, 0).digest() == before
    (line,) = (message for message in caplog.messages if " to train on" not in message)
    assert "cannot be" in line and "all pictures again" in line and str(cache) in line


def test_where_verdicts_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    for given, folder in ((tmp_path, tmp_path), ("", tmp_path / ".cache"), ("below", tmp_path / ".cache")):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(given))
        assert CACHE_FOLDER() == folder / "tokenloom"


def test_pictures_that_become_unreadable_are_replaced_in_training_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write(tmp_path / "p", ["a/0.png", "a/1.png", "b/2.png", "b/3.png"])
    train = load(root, cache_bytes=0, valid_fraction=0).train
    (root / "a/1.png").unlink()
    (root / "b/3.png").unlink()
    for _ in range(2):
        x, labels, index = train.take(np.array([0, 1, 3]))
        assert index.tolist() == [0, 2, 0] and labels.tolist() == [0, 1, 0]
        assert torch.equal(x[1], train.x(2)) and torch.equal(x[2], train.x(0))
        x, labels, index = train.take_readable(np.array([0, 1, 2, 3]))
        assert index.tolist() == [0, 2] and labels.tolist() == [0, 1]
        ((given, index),) = train.inputs(4)
        assert torch.equal(given, to_float(x)) and index.tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"a/1\.png: .*path"):
        train.x(1)
    assert [name for name, _ in train.skipped] == ["a/1.png", "b/3.png"]
    assert len(caplog.records) == 2
    (root / "a/0.png").unlink()
    (root / "b/2.png").unlink()
    with pytest.raises(ValueError, match=r"none of 4 pictures .*disk"):
        train.take(np.array([0]))
    assert train.take_readable(np.arange(4))[0].shape == (0, 3, 4, 4)


def test_lazily_decoded_equals_cached(tmp_path: Path) -> None:
    root = folder_of(tmp_path)
    cached, lazy = load(root), load(root, cache_bytes=20 * 48 - 1)
    assert torch.equal(cached.train.take(np.arange(5))[0], lazy.train.take(np.arange(5))[0])
    for a, b in zip(
        batches(cached.train, batch_size=6, seed=1, stop_step=5, augment=Augment(flip=True)),
        batches(lazy.train, batch_size=6, seed=1, stop_step=5, augment=Augment(flip=True)),
        strict=True,
    ):
        assert torch.equal(a.x, b.x) and torch.equal(a.index, b.index)
    assert contents(cached.held_out) == contents(lazy.held_out)


# What is held out


def test_content_decides_what_is_held_out(tmp_path: Path) -> None:
    root = folder_of(tmp_path, 40)
    before = load(root, valid_fraction=0.3)
    train, held_out = contents(before.train), contents(before.held_out)
    assert len(train) + len(held_out) == 40 and not train & held_out and len(held_out) >= 4
    for i, path in enumerate(sorted(root.iterdir())):
        path.rename(root / f"{(i * 17) % 40:03}-renamed.png")
    after = load(root, valid_fraction=0.3)
    assert contents(after.train) == train and contents(after.held_out) == held_out
    (root / "copy.png").write_bytes((root / "000-renamed.png").read_bytes())
    copied = load(root, valid_fraction=0.3)
    assert len(copied.train) + len(copied.held_out) == 41
    assert not contents(copied.train) & contents(copied.held_out)
    assert contents(load(root, valid_fraction=0.1).held_out) <= held_out


def test_held_out_mask_leaves_no_side_empty(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    high = np.array([2**63 + 5, 2**63, 2**63], dtype=np.uint64)
    np.testing.assert_array_equal(held_out_mask(high, 0.25), [False, True, True])
    np.testing.assert_array_equal(held_out_mask(high, 0.75), [False, True, True])
    np.testing.assert_array_equal(held_out_mask(high, 0.0), [False] * 3)
    np.testing.assert_array_equal(held_out_mask(high[1:], 0.75), [False] * 2)
    splits = load(write(tmp_path, ["only.png"]))
    assert (len(splits.train), len(splits.held_out)) == (1, 0)
    assert "there is one picture, so none is held out" in caplog.text
    (tmp_path / "again.png").write_bytes((tmp_path / "only.png").read_bytes())
    assert len(load(tmp_path).held_out) == 0 and "all pictures are equal, so none" in caplog.text


# Order and batches


def test_every_epoch_is_its_own_permutation() -> None:
    n = 13
    epochs = order(n, seed=3, start=0, count=4 * n).reshape(4, n)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (4, 1)))
    assert len({e.tobytes() for e in epochs}) == 4
    assert not np.array_equal(epochs[0], order(n, seed=4, start=0, count=n))


def test_order_can_be_entered_anywhere() -> None:
    whole = order(7, seed=0, start=0, count=100)
    for start, count in ((0, 1), (6, 1), (7, 7), (5, 30), (93, 7), (50, 0)):
        np.testing.assert_array_equal(order(7, 0, start, count), whole[start : start + count])
    assert sorted(order(7, seed=0, start=7 * 10**12, count=7)) == list(range(7))
    with pytest.raises(ValueError, match="no examples"):
        order(0, 0, 0, 1)


def flattened(steps: list[Batch]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The global batches again: rows by step and place."""
    steps = sorted(steps, key=lambda b: (b.step, b.offset))
    return tuple(torch.cat([getattr(b, k) for b in steps]) for k in ("x", "labels", "index"))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    root = write(tmp_path_factory.mktemp("data"), [f"{'ab'[i % 2]}/{i}.png" for i in range(21)])
    return load(root, valid_fraction=0).train


@pytest.mark.parametrize("flip", [False, True])
def test_ranks_and_accumulation_share_one_global_batch(examples: Examples, flip: bool) -> None:
    arguments = {
        "batch_size": 8,
        "seed": 5,
        "start_step": 1,
        "stop_step": 7,
        "augment": Augment(flip, 2 if flip else 0),
    }
    expected = flattened(list(batches(examples, **arguments)))
    assert len(expected[0]) == 48
    np.testing.assert_array_equal(expected[2], order(21, 5, 8, 48))
    assert examples.labels is not None
    np.testing.assert_array_equal(expected[1], examples.labels[expected[2]])
    for world, micro_batches in ((1, 2), (2, 1), (2, 2), (4, 1), (4, 2)):
        parts = [
            list(batches(examples, rank=r, world=world, micro_batches=micro_batches, **arguments))
            for r in range(world)
        ]
        for part in parts:
            assert [(b.step, b.micro) for b in part] == [
                (s, m) for s in range(1, 7) for m in range(micro_batches)
            ]
        for got, wanted in zip(flattened([b for part in parts for b in part]), expected, strict=True):
            assert torch.equal(got, wanted)


def test_a_resume_gets_the_tail(examples: Examples) -> None:
    whole = list(batches(examples, batch_size=6, seed=0, stop_step=9, augment=Augment(flip=True)))
    tail = list(
        batches(examples, batch_size=6, seed=0, start_step=4, stop_step=9, augment=Augment(flip=True))
    )
    for a, b in zip(whole[4:], tail, strict=True):
        assert a.step == b.step and torch.equal(a.x, b.x) and torch.equal(a.index, b.index)


def test_flips_depend_on_epoch_and_example(examples: Examples) -> None:
    flipped: dict[int, list[bool]] = {}
    for batch in batches(examples, batch_size=7, seed=0, stop_step=24, augment=Augment(flip=True)):
        for x, i in zip(batch.x, batch.index.tolist(), strict=True):
            is_flipped = torch.equal(x, examples.x(i).flip(-1))
            assert is_flipped != torch.equal(x, examples.x(i))
            flipped.setdefault(i, []).append(is_flipped)
    counts = [sum(v) for v in flipped.values()]
    assert len(counts) == 21 and all(len(v) == 8 for v in flipped.values())
    assert 60 < sum(counts) < 108 and len(set(map(tuple, flipped.values()))) > 15


def test_workers_give_the_same_batches(tmp_path: Path) -> None:
    train = load(folder_of(tmp_path), cache_bytes=0).train
    arguments = {
        "batch_size": 4,
        "micro_batches": 2,
        "seed": 2,
        "stop_step": 6,
        "augment": Augment(flip=True),
    }
    torch.manual_seed(0)
    alone = list(batches(train, **arguments))
    torch.manual_seed(0)
    helped = list(batches(train, workers=2, **arguments))
    state = torch.get_rng_state()
    for a, b in zip(alone, helped, strict=True):
        assert (a.step, a.micro, a.offset) == (b.step, b.micro, b.offset)
        assert torch.equal(a.x, b.x) and torch.equal(a.labels, b.labels) and torch.equal(a.index, b.index)
    assert torch.equal(state, torch.manual_seed(0).get_state())


def test_batch_sizes_that_do_not_divide(examples: Examples, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"batch size 10 .* 2 accumulation steps on 2 processes; .* 8 or 12"):
        batches(examples, batch_size=10, micro_batches=2, world=2, seed=0, stop_step=1)
    with pytest.raises(ValueError, match=r"batch size 3 .* 4 processes.* 4$"):
        batches(examples, batch_size=3, world=4, seed=0, stop_step=1)
    with pytest.raises(ValueError, match=r"at least 1 micro-batch .*got 0"):
        batches(examples, batch_size=3, micro_batches=0, seed=0, stop_step=1)
    caplog.set_level(logging.WARNING)
    (batch,) = batches(examples, batch_size=42, seed=0, stop_step=1)
    assert "a batch of 42 repeats examples: there are only 21" in caplog.text
    assert np.bincount(batch.index).tolist() == [2] * 21


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_held_out_examples_are_seen_once(examples: Examples, world: int) -> None:
    parts = [part for rank in range(world) for part in examples.inputs(8, rank, world)]
    assert np.concatenate([index for _, index in parts]).tolist() == list(range(21))
    assert all(x.shape[1:] == (3, 4, 4) and 0 < len(x) == len(index) <= 8 for x, index in parts)
    assert all(x.dtype == torch.float32 and -1 <= x.min() <= x.max() <= 1 for x, _ in parts)
    with pytest.raises(ValueError, match=r"batch size .*at least 1, got 0"):
        next(examples.inputs(0))


def test_to_float_is_minus_one_to_one() -> None:
    x = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    torch.testing.assert_close(x, torch.tensor([-1.0, -0.6, 1.0]))
