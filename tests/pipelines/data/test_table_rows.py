"""Rows of tables that name files: those of the table's folder are read, no others, no other machine is asked.

Left out: rows of bytes (test_sources.py, test_sound_sources.py).
"""

import re
import sys
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.pictures import PICTURES
from pipelines.data.tables import TableRows
from tests.helpers.pictures_on_disk import load, png


def rows(*paths: str | None, folders: tuple[Path, ...] = (), remote: bool = False) -> TableRows:
    cells = pa.array([{"bytes": None, "path": p} for p in paths])
    return TableRows(PICTURES, "train", pa.chunked_array([cells]), None, folders, remote)


@pytest.fixture
def nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("fsspec")
    monkeypatch.setattr(module, "open", lambda *_, **__: pytest.fail("something was fetched"), raising=False)
    monkeypatch.setitem(sys.modules, "fsspec", module)


def test_files_beside_a_table_are_found(tmp_path: Path) -> None:
    found = rows(
        "a.png", "b/./c.png", str(tmp_path / "d.png"), f"file://{tmp_path}/e.png", folders=(tmp_path,)
    )
    names = ("a.png", "b/c.png", "d.png", "e.png")
    assert [found.raw(i) for i in range(4)] == [str(tmp_path / name) for name in names]


@pytest.mark.parametrize(
    "path",
    [
        *("../a.png", "b/../../a.png", "/etc/passwd", "~/a.png/../../../a.png", "file:///etc/passwd"),
        *("file://../a.png", "zip://a.png::b.zip", "zip://a.png::file:///tmp/b.zip", "../inside-not/a.png"),
    ],
)
@pytest.mark.usefixtures("nothing_is_fetched")
def test_files_elsewhere_are_refused(path: str, tmp_path: Path) -> None:
    for folders in ((tmp_path / "inside",), ()):
        for remote in (False, True):
            with pytest.raises(
                ValueError, match=f"train:0: .*{re.escape(repr(path))}.*in the table.*beside it"
            ):
                rows(path, folders=folders, remote=remote).raw(0)


@pytest.mark.parametrize(
    "path",
    [
        *("http://127.0.0.1/a.png", "https://a.b/c", "s3://a/b", "ssh://a/b", "github://a:b@/c"),
        *("reference://a::hf://b", "simplecache://a::hf://b", "zip://a::http://b", "hf://a::http://b"),
    ],
)
@pytest.mark.usefixtures("nothing_is_fetched")
def test_other_machines_are_not_asked(path: str, tmp_path: Path) -> None:
    for remote in (False, True):
        with pytest.raises(
            ValueError, match=f"train:0: .*{re.escape(path.split('::')[-1])}.*Hub.*in the table"
        ):
            rows(path, folders=(tmp_path,), remote=remote).raw(0)


@pytest.mark.parametrize("path", ["hf://datasets/a/b/c.png", "zip://c.png::hf://datasets/a/b/c.zip"])
def test_files_of_a_streamed_data_set_are_fetched(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    asked = []

    class Opened:
        def __enter__(self) -> "Opened":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self) -> bytes:
            return b"content"

    monkeypatch.setattr(fsspec, "open", lambda place, mode: asked.append((place, mode)) or Opened())
    assert rows(path, remote=True).raw(0) == b"content" and asked == [(path, "rb")]
    with pytest.raises(ValueError, match=r"train:0: .*'hf://.*'.*Hub.*in the table"):
        rows(path).raw(0)


def test_rows_that_name_files_elsewhere_are_skipped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "set"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(png(1))
    (root / "own.png").write_bytes(png(2))
    cells = [
        {"bytes": png(3), "path": "/nowhere/but/the/bytes/are/here.png"},
        *({"bytes": None, "path": p} for p in ("own.png", "../secret.png", str(tmp_path / "secret.png"))),
    ]
    pq.write_table(pa.table({"image": cells}), root / "a.parquet")
    train = load(root / "a.parquet", valid_fraction=0).train
    assert [train.id(i) for i in range(len(train))] == ["train:0", "train:1"]
    assert [name for name, _ in train.skipped] == ["train:2", "train:3"]
    assert all("which is not in" in why for _, why in train.skipped)
