"""Data: where examples come from, how they are split, skipped, ordered and cut into batches over ranks."""

import logging
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipelines.augment import Augment
from pipelines.data import (
    Batch,
    DataConfig,
    Examples,
    batches,
    held_out_batches,
    load_splits,
    order,
    to_float,
)
from pipelines.scanning import held_out_mask
from pipelines.sources import PICTURES
from pipelines.table_sources import Rows, read_hub
from tokenizer.modalities.image import ImageConfig, ImageModality
from tokenizer.modalities.pictures import fit_picture

PICTURES_4 = ImageConfig(size=(4, 4)).build()
FIT = PICTURES_4.fit


class AnySize(ImageModality):
    """Pictures as they are."""

    def fit(self, item: Image.Image) -> np.ndarray:
        return fit_picture(item, None, self.channels)


ANY_SIZE = AnySize(ImageConfig())


def png(seed: int, size: tuple[int, int] = (4, 4)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write(root: Path, names: list[str], first: int = 0) -> Path:
    """Pictures `names` under `root`, each of its own content."""
    for seed, name in enumerate(names, start=first):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(seed))
    return root


def load(path: Path | str, cache_bytes: int = 1 << 30, **options: object):
    return load_splits(DataConfig(path=str(path), **options), PICTURES_4, cache_bytes)  # type: ignore[arg-type]


def contents(examples: Examples) -> set[bytes]:
    return {examples.x(i).numpy().tobytes() for i in range(len(examples))}


def folder_of(tmp_path: Path, count: int = 20) -> Path:
    return write(tmp_path / "pictures", [f"{i:03}.png" for i in range(count)])


# Where examples come from


def test_embedded_emoji() -> None:
    splits = load_splits(DataConfig(), ANY_SIZE)
    assert (len(splits.train), len(splits.held_out)) == (3465, 302)
    assert splits.train.x(0).shape == (3, 32, 32) and splits.train.x(0).dtype == torch.uint8
    assert len(splits.class_names) == 9 and splits.class_names[2] == "flags"
    assert splits.train.labels is not None and splits.train.labels.dtype == np.int64
    assert set(splits.train.labels) == set(range(9))
    assert splits.name == "embedded:emoji" and splits.train.skipped == ()
    assert splits.train.id(7) == "train:7"


def test_embedded_digits_are_labelled_by_number() -> None:
    splits = load("embedded:digits", limit=50)
    assert splits.class_names == tuple("0123456789")
    assert (len(splits.train), len(splits.held_out)) == (50, 50)


def test_classes_are_first_level_sub_folders(tmp_path: Path) -> None:
    root = write(tmp_path / "zoo", ["cat/1.png", "cat/old/2.PNG", "dog/1.jpg", ".hidden/3.png", "dog/.4.png"])
    splits = load(root, valid_fraction=0)
    assert splits.class_names == ("cat", "dog") and splits.name == "zoo"
    assert [splits.train.id(i) for i in range(len(splits.train))] == [
        "cat/1.png",
        "cat/old/2.PNG",
        "dog/1.jpg",
    ]
    np.testing.assert_array_equal(splits.train.labels, [0, 0, 1])
    assert len(splits.held_out) == 0 and list(held_out_batches(splits.held_out, 4)) == []
    assert load(root, valid_fraction=0, label_column="none").train.labels is None


def test_pictures_beside_sub_folders_mean_no_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write(tmp_path, ["cat/1.png", "dog/1.png", "cover.png"])
    splits = load(root, valid_fraction=0)
    assert splits.class_names == () and splits.train.labels is None
    assert "no classes, because 1 pictures lie outside" in caplog.text
    (batch,) = batches(splits.train, batch_size=3, seed=0, stop_step=1)
    assert batch.labels.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("held_out", ["test", "valid", "val", "validation"])
def test_sub_folders_that_are_splits(tmp_path: Path, held_out: str) -> None:
    root = write(tmp_path, ["train/a/1.png", "train/b/2.png", f"{held_out}/b/3.png"])
    splits = load(root)
    assert [splits.train.id(i) for i in range(2)] == ["train/a/1.png", "train/b/2.png"]
    assert splits.held_out.id(0) == f"{held_out}/b/3.png" and len(splits.held_out) == 1
    assert splits.class_names == ("a", "b") and splits.held_out.labels == [1]


def test_a_train_folder_alone_is_a_class(tmp_path: Path) -> None:
    assert load(write(tmp_path, ["train/1.png", "plane/2.png"])).class_names == ("plane", "train")


def test_linked_folders_are_read_and_loops_are_not(tmp_path: Path) -> None:
    root = write(tmp_path / "root", ["a/1.png"])
    (root / "b").symlink_to(write(tmp_path / "elsewhere", ["2.png"], first=5))
    (root / "a" / "up").symlink_to(root)
    splits = load(root, valid_fraction=0)
    assert [splits.train.id(i) for i in range(len(splits.train))] == ["a/1.png", "b/2.png"]


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The `datasets` library writes into a folder of the test instead of the user's cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def write_table(path: Path, seeds: range, **columns: list[object]) -> Path:
    """A Parquet file without the metadata of `datasets`: raw bytes in the column `image`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [png(s) for s in seeds], **columns}), path)
    return path


def write_typed_table(path: Path, seeds: range) -> None:
    """A Parquet file as `datasets` writes it, with an Image column `photo` and a ClassLabel column `kind`."""
    import datasets

    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["x", "y"])})
    rows = {"photo": [{"bytes": png(s), "path": None} for s in seeds], "kind": [s % 2 for s in seeds]}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


@pytest.mark.usefixtures("hub_cache")
def test_parquet_file_of_another_writer(tmp_path: Path) -> None:
    path = write_table(tmp_path / "x-test.parquet", range(6), label=["b", "a", None, "b", "a", "a"])
    splits = load(path, valid_fraction=0)
    assert splits.class_names == ("a", "b") and splits.name == "x-test"
    np.testing.assert_array_equal(splits.train.labels, [1, 0, -1, 1, 0, 0])
    assert splits.train.x(3).numpy().tobytes() == FIT(Image.open(BytesIO(png(3)))).tobytes()
    assert set(tmp_path.iterdir()) == {path, tmp_path / "cache"}
    assert len(load(path, limit=2, valid_fraction=0).train) == 2


@pytest.mark.usefixtures("hub_cache")
def test_parquet_folder_with_splits_and_class_names(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_typed_table(root / "data" / "train-00000-of-00002.parquet", range(3))
    write_typed_table(root / "data" / "train-00001-of-00002.parquet", range(3, 5))
    write_typed_table(root / "data" / "test-00000-of-00001.parquet", range(5, 7))
    splits = load(root)
    assert (len(splits.train), len(splits.held_out)) == (5, 2) and splits.class_names == ("x", "y")
    np.testing.assert_array_equal(splits.train.labels, [0, 1, 0, 1, 0])
    assert contents(splits.held_out) == {FIT(Image.open(BytesIO(png(s)))).tobytes() for s in (5, 6)}
    with pytest.raises(ValueError, match=r"no split 'dev'; there are: test, train \(--data\.test-split\)"):
        load(root, test_split="dev")


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("streaming", [False, True])
def test_data_sets_of_the_hub(tmp_path: Path, streaming: bool) -> None:
    root = tmp_path / "set"
    write_typed_table(root / "train.parquet", range(5))
    write_typed_table(root / "validation.parquet", range(5, 9))
    # `datasets` reads a folder exactly as it reads a repository of the Hub.
    found = read_hub(DataConfig(path=str(root), streaming=streaming, limit=3), PICTURES)
    assert (len(found.train), found.held_out and len(found.held_out)) == (3, 3)
    assert found.class_names == ("x", "y") and found.train.raw(2) == png(2)
    np.testing.assert_array_equal(found.train.labels, [0, 1, 0])
    with pytest.raises(ValueError, match=r"no split 'extra'; there are: train, validation \(--data\.split\)"):
        read_hub(DataConfig(path=str(root), split="extra", limit=3, streaming=streaming), PICTURES)


@pytest.mark.usefixtures("hub_cache")
def test_tables_of_addresses(tmp_path: Path) -> None:
    root = write(tmp_path / "set", ["train/a/1.png", "train/b/2.png"])
    found = read_hub(DataConfig(path=str(root), streaming=True, limit=2), PICTURES)
    assert found.class_names == ("a", "b")
    assert found.train.raw(0) == root / "train/a/1.png"
    cells = [{"bytes": None, "path": f"file://{root}/train/b/2.png"}, {"bytes": None, "path": None}, None]
    rows = Rows(PICTURES, "train", pa.chunked_array([pa.array(cells)]), None)
    assert rows.raw(0) == png(1)
    for empty in (1, 2):
        with pytest.raises(ValueError, match=f"train:{empty}: the row holds no picture"):
            rows.raw(empty)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*args: object, **options: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"some/name: no such folder.*the Hub did not.*no route to host"):
        load("some/name")


# What cannot be used


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "path is empty"),
        ({"valid_fraction": 5.0}, r"must be in \[0, 1\) .*got 5\.0"),
        ({"limit": 0}, "at least 1, got 0"),
        ({"streaming": True}, r"data\.streaming needs data\.limit"),
        ({"workers": -1}, "at least 0, got -1"),
        ({"split": "test"}, "both 'test'"),
    ],
)
def test_config_validates_itself(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)  # type: ignore[arg-type]


def test_paths_that_hold_no_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("a")
    write(tmp_path / "mixed", ["a.png"])
    (tmp_path / "mixed" / "a.parquet").write_bytes(b"")
    for path, message in {
        str(tmp_path / "nowhere"): "nowhere: no such file or folder, and not a Hub name",
        str(tmp_path / "empty"): r"no pictures \(\.bmp, .*\) and no \.parquet files .* 0 other files",
        str(tmp_path / "other"): "1 other files; check --data.path",
        str(tmp_path / "other" / "a.txt"): r"is one file, expected a folder or a \.parquet file",
        str(tmp_path / "mixed"): "1 pictures and 1 Parquet files; point --data.path at",
        "embedded:cats": "embedded:cats: .*there are: embedded:digits, embedded:emoji, embedded:speech",
        "embedded:speech": r"embedded:speech: holds sound files \(column 'audio'\), expected pictures",
    }.items():
        with pytest.raises(ValueError, match=message):
            load(path)


def test_columns_and_splits_that_are_not_there(tmp_path: Path) -> None:
    for options, message in (
        ({"column": "photo"}, "no column 'photo'; there are: image, label, codepoints"),
        ({"column": "label"}, "column 'label' holds int64, expected pictures"),
        ({"label_column": "kind"}, r"no column 'kind'; there are: .*\(--data\.label-column\)"),
        ({"split": "dev"}, r"no split 'dev'; there are: test, train \(--data\.split\)"),
    ):
        with pytest.raises(ValueError, match=message):
            load("embedded:emoji", **options)
    with pytest.raises(ValueError, match=r"no split 'dev'; there are: a, b \(--data\.split\)"):
        load(write(tmp_path, ["a/1.png", "b/2.png"]), split="dev")


@pytest.mark.usefixtures("hub_cache")
def test_parquet_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ValueError, match=r"bad\.parquet: cannot be read as Parquet"):
        load(tmp_path / "bad.parquet")
    floats = write_table(tmp_path / "f.parquet", range(2), label=[0.5, 1.5])
    with pytest.raises(ValueError, match="labels must be class numbers or names, got float; choose another"):
        load(floats)
    ids = write_table(tmp_path / "i.parquet", range(2), label=[5, 10**12])
    with pytest.raises(ValueError, match="labels must be class numbers from 0 to 999999, got 5"):
        load(ids)
    assert load(ids, label_column="none", valid_fraction=0).train.labels is None


def test_ignored_options_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(folder_of(tmp_path), column="image", label_column="label")
    assert "--data.column has no effect on a folder" in caplog.text
    assert "--data.label-column has no effect on a folder" in caplog.text
    load("embedded:digits", limit=2, valid_fraction=0.2)
    assert "--data.valid-fraction has no effect" in caplog.text


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
    assert re.fullmatch(r"skipped 3 of 20 pictures: 003\.png: not a picture.* \(…and 2 more\)", message)


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ValueError, match=r"no picture can be read; skipped 1 of 1 pictures: a\.png: not a"):
        load(tmp_path)


def test_pictures_of_several_shapes_are_an_error(tmp_path: Path) -> None:
    root = write(tmp_path, ["a.png"])
    (root / "b.png").write_bytes(png(1, (5, 6)))
    with pytest.raises(ValueError, match=r"b\.png: is \(3, 5, 6\) .* before it are \(3, 4, 4\); give all"):
        load_splits(DataConfig(path=str(root)), ANY_SIZE)


def test_pictures_that_become_unreadable_are_replaced(
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
    assert [name for name, _ in train.skipped] == ["a/1.png", "b/3.png"]
    assert len(caplog.records) == 2
    (root / "a/0.png").unlink()
    (root / "b/2.png").unlink()
    with pytest.raises(ValueError, match="none of 4 pictures can be read any more"):
        train.x(0)


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
    assert "all pictures are equal" in caplog.text


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
    with pytest.raises(ValueError, match=r"batch size 3 .*; the nearest that can: 4$"):
        batches(examples, batch_size=3, world=4, seed=0, stop_step=1)
    with pytest.raises(ValueError, match="at least 1 micro-batch"):
        batches(examples, batch_size=3, micro_batches=0, seed=0, stop_step=1)
    caplog.set_level(logging.WARNING)
    (batch,) = batches(examples, batch_size=42, seed=0, stop_step=1)
    assert "a batch of 42 repeats examples: there are only 21" in caplog.text
    assert np.bincount(batch.index).tolist() == [2] * 21


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_held_out_examples_are_seen_once(examples: Examples, world: int) -> None:
    parts = [list(held_out_batches(examples, 8, rank, world)) for rank in range(world)]
    assert {len(part) for part in parts} == {3}
    seen = torch.cat([b.index for part in parts for b in part])
    assert sorted(seen.tolist()) == list(range(21))
    assert all(b.x.shape[1:] == (3, 4, 4) and len(b.x) == len(b.labels) for part in parts for b in part)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        next(held_out_batches(examples, 0))


def test_held_out_batches_of_no_rows_keep_their_shape(tmp_path: Path) -> None:
    train = load(write(tmp_path, ["a.png", "b.png"]), cache_bytes=0, valid_fraction=0).train
    (batch,) = held_out_batches(train, 8, rank=3, world=4)
    assert batch.x.shape == (0, 3, 4, 4) and batch.x.dtype == torch.uint8 and batch.labels.shape == (0,)


def test_to_float_is_minus_one_to_one() -> None:
    x = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    torch.testing.assert_close(x, torch.tensor([-1.0, -0.6, 1.0]))
