"""What folders of a data set are taken for: splits, classes, wrappers; labels in metadata; and what is said.

Left out: reading the files (test_sources.py), and names of files (test_folders.py).
"""

import json
import logging
import os
import unicodedata
from pathlib import Path

import pytest

from pipelines.data.batches import Splits
from pipelines.data.config import DataConfig, number_labels
from tests.helpers.pictures_on_disk import load, write


def folders(root: Path, *names: str) -> Path:
    """`root` with two pictures in each of these folders, no two alike."""
    return write(root, [f"{name}/{i}.png" for name in names for i in range(2)])


def ids(splits: Splits) -> tuple[set[str], set[str]]:
    """The folders of the examples to train on, and of those held out."""
    both = (splits.train, splits.held_out)
    train, held_out = ({os.path.dirname(s.id(i)) for i in range(len(s))} for s in both)
    return train, held_out


@pytest.mark.parametrize(
    ("names", "train", "held_out", "classes"),
    [
        (("train/cat", "train/dog"), ("train/cat", "train/dog"), (), ("cat", "dog")),
        (("Training/cat", "Testing/cat"), ("Training/cat",), ("Testing/cat",), ("cat",)),
        (("train/cat", "dev/cat"), ("train/cat",), ("dev/cat",), ("cat",)),
        (("train/cat", "eval/cat"), ("train/cat",), ("eval/cat",), ("cat",)),
        (("TRAIN/cat", "Val/cat", "TEST/cat"), ("TRAIN/cat",), ("TEST/cat",), ("cat",)),
        (("set/train/cat", "set/test/cat"), ("set/train/cat",), ("set/test/cat",), ("cat",)),
        (("a/b/train/cat", "a/b/test/dog"), ("a/b/train/cat",), ("a/b/test/dog",), ("cat",)),
        (("pets/cat", "pets/dog"), ("pets/cat", "pets/dog"), (), ("cat", "dog")),
        (("train/cat", "test/cat", "extra/cat"), ("train/cat",), ("test/cat",), ("cat",)),
        (("train-2017", "val-2017"), ("train-2017",), ("val-2017",), ()),
        (
            ("L/train-clean-100/19/1", "L/train-other-500/20/2", "L/dev-clean/21/3", "L/test-clean/22/4"),
            ("L/train-clean-100/19/1", "L/train-other-500/20/2"),
            ("L/test-clean/22/4",),
            ("19", "20"),
        ),
        (
            ("train-clean-100/19", "train-clean-360/7"),
            ("train-clean-100/19", "train-clean-360/7"),
            (),
            ("7", "19"),
        ),
        (("train", "plane", "bus"), ("train", "plane", "bus"), (), ("bus", "plane", "train")),
        (("train-old", "train-new"), ("train-old", "train-new"), (), ("train-new", "train-old")),
        (("10", "9", "1"), ("10", "9", "1"), (), ("1", "9", "10")),
        (("test/cat", "test/dog"), ("test/cat", "test/dog"), (), ("cat", "dog")),
        (("cat",), ("cat",), (), ("cat",)),
    ],
)
def test_folders_are_taken_for_what_they_are_called(
    names: tuple[str, ...],
    train: tuple[str, ...],
    held_out: tuple[str, ...],
    classes: tuple[str, ...],
    tmp_path: Path,
) -> None:
    splits = load(folders(tmp_path / "data", *names), valid_fraction=0)
    assert ids(splits) == (set(train), set(held_out)) and splits.class_names == classes


def test_splits_that_are_asked_for(tmp_path: Path) -> None:
    root = folders(tmp_path / "data", "Fold1/cat", "fold2/cat", "fold3/cat")
    assert ids(load(root, split="fold1", test_split="fold3")) == ({"Fold1/cat"}, {"fold3/cat"})
    assert ids(load(root, split="fold2", valid_fraction=0)) == ({"fold2/cat"}, set())
    with pytest.raises(
        ValueError, match=r"no split 'fold4'; there are: Fold1, fold2, fold3 \(--data\.split\)"
    ):
        load(root, split="fold4")


def test_held_out_folders_without_one_to_train_on_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"test/ .* to train on.*--data\.split.*test, val"):
        load(folders(tmp_path / "data", "test/cat", "val/cat"))


def said(caplog: pytest.LogCaptureFixture, root: Path, **options: object) -> str:
    """The one line that says what was found."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        load(root, **options)
    (line,) = (r.getMessage() for r in caplog.records if " to train on" in r.getMessage())
    return line


def test_what_was_found_and_left_out_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folders(tmp_path / "data", "train/cat", "train/dog", "test/cat", "extra/cat")
    for name in (*(f"train/cat/{i}.heic" for i in range(20)), "train/notes.txt", "train/metadata.csv"):
        (root / name).write_text("file_name\n")
    line = said(caplog, root)
    assert line.startswith(
        "4 pictures of 2 classes (cat, dog) to train on, 2 held out (folder test); left out: "
    )
    for part in ("2 pictures in extra/", "20 .heic (convert", "train/notes.txt", "train/metadata.csv"):
        assert part in line
    assert line.endswith("(not pictures)")
    for name in ("._0.png", ".DS_Store", ".git/9.png"):
        (root / "train/cat" / name).parent.mkdir(exist_ok=True)
        (root / "train/cat" / name).touch()
    assert said(caplog, root).endswith("1 hidden (train/cat/._0.png: the names begin with a dot)")
    (root / "loose.png").write_bytes((root / "test/cat/0.png").read_bytes())
    assert "1 pictures beside the splits" in said(caplog, root)
    assert said(caplog, folders(tmp_path / "more", "a", "b"), valid_fraction=0).endswith("none held out")


def test_a_folder_without_data_says_what_it_holds(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.HEIC").touch()
    with pytest.raises(ValueError, match=r"5 \.heic \(.*heif-convert.*--data\.path"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_labels_of_metadata(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path / "data", [f"{i}.png" for i in range(5)])
    rows = [{"file_name": f"{i}.png", "label": ["dog", "cat"][i % 2], "n": str(i // 2)} for i in range(4)]
    lines = ["file_name,label,n", *(",".join(map(str, row.values())) for row in rows)]
    lines = lines if kind == "csv" else [json.dumps(row) for row in rows]
    (root / f"metadata.{kind}").write_text("\n".join(lines))
    splits = load(root, valid_fraction=0)
    assert splits.class_names == ("cat", "dog") and splits.train.labels is not None
    assert splits.train.labels.tolist() == [1, 0, 1, 0, -1]
    assert load(root, valid_fraction=0, label_column="n").class_names == ("0", "1")
    assert "left out" not in said(caplog, root)
    assert load(root, label_column="none").class_names == ()
    with pytest.raises(
        ValueError, match=rf"metadata\.{kind}: no column 'kind'; .*file_name, label, n .*--data\.label-column"
    ):
        load(root, label_column="kind")
    (root / f"metadata.{kind}").write_text("\n".join([*lines, lines[-1].replace("cat", "cow")]))
    with pytest.raises(ValueError, match=r"metadata.*: 3\.png .*'cat' and 'cow'; keep one"):
        load(root)


def test_labels_without_files_and_files_without_labels_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write(tmp_path / "data", ["0.png", "1.png", "2.png"])
    (root / "metadata.csv").write_text("file_name,label\n0.png,a\nimages/1.png,b\n")
    splits = load(root, valid_fraction=0)
    assert splits.class_names == ("a",)
    assert "1 labels of metadata are of files that are not there, the first is images/1.png" in caplog.text
    assert "2 of 3 files have no label in metadata" in caplog.text


def test_metadata_of_each_split(tmp_path: Path) -> None:
    root = folders(tmp_path / "data", "train", "test")
    for split, label in {"train": "b", "test": "c"}.items():
        (root / split / "metadata.csv").write_text(f"file_name,label\n0.png,{label}\n1.png,b\n")
    splits = load(root)
    assert splits.class_names == ("b",) and splits.train.labels is not None
    assert splits.held_out.labels is not None and splits.held_out.labels.tolist() == [-1, 0]


def test_metadata_that_cannot_be_read(tmp_path: Path) -> None:
    root = write(tmp_path / "data", ["0.png"])
    for text, message in {
        "{": "line 1 column 2.*correct .*remove",
        '"0.png"': "no object.*correct .*remove",
        '{"label": 1}': "no file_name",
    }.items():
        (root / "metadata.jsonl").write_text(text)
        with pytest.raises(ValueError, match=rf"metadata\.jsonl: .*{message}"):
            load(root)


def test_sparse_numbers_are_classes_that_occur() -> None:
    labels, names = number_labels([[90210, 3, None, 1001], [3, 7]], None, "here")
    assert names == ("3", "1001", "90210")
    assert [part.tolist() for part in labels if part is not None] == [[2, 0, -1, 1], [0, -1]]


def test_classes_of_held_out_data_alone_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits = load(folders(tmp_path / "data", "train/cat", "test/cat", "test/emu"))
    assert splits.class_names == ("cat",)
    assert splits.held_out.labels is not None and splits.held_out.labels.tolist() == [0, 0, -1, -1]
    assert "only the held-out examples have them: emu" in caplog.text


def test_names_of_one_class_in_two_forms_of_unicode(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    root = folders(tmp_path / "data", f"train/{forms[0]}", f"test/{forms[1]}")
    splits = load(root)
    assert splits.class_names == (forms[0],)
    assert splits.held_out.labels is not None and splits.held_out.labels.tolist() == [0, 0]


def test_the_default_data_have_splits_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    assert "held out (a split of its own)" in said(caplog, Path("embedded:digits"), limit=4)
    assert DataConfig().split == "train"
