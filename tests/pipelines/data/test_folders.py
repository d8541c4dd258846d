"""Names of files in folders: any bytes, and little memory for many.

Left out: which files there are and what they are (`test_sources.py`).
"""

import os
import tracemalloc
from pathlib import Path

import pytest

from pipelines.data.folders import Names
from tests.helpers.pictures_on_disk import load, write


def test_names_take_little_memory() -> None:
    plain = [f"class-{i % 10}/picture-{i:07}.png" for i in range(20_000)]
    tracemalloc.start()
    names = Names(plain)
    current, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [names[i] for i in range(len(names))] == plain
    assert current < 20_000 * (len(plain[0]) + 16)  # as a list of strings: 80 + 8


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
@pytest.mark.parametrize("folder", ["zoo", os.fsdecode(b"\xffzoo")])
def test_names_of_any_bytes(folder: str, cache_bytes: int, tmp_path: Path) -> None:
    odd = ["a/ü 1.png", os.fsdecode(b"a/\xff.png"), "b/東.png"]
    root = write(tmp_path / folder, odd)
    splits = load(root, cache_bytes, valid_fraction=0)
    assert {splits.train.id(i) for i in range(3)} == {"a/ü 1.png", r"a/\xff.png", "b/東.png"}
    assert splits.class_names == ("a", "b")
    assert splits.train.skipped == ()
    assert len(Names([])) == 0
