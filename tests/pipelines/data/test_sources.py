"""Data: where examples come from, and what cannot be used.

Left out: what is skipped, held out and in which order it comes (`test_order.py`).
"""

import logging
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipelines.data import tables as table_sources
from pipelines.data.batches import batches, load_splits
from pipelines.data.config import DataConfig
from pipelines.data.pictures import PICTURES
from pipelines.data.tables import TableRows, read_hub
from tests.helpers.pictures_on_disk import ANY_SIZE, FIT, contents, folder_of, load, png, write

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
    assert len(splits.held_out) == 0 and list(splits.held_out.inputs(4)) == []
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


def test_folders_linked_to_each_other_are_read_once(tmp_path: Path) -> None:
    root = write(tmp_path / "root", ["b/1.png", "c/2.png"])
    (root / "b" / "to-c").symlink_to(root / "c")
    (root / "c" / "to-b").symlink_to("../b")
    (root / "a").symlink_to(root / "b")  # before it in the order of names, but the folder itself counts
    elsewhere = write(tmp_path / "elsewhere", ["deep/3.png"], first=5)
    (root / "d").symlink_to(elsewhere / "deep")
    (root / "e").symlink_to(elsewhere)
    splits = load(root, valid_fraction=0)
    ids = [splits.train.id(i) for i in range(len(splits.train))]
    assert ids == ["b/1.png", "c/2.png", "d/3.png"] and splits.class_names == ("b", "c", "d")


def test_a_link_to_nothing_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path / "root", ["a/1.png", "b/2.png"])
    (root / "c").symlink_to("nowhere")
    (root / "d").symlink_to("d")
    (root / "a" / "3.png").symlink_to(tmp_path / "gone.png")
    for valid_fraction in (0, 0.5):
        splits = load(root, valid_fraction=valid_fraction)
        missing = f"is a link to {tmp_path / 'gone.png'}, which is not there"
        assert splits.train.skipped == (("a/3.png", missing),)
        assert f"{root / 'c'}: is a link to nowhere, which is not there" in caplog.text
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=f"link: .*{tmp_path / 'gone'}.*--data.path"):
        load(tmp_path / "link")


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
    assert set(tmp_path.iterdir()) == {path}
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
def test_tables_of_splits_in_any_case_and_of_those_that_are_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i, split in enumerate(("Training", "Test", "dev")):
        write_table(tmp_path / "data" / f"{split}-00000.parquet", range(3 * i, 3 * i + 3))
    with caplog.at_level(logging.INFO):
        load(tmp_path / "data")
    assert (
        "3 pictures to train on, 3 held out (a split of its own); left out: dev-00000.parquet" in caplog.text
    )


def test_parquet_files_are_not_copied_into_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    path = write_table(tmp_path / "set" / "train-0.parquet", range(5), label=[*"abaab"])
    write_table(tmp_path / "set" / "test-0.parquet", range(5, 8), label=[*"aba"])
    (tmp_path / "a file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "a file")
    splits = load(path.parent)
    assert (len(splits.train), len(splits.held_out), splits.class_names) == (5, 3, ("a", "b"))
    monkeypatch.setattr(table_sources, "IN_MEMORY", 10)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert load(path.parent).digest() == splits.digest()
    assert (tmp_path / "cache").is_dir()
    write_table(tmp_path / "set" / "train-1.parquet", range(8, 10))
    for limit in (10, 1 << 30):  # a column that one of the files lacks
        monkeypatch.setattr(table_sources, "IN_MEMORY", limit)
        labels = load(path.parent).train.labels
        assert labels is not None and labels.tolist() == [0, 1, 0, 0, 1, -1, -1]
    write_table(tmp_path / "set" / "train-2.parquet", range(10, 12), label=[[1], [2]])
    for limit in (10, 1 << 30):
        monkeypatch.setattr(table_sources, "IN_MEMORY", limit)
        with pytest.raises(ValueError, match=r"set: .*same columns; download .*--data\.path .*int64"):
            load(path.parent)


def test_a_cache_that_cannot_be_written_names_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/cache")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    monkeypatch.setattr(table_sources, "IN_MEMORY", 10)
    with pytest.raises(ValueError, match=r"a\.parquet: .*Permission denied.*HF_HOME"):
        load(write_table(tmp_path / "a.parquet", range(3)))


@pytest.mark.parametrize("several", [True, False])
def test_data_sets_saved_to_disk(several: bool, tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(4)], "label": [0, 1, 0, 1]}
    one = datasets.Dataset.from_dict(rows, features=features)
    saved = datasets.DatasetDict(train=one, dev=one.select([0])) if several else one
    saved.save_to_disk(tmp_path / "saved")
    splits = load(tmp_path / "saved", **({} if several else {"valid_fraction": 0}))
    assert splits.class_names == ("x", "y") and splits.name == "saved"
    assert (len(splits.train), len(splits.held_out)) == (4, int(several))
    (tmp_path / "saved" / ("dataset_dict.json" if several else "state.json")).write_text("{")
    with pytest.raises(ValueError, match=r"saved: .*save_to_disk.*; .*download .*--data\.path"):
        load(tmp_path / "saved")


def test_archives_are_named_with_the_way_to_unpack_them(tmp_path: Path) -> None:
    (tmp_path / "0001.tar").touch()
    (tmp_path / "more.zip").touch()
    with pytest.raises(ValueError, match=r"1 \.tar \(.*tar -xf.*1 \.zip \(.*unzip.*--data\.path"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"0001\.tar: .*one file, expected .*\.parquet.*tar -xf"):
        load(tmp_path / "0001.tar")


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
    assert found.train.raw(0) == str(root / "train/a/1.png")
    cells = [{"bytes": None, "path": f"file://{root}/train/b/2.png"}, {"bytes": None, "path": None}, None]
    rows = TableRows(PICTURES, "train", pa.chunked_array([pa.array(cells)]), None, (root,))
    assert rows.raw(0) == str(root / "train/b/2.png")
    for empty in (1, 2):
        with pytest.raises(ValueError, match=f"train:{empty}: .*no picture.*remove"):
            rows.raw(empty)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*args: object, **options: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"some/name: .*Hub .*--data\.config.*no route to host"):
        load("some/name")


# What cannot be used


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "data.path is empty; .*embedded:NAME"),
        ({"valid_fraction": 5.0}, r"data\.valid_fraction .*\[0, 1\) .*got 5\.0"),
        ({"limit": 0}, "data.limit .*at least 1, got 0"),
        ({"streaming": True}, r"data\.streaming needs data\.limit"),
        ({"workers": -1}, "data.workers .*at least 0, got -1"),
        ({"split": "test"}, "data.split and data.test_split .*'test'"),
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
        str(tmp_path / "nowhere"): "nowhere: .*user/name.*embedded:NAME.*--data.path",
        str(tmp_path / "empty"): r"empty: no pictures.*\.parquet.*nothing.*--data\.path",
        str(tmp_path / "other"): r"other: .* a\.txt .*--data\.path",
        str(tmp_path / "other" / "a.txt"): r"a\.txt: .*one file, expected .*\.parquet.*give its folder",
        str(tmp_path / "mixed"): "mixed: .*1 pictures .*1 Parquet files; .*--data.path",
        "embedded:cats": "embedded:cats: .*there are: embedded:digits, embedded:emoji, embedded:speech",
        "embedded:speech": r"embedded:speech: .*'audio'.*expected pictures; .*--data\.path",
    }.items():
        with pytest.raises(ValueError, match=message):
            load(path)


def test_columns_and_splits_that_are_not_there(tmp_path: Path) -> None:
    for options, message in (
        ({"column": "photo"}, r"no column 'photo'; .*image, label, codepoints .*--data\.column"),
        ({"column": "label"}, r"column 'label' .*int64, expected pictures .*--data\.column"),
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
    with pytest.raises(ValueError, match=r"bad\.parquet: .*Parquet magic bytes"):
        load(tmp_path / "bad.parquet")
    floats = write_table(tmp_path / "f.parquet", range(2), label=[0.5, 1.5])
    with pytest.raises(ValueError, match=r"column 'label': .*names, got float; .*--data\.label-column none"):
        load(floats)
    ids = write_table(tmp_path / "i.parquet", range(2), label=[5, -10])
    with pytest.raises(
        ValueError, match=r"column 'label': .*from 0 .*got -10\.\.5; .*--data\.label-column none"
    ):
        load(ids)
    assert load(ids, label_column="none", valid_fraction=0).train.labels is None


def test_ignored_options_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(folder_of(tmp_path), column="image", label_column="label")
    assert "--data.column has no effect on a folder" in caplog.text
    assert "--data.label-column has no effect on a folder" in caplog.text
    load("embedded:digits", limit=2, valid_fraction=0.2)
    assert "--data.valid-fraction has no effect" in caplog.text
