"""Codes of a split as one array: mapped from a decoded file or in memory, and shards that do not belong.

Left out: what shards hold (test_items.py, test_clips.py), and who writes them
(pipelines/scripts/test_encode_dataset.py).
"""

import dataclasses
import json
import mmap
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.run.folder import TOKENS_FILE
from pipelines.tokens import table as token_table
from pipelines.tokens.info import TokenInfo, require_same_tokens, write_info
from pipelines.tokens.items import TokenSplit, read_tokens, view_phases
from pipelines.tokens.shards import shard_path, write_shard
from tests.helpers.tokens import INFO, SOUND, some_clips, some_codes

VIEWS = 2


def write(folder: Path, info: TokenInfo, shards: int = 3) -> TokenInfo:
    """Shards of seven training items in two views each, and one of two held-out items, and tokens.json."""
    folder.mkdir(exist_ok=True)
    info = dataclasses.replace(info, views=VIEWS, encoding="abcd", shards=(shards, 1))
    sizes = [7] * shards
    for i, size in enumerate(sizes):
        codes = codes_of(info, size * VIEWS, key=i)
        ids = [f"{i}:{j}" for j in range(size)]
        write_shard(folder, "train", i, shards, info, codes, np.arange(size) % 2, ids, VIEWS)
    write_shard(folder, "held_out", 0, 1, info, codes_of(info, 2, key=99), np.zeros(2, np.int64), ["a", "b"])
    write_info(folder, info)
    return info


def codes_of(info: TokenInfo, rows: int, key: int) -> Any:
    if info.grid:
        return some_codes(rows, info, key)
    return some_clips(*(2 + (i * i + key) % 5 for i in range(rows)), info=info, key=key)


def mapped(codes: np.ndarray[Any, Any]) -> bool:
    """Whether an array's memory is that of a mapped file."""
    base: Any = codes
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap)


@pytest.fixture
def map_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_table, "IN_MEMORY", 0)


def decoded(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (folder / token_table.DECODED).glob("*-*")}


@pytest.mark.parametrize("info", [INFO, SOUND])
def test_mapped_codes_are_those_in_memory(
    info: TokenInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, info)
    expected = read_tokens(tmp_path)[1]
    assert not mapped(expected["train"].codes) and not (tmp_path / token_table.DECODED).exists()
    monkeypatch.setattr(token_table, "IN_MEMORY", 0)
    found = read_tokens(tmp_path)[1]
    for name, split in found.items():
        assert mapped(split.codes) and np.array_equal(split.codes, expected[name].codes)
        assert np.array_equal(split.labels, expected[name].labels) and split.views == expected[name].views
    if not info.grid:
        assert np.array_equal(found["train"].spans, expected["train"].spans)
    mask = np.arange(21) % 3 == 0
    some = found["train"].pick(mask)
    assert mapped(some.codes) and len(some) == 7
    assert [some.content(i) for i in range(7)] == [expected["train"].content(3 * i) for i in range(7)]


def test_codes_are_decoded_once(map_all: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, INFO)
    before = read_tokens(tmp_path)[1]["train"].codes
    files = decoded(tmp_path)
    assert sorted(name.split("-")[0] for name in files) == ["held_out", "held_out", "train", "train"]
    with monkeypatch.context() as patch:
        patch.setattr(token_table, "read_shard", lambda *_: pytest.fail("decoded again"))
        assert np.array_equal(read_tokens(tmp_path)[1]["train"].codes, before)
    assert decoded(tmp_path) == files


@pytest.mark.parametrize("change", ["shard", "codes", "index", "cut", "damage", "info"])
def test_they_are_decoded_anew_after_a_change(change: str, map_all: None, tmp_path: Path) -> None:
    info = write(tmp_path, INFO)
    read_tokens(tmp_path)
    before = decoded(tmp_path)
    (codes,) = (tmp_path / token_table.DECODED).glob("train-*.codes")
    expected = read_tokens(tmp_path)[1]["train"].codes.copy()
    if change == "shard":
        new = some_codes(14, INFO, key=50)
        write_shard(tmp_path, "train", 1, 3, info, new, np.zeros(7, np.int64), list("abcdefg"), VIEWS)
        expected[14:28] = new.numpy()
    elif change == "codes":
        codes.write_bytes(codes.read_bytes()[:-2])
    elif change == "index":
        codes.with_suffix(".safetensors").unlink()
    elif change == "cut":
        index = codes.with_suffix(".safetensors")
        index.write_bytes(index.read_bytes()[:50])
    elif change == "damage":
        index = codes.with_suffix(".safetensors")
        held = bytearray(index.read_bytes())
        held[-1] ^= 1  # in the numbers behind the header
        index.write_bytes(held)
    else:
        write_info(tmp_path, dataclasses.replace(info, codebook_size=60))
    assert np.array_equal(read_tokens(tmp_path)[1]["train"].codes, expected)
    train = [name for name in decoded(tmp_path) if name.startswith("train")]
    assert len(train) == 2 and not any(decoded(tmp_path)[name] == before.get(name) for name in train)


def test_decoded_codes_that_came_with_the_shards_are_not_believed(map_all: None, tmp_path: Path) -> None:
    write(tmp_path / "a", INFO)
    expected = read_tokens(tmp_path / "a")[1]["train"].codes.copy()
    for path in (tmp_path / "a" / token_table.DECODED).glob("*.codes"):
        path.write_bytes(b"\xff" * path.stat().st_size)
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # with the times of the files
    assert np.array_equal(read_tokens(tmp_path / "b")[1]["train"].codes, expected)


def test_codes_that_cannot_be_decoded_leave_nothing(map_all: None, tmp_path: Path) -> None:
    write(tmp_path, INFO)
    path = shard_path(tmp_path, "train", 2, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(ValueError, match=rf"{path}: .*CRC checksum.*encode_dataset\.py"):
        read_tokens(tmp_path)
    assert not decoded(tmp_path)
    path.write_bytes(whole)
    assert len(read_tokens(tmp_path)[1]["train"]) == 21


def test_no_place_for_decoded_codes_is_named(map_all: None, tmp_path: Path) -> None:
    write(tmp_path, INFO)
    (tmp_path / token_table.DECODED).write_text("a file")
    with pytest.raises(ValueError, match=r"\.decoded: .* 0 MiB .*File exists.*writable"):
        read_tokens(tmp_path)


# Shards that do not belong


def test_shards_of_another_tokenizer_or_encoding_are_named(tmp_path: Path) -> None:
    info = write(tmp_path / "a", INFO)
    path = shard_path(tmp_path / "a", "train", 1, 3)
    for other, named in (
        (dataclasses.replace(info, fingerprint="f" * 16), f"fingerprint {'f' * 16}.* {info.fingerprint}"),
        (dataclasses.replace(info, encoding="dcba"), "encoding dcba.* abcd"),
    ):
        codes = codes_of(info, 14, key=1)
        write_shard(
            tmp_path / "a", "train", 1, 3, other, codes, np.zeros(7, np.int64), list("abcdefg"), VIEWS
        )
        with pytest.raises(ValueError, match=rf"{path}: .*{named}; .*encode_dataset\.py"):
            read_tokens(tmp_path / "a")


def test_a_shard_under_another_name_is_named(tmp_path: Path) -> None:
    write(tmp_path, INFO)
    os.replace(shard_path(tmp_path, "train", 0, 3), shard_path(tmp_path, "train", 2, 3))
    shutil.copy(shard_path(tmp_path, "train", 2, 3), shard_path(tmp_path, "train", 0, 3))
    with pytest.raises(
        ValueError,
        match=r"train-00002-of-00003\.parquet: .* train-00000-of-00003\.parquet; .*encode_dataset\.py",
    ):
        read_tokens(tmp_path)


def test_all_shards_of_a_split_may_not_be_missing(tmp_path: Path) -> None:
    write(tmp_path, INFO)
    path = shard_path(tmp_path, "held_out", 0, 1)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path}: .*missing; copy .*encode_dataset\.py"):
        read_tokens(tmp_path, 0.5)


def test_views_out_of_order_are_named(tmp_path: Path) -> None:
    write(tmp_path, INFO)
    path = shard_path(tmp_path, "train", 0, 3)
    table = pq.read_table(path)
    for rows in (table[1:], table.take([1, 0, *range(2, 14)])):
        pq.write_table(rows, path)
        with pytest.raises(ValueError, match=rf"{path}: expected 2 views .*encode_dataset\.py"):
            read_tokens(tmp_path)


def test_tokens_of_an_older_release_are_read(tmp_path: Path) -> None:
    codes = some_codes(5)
    path = write_shard(tmp_path, "train", 0, 1, INFO, codes, np.zeros(5, np.int64), list("abcde"))
    pq.write_table(pq.read_table(path).drop_columns(["view"]).replace_schema_metadata(), path)
    write_info(tmp_path, INFO)
    values = json.loads((tmp_path / TOKENS_FILE).read_text())
    for name in ("views", "encoding", "shards"):
        del values[name]
    (tmp_path / TOKENS_FILE).write_text(json.dumps(values))
    info, splits = read_tokens(tmp_path)
    assert info == INFO and torch.equal(splits["train"].rows(slice(None))[0], codes)


def test_a_run_does_not_go_on_with_other_tokens(tmp_path: Path) -> None:
    require_same_tokens(tmp_path, INFO)  # a run of an older release
    write_info(tmp_path, INFO)
    require_same_tokens(tmp_path, dataclasses.replace(INFO, tokenizer="moved/there"))
    with pytest.raises(ValueError, match=f"{tmp_path} .*fingerprint 0123.* {'f' * 16}; .*--output"):
        require_same_tokens(tmp_path, dataclasses.replace(INFO, fingerprint="f" * 16))
    with pytest.raises(ValueError, match=f"{tmp_path} .*encoding unknown.* abcd; .*--output"):
        require_same_tokens(tmp_path, dataclasses.replace(INFO, encoding="abcd"))


# Views by epoch


def test_an_epoch_shows_every_item_in_one_view() -> None:
    codes = np.arange(60, dtype=np.uint16).reshape(60, 1, 1, 1)  # 20 items in views 3 i, 3 i + 1, 3 i + 2
    split = TokenSplit(codes, np.zeros(20, np.int64), views=3, seed=1)
    index = np.random.default_rng(0).permutation(20)

    def shown(split: TokenSplit, epoch: int) -> list[int]:
        return split.rows(index, np.full(20, epoch))[0].flatten().tolist()

    epochs = [shown(split, epoch) for epoch in range(6)]
    assert all([row // 3 for row in epoch] == index.tolist() for epoch in epochs)
    assert sorted(row for epoch in epochs[:3] for row in epoch) == list(range(60))
    assert epochs[3:] == epochs[:3] and epochs[0] != epochs[1]
    assert {row % 3 for row in epochs[0]} == {0, 1, 2}  # all views in every epoch
    assert shown(dataclasses.replace(split, seed=2), 0) != epochs[0]
    assert split.rows(index)[0].flatten().tolist() == (3 * index).tolist()
    some = split.pick(np.arange(20) % 2 == 1).first(4)
    assert some.rows(slice(None))[0].flatten().tolist() == [3, 9, 15, 21] and len(some) == 4
    everything = split.rows(slice(None), np.full(20, 2))[0].flatten()
    assert torch.equal(some.rows(slice(1, 3), np.full(2, 2))[0].flatten(), everything[[3, 5]])


def test_phases_are_of_the_seed_and_even() -> None:
    phases = view_phases(9000, 3, 0)
    assert np.bincount(phases).min() > 2800 and not np.array_equal(phases, view_phases(9000, 3, 1))
