"""Data sets of tokens: what is written is read, what is held out, and who gets which rows.

Left out: tokens of sound (test_clips.py) and tokens that are broken (robustness/test_broken_tokens.py).
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from pipelines.data.batches import order
from pipelines.tokens.items import TokenSplit, read_tokens, token_batches
from tests.helpers.tokens import INFO, info_with, some_codes, write
from tokenizer.distributed import keyed_generator


def test_written_tokens_are_read(tmp_path: Path) -> None:
    train, held_out = some_codes(7), some_codes(3, key=1)
    path = write(tmp_path, train, [0, 1, 1, 0, -1, 1, 0])
    write(tmp_path, held_out, [1, 1, 0], split="held_out")
    info, splits = read_tokens(tmp_path)
    assert info == INFO and info.codes_per_item == 12
    codes, labels = splits["train"].rows(slice(None))
    assert codes.dtype == torch.int64 and torch.equal(codes, train)
    assert labels.dtype == torch.int64 and labels.tolist() == [0, 1, 1, 0, -1, 1, 0]
    codes, labels = splits["held_out"].rows(np.array([2, 0]))
    assert torch.equal(codes, held_out[[2, 0]]) and labels.tolist() == [0, 1]
    assert torch.equal(splits["train"].first(2).rows(slice(None))[0], train[:2])
    table = pq.read_table(path)
    assert path.name == "train-00000-of-00001.parquet"
    assert table.column_names == ["codes", "label", "id", "view"]
    assert table["id"].to_pylist()[:2] == ["train:0:0", "train:0:1"]


@pytest.mark.parametrize(
    ("size", "kind"), [(50, pa.uint16()), (1 << 16, pa.uint16()), ((1 << 16) + 1, pa.uint32())]
)
def test_codes_take_as_few_bytes_as_they_need(size: int, kind: pa.DataType, tmp_path: Path) -> None:
    info = info_with(codebook_size=size)
    codes = some_codes(4, info)
    codes.view(-1)[0] = size - 1
    path = write(tmp_path, codes, info=info)
    assert pq.read_schema(path).field("codes").type.value_type == kind
    assert torch.equal(read_tokens(tmp_path)[1]["train"].rows(slice(None))[0], codes)


def test_shards_are_read_in_their_order(tmp_path: Path) -> None:
    codes = some_codes(24)
    for shard in (11, 2, 0, 1, *range(3, 11)):  # the order of writing does not count
        write(tmp_path, codes[2 * shard : 2 * shard + 2], [shard % 2] * 2, shard=shard, shards=12)
    split = read_tokens(tmp_path)[1]["train"]
    assert torch.equal(split.rows(slice(None))[0], codes)
    assert split.labels.tolist() == [s % 2 for s in range(12) for _ in range(2)]


def test_an_empty_shard_is_fine(tmp_path: Path) -> None:
    codes = some_codes(3)
    write(tmp_path, codes, shard=0, shards=2)
    write(tmp_path, codes[:0], shard=1, shards=2)
    write(tmp_path, codes[:0], split="held_out")
    splits = read_tokens(tmp_path)[1]
    assert len(splits["train"]) == 3 and len(splits["held_out"]) == 0


# Holding out


def test_without_a_held_out_file_the_hash_of_the_codes_decides(tmp_path: Path) -> None:
    codes = some_codes(400)
    codes[200:] = codes[:200]  # every item twice
    write(tmp_path / "a", codes)
    shuffled = torch.randperm(400, generator=keyed_generator(5))
    write(tmp_path / "b", codes[shuffled])

    def held_out(folder: str, fraction: float) -> list[bytes]:
        _, splits = read_tokens(tmp_path / folder, fraction)
        assert len(splits["train"]) + len(splits["held_out"]) == 400
        train, held = ([s.content(i) for i in range(len(s))] for s in splits.values())
        assert not set(train) & set(held)  # equal items stay on one side
        return sorted(held)

    assert 20 < len(held_out("a", 0.1)) < 70
    assert held_out("a", 0.1) == held_out("b", 0.1)  # neither order nor names decide
    assert set(held_out("a", 0.1)) < set(held_out("a", 0.3))
    assert held_out("a", 0.0) == []


@pytest.mark.parametrize("count", [1, 2, 5])
def test_of_few_items_one_at_least_is_trained_on(count: int, tmp_path: Path) -> None:
    def split(codes: Tensor, name: str) -> tuple[set[bytes], set[bytes]]:
        write(tmp_path / name, torch.cat([codes, codes]))
        train, held = read_tokens(tmp_path / name, 0.999)[1].values()
        return {train.content(i) for i in range(len(train))}, {held.content(i) for i in range(len(held))}

    codes = some_codes(count)
    train, held = split(codes, "a")
    assert (len(train), len(held)) == (1, count - 1)
    assert split(codes.flip(0), "b") == (train, held)


def test_a_held_out_file_is_taken_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, some_codes(100))
    write(tmp_path, some_codes(4, key=1), split="held_out")
    splits = read_tokens(tmp_path, 0.5)[1]
    assert len(splits["train"]) == 100 and len(splits["held_out"]) == 4


def test_labels_are_held_out_with_their_codes(tmp_path: Path) -> None:
    codes = some_codes(60)
    labels = codes[:, 0, 0, 0] % 2
    write(tmp_path, codes, labels.numpy())
    for split in read_tokens(tmp_path, 0.3)[1].values():
        codes, found = split.rows(slice(None))
        assert len(split) and torch.equal(found, codes[:, 0, 0, 0] % 2)


# Batches


def split_of(count: int) -> TokenSplit:
    """Items whose first code is their number."""
    codes = some_codes(count).numpy().astype(np.uint16)
    codes[:, 0, 0, 0] = np.arange(count)
    return TokenSplit(codes, np.arange(count) % 2)


def numbers(split: TokenSplit, **arguments: int) -> dict[tuple[int, int], list[int]]:
    """By (step, row of the global batch): which item."""
    found: dict[tuple[int, int], list[int]] = {}
    defaults = {"micro_batches": 1, "rank": 0, "world": 1, "seed": 3, "start_step": 0, "stop_step": 4}
    for batch in token_batches(split, **{**defaults, **arguments}):
        assert batch.x.dtype == batch.labels.dtype == torch.int64
        for row, (codes, label) in enumerate(zip(batch.x, batch.labels, strict=True)):
            item = int(codes[0, 0, 0])
            assert int(label) == item % 2 and np.array_equal(codes.numpy(), split.codes[item])
            found.setdefault((batch.step, batch.offset + row), []).append(item)
    return found


@pytest.mark.parametrize(("world", "micro_batches"), [(1, 1), (1, 3), (2, 1), (2, 3), (4, 3)])
def test_ranks_and_accumulation_share_one_global_batch(world: int, micro_batches: int) -> None:
    split, together = split_of(17), {}
    for rank in range(world):
        part = numbers(split, batch_size=12, micro_batches=micro_batches, rank=rank, world=world)
        assert not together.keys() & part.keys()
        together |= part
    assert together == numbers(split, batch_size=12)
    expected = order(17, 3, 0, 48)
    assert [together[s, r] for s in range(4) for r in range(12)] == [[i] for i in expected]


def test_micro_batches_come_in_turn_with_their_places() -> None:
    arguments = {"batch_size": 12, "micro_batches": 3, "rank": 1, "world": 2, "seed": 0}
    found = list(token_batches(split_of(17), **arguments, start_step=5, stop_step=7))
    assert [(b.step, b.micro, b.offset, len(b.x)) for b in found] == [
        *((5, 0, 2, 2), (5, 1, 6, 2), (5, 2, 10, 2)),
        *((6, 0, 2, 2), (6, 1, 6, 2), (6, 2, 10, 2)),
    ]


def test_a_resume_gets_the_tail() -> None:
    split = split_of(17)
    whole = numbers(split, batch_size=6)
    assert numbers(split, batch_size=6, start_step=2) == {k: v for k, v in whole.items() if k[0] >= 2}


def test_a_batch_larger_than_the_data_repeats_items() -> None:
    found = numbers(split_of(5), batch_size=10, stop_step=1)
    assert sorted(i for items in found.values() for i in items) == sorted([*range(5), *range(5)])
