"""Data sets of tokens: what is written is read, what is broken is named, and who gets which rows.

Left out: windows over tokens of sound (test_windows.py).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from pipelines.data import order
from pipelines.tokens import (
    TOKENS_FILE,
    TokenInfo,
    TokenSplit,
    read_info,
    read_tokens,
    token_batches,
    write_info,
    write_shard,
)
from tokenizer.distributed import keyed_generator

INFO = TokenInfo(
    tokenizer="runs/tok",
    fingerprint="0123456789abcdef",
    codebook_size=50,
    num_codebooks=2,
    grid=(2, 3),
    item_shape=(3, 8, 12),
    class_names=("cat", "dog"),
    source="pets",
)
SOUND = TokenInfo(
    tokenizer="runs/tok",
    fingerprint="0123456789abcdef",
    codebook_size=50,
    num_codebooks=3,
    grid=(),
    item_shape=(1,),
    class_names=("cat", "dog"),
    source="calls",
    frame_rate=50.0,
    sample_rate=16000,
    stride=320,
)


def info_with(**changes: Any) -> TokenInfo:
    return TokenInfo(**{**INFO.__dict__, **changes})


def some_codes(count: int, info: TokenInfo = INFO, key: int = 0) -> Tensor:
    shape = (count, info.num_codebooks, *info.grid)
    return torch.randint(info.codebook_size, shape, generator=keyed_generator(key))


def write(
    folder: Path, codes: Any, labels: Any = None, info: TokenInfo = INFO, split: str = "train", **at: int
) -> Path:
    """One shard (by default the only one) and tokens.json."""
    folder.mkdir(exist_ok=True)
    labels = np.full(len(codes), -1) if labels is None else np.asarray(labels)
    shard, shards = at.get("shard", 0), at.get("shards", 1)
    ids = [f"{split}:{shard}:{i}" for i in range(len(codes))]
    path = write_shard(folder, split, shard, shards, info, codes, labels.astype(np.int64), ids)
    write_info(folder, info)
    return path


def some_clips(*lengths: int, info: TokenInfo = SOUND, key: int = 0) -> list[Tensor]:
    """Codes (K, t) of one clip for each length."""
    codes = torch.randint(
        info.codebook_size, (info.num_codebooks, sum(lengths)), generator=keyed_generator(key)
    )
    return list(codes.split(lengths, dim=1))


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


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, some_codes(3), shard=1, shards=2)
    with pytest.raises(ValueError, match=r"train-00000-of-00002\.parquet"):
        read_tokens(tmp_path)


def test_shards_of_an_encoding_that_was_cut_short_do_not_mix_with_others(tmp_path: Path) -> None:
    write(tmp_path, some_codes(5), shard=0, shards=2)  # of two processes that were killed …
    codes = some_codes(9, key=1)
    write(tmp_path, codes)  # … and of the one that came after them
    try:
        split = read_tokens(tmp_path)[1]["train"]
    except ValueError as error:
        assert "-of-00002.parquet" in str(error) or "-of-00001.parquet" in str(error)
    else:
        assert torch.equal(split.rows(slice(None))[0], codes)


# Sound


def test_tokens_of_sound_of_any_length_are_read(tmp_path: Path) -> None:
    train, held_out = some_clips(4, 1, 7, 2), some_clips(5, key=1)
    path = write(tmp_path, train[:3], [1, -1, 0], SOUND, shard=0, shards=2)
    write(tmp_path, train[3:], [1], SOUND, shard=1, shards=2)
    write(tmp_path, held_out, [0], SOUND, split="held_out")
    info, splits = read_tokens(tmp_path)
    assert info == SOUND and info.is_sound and not INFO.is_sound
    clips = splits["train"]
    assert (
        len(clips) == 4 and clips.labels.tolist() == [1, -1, 0, 1] and clips.lengths.tolist() == [4, 1, 7, 2]
    )
    for i, codes in enumerate(train):
        assert np.array_equal(clips.clip(i), codes.T.numpy())
    assert np.array_equal(splits["held_out"].clip(0), held_out[0].T.numpy())
    table = pq.read_table(path)
    assert table.column_names == ["codes", "label", "id", "view"]
    # All codebooks of a frame, then the next frame.
    assert table["codes"].to_pylist() == [codes.T.flatten().tolist() for codes in train[:3]]


@pytest.mark.parametrize(("size", "kind"), [(1 << 16, pa.uint16()), ((1 << 16) + 1, pa.uint32())])
def test_codes_of_sound_take_as_few_bytes_as_they_need(size: int, kind: pa.DataType, tmp_path: Path) -> None:
    info = TokenInfo(**{**SOUND.__dict__, "codebook_size": size})
    codes = some_clips(4, 2, info=info)
    codes[0][0, 0] = size - 1
    path = write(tmp_path, codes, info=info)
    assert pq.read_schema(path).field("codes").type.value_type == kind
    assert np.array_equal(read_tokens(tmp_path)[1]["train"].clip(0), codes[0].T.numpy())


def test_empty_shards_of_sound_are_fine(tmp_path: Path) -> None:
    write(tmp_path, some_clips(3), info=SOUND, shard=1, shards=2)
    write(tmp_path, [], info=SOUND, shard=0, shards=2)
    write(tmp_path, [], info=SOUND, split="held_out")
    splits = read_tokens(tmp_path)[1]
    assert len(splits["train"]) == 1 and len(splits["held_out"]) == 0


def test_clips_of_sound_are_held_out_by_their_codes(tmp_path: Path) -> None:
    codes = some_clips(*(1 + i % 5 for i in range(200)))
    labels = [int(c[0, 0]) % 2 for c in codes]
    write(tmp_path / "a", codes, labels, SOUND)
    write(tmp_path / "b", codes[::-1], labels[::-1], SOUND)

    def held_out(folder: str) -> list[bytes]:
        splits = read_tokens(tmp_path / folder, 0.2)[1]
        assert len(splits["train"]) + len(splits["held_out"]) == 200
        for clips in splits.values():
            assert all(clips.clip(i)[0, 0] % 2 == clips.labels[i] for i in range(len(clips)))
        return sorted(splits["held_out"].content(i) for i in range(len(splits["held_out"])))

    assert 20 < len(held_out("a")) < 65 and held_out("a") == held_out("b")


def test_the_json_of_pictures_has_no_fields_of_sound(tmp_path: Path) -> None:
    write_info(tmp_path, INFO)
    assert (
        not {"frame_rate", "sample_rate", "stride"} & json.loads((tmp_path / TOKENS_FILE).read_text()).keys()
    )
    write_info(tmp_path, SOUND)
    assert json.loads((tmp_path / TOKENS_FILE).read_text())["frame_rate"] == 50.0
    assert read_info(tmp_path) == SOUND


@pytest.mark.parametrize(
    "changes",
    [
        {"frame_rate": 49.0},
        {"stride": 0},
        {"frame_rate": -50.0, "sample_rate": -16000},
        {"frame_rate": float("nan")},
        {"grid": (2, 2)},
    ],
)
def test_rates_of_sound_that_do_not_fit_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"frame_rate is .*expected for sound a frame_rate of sample_rate"):
        TokenInfo(**{**SOUND.__dict__, **changes})


@pytest.mark.parametrize(
    ("codes", "named"),
    [
        (
            pa.array([[0] * 6, [0] * 7], pa.large_list(pa.uint16())),
            "item 1 has 7 codes, expected a multiple of 3",
        ),
        (pa.array([[0] * 6, []], pa.list_(pa.uint16())), "item 1 has 0 codes"),
        (pa.array([[0] * 6, None], pa.list_(pa.uint16())), "codes hold nulls"),
        (pa.array([[0] * 6, [0, None, 0]], pa.list_(pa.uint16())), "codes hold nulls"),
        (pa.array([[0] * 6, [0] * 3], pa.list_(pa.int64())), "codes are list<.*expected lists of uint16"),
        (pa.array([0, 1], pa.uint16()), "codes are uint16, expected lists"),
        (pa.array([[0] * 6, [0] * 6], pa.list_(pa.uint16(), 6)), "codes are fixed_size_list"),
    ],
)
def test_broken_codes_of_sound_are_named(codes: pa.Array, named: str, tmp_path: Path) -> None:
    path = write(tmp_path, some_clips(2, 2), info=SOUND)
    pq.write_table(pq.read_table(path).set_column(0, "codes", codes), path)
    with pytest.raises(ValueError, match=f"{path}: cannot be read as tokens \\(.*{named}.*make them anew"):
        read_tokens(tmp_path)


def test_lists_of_either_kind_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, some_clips(2, 1), info=SOUND)
    expected = read_tokens(tmp_path)[1]["train"]
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "codes", table["codes"].cast(pa.list_(pa.uint16()))), path)
    found = read_tokens(tmp_path)[1]["train"]
    assert np.array_equal(found.codes, expected.codes) and np.array_equal(found.spans, expected.spans)


@pytest.mark.parametrize(
    ("code", "label", "named"),
    [(50, 0, "codes beyond the codebook's 50 entries"), (49, 2, "labels beyond the 2 classes")],
)
def test_codes_and_labels_of_sound_out_of_range_are_named(
    code: int, label: int, named: str, tmp_path: Path
) -> None:
    codes = some_clips(3, 2)
    codes[1][2, 1] = code
    path = write(tmp_path, codes, [label, 0], SOUND)
    with pytest.raises(ValueError, match=f"{path}: holds {named}"):
        read_tokens(tmp_path)


def test_a_missing_shard_of_sound_is_named(tmp_path: Path) -> None:
    write(tmp_path, some_clips(3), info=SOUND, shard=1, shards=2)
    with pytest.raises(ValueError, match=r"train-00000-of-00002\.parquet: this shard is missing"):
        read_tokens(tmp_path)


# Mistakes


def test_a_folder_without_tokens_json_names_the_fix(tmp_path: Path) -> None:
    write(tmp_path, some_codes(3))
    (tmp_path / TOKENS_FILE).unlink()
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=f"{folder}: no tokens there .*encode_dataset.py"):
            read_tokens(folder)


def test_a_folder_without_training_tokens_is_named(tmp_path: Path) -> None:
    write(tmp_path, some_codes(3), split="held_out")
    with pytest.raises(ValueError, match=f"{tmp_path}: no training tokens; .*encode_dataset.py"):
        read_tokens(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"codebook_size": 0}, "codebook_size is 0"),
        ({"codebook_size": "50"}, "codebook_size: expected int"),
        ({"grid": []}, "grid is"),
        ({"grid": [2, 0]}, "grid is"),
        ({"num_codebooks": 5000}, "num_codebooks is 5000"),
        ({"more": 1}, "unknown key 'more'"),
    ],
)
def test_a_tokens_json_that_does_not_fit_is_named(changes: Any, named: str, tmp_path: Path) -> None:
    write(tmp_path, some_codes(3))
    values = json.loads((tmp_path / TOKENS_FILE).read_text())
    (tmp_path / TOKENS_FILE).write_text(json.dumps({**values, **changes}))
    with pytest.raises(ValueError, match=named):
        read_info(tmp_path)


def test_a_broken_tokens_json_is_named(tmp_path: Path) -> None:
    (tmp_path / TOKENS_FILE).write_text('{"tokenizer": "runs')
    with pytest.raises(ValueError, match=f"{tmp_path / TOKENS_FILE}: cannot be read as JSON"):
        read_tokens(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1 not really", None])
def test_a_broken_shard_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = write(tmp_path, some_codes(30))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ValueError, match=f"{path}: cannot be read as tokens .*make them anew"):
        read_tokens(tmp_path)


@pytest.mark.parametrize("column", ["codes", "label"])
def test_a_shard_without_a_column_is_named(column: str, tmp_path: Path) -> None:
    path = write(tmp_path, some_codes(3))
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(ValueError, match=f"{path}: cannot be read as tokens"):
        read_tokens(tmp_path)


def test_a_shard_of_another_grid_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, some_codes(3, info_with(grid=(5, 5))), info=info_with(grid=(5, 5)))
    write_info(tmp_path, INFO)
    with pytest.raises(ValueError, match=f"{path}: "):
        read_tokens(tmp_path)


def test_codes_beyond_the_codebook_are_named(tmp_path: Path) -> None:
    codes = some_codes(3)
    codes[1, 0, 0, 0] = 50
    path = write(tmp_path, codes)
    with pytest.raises(ValueError, match=f"{path}: holds codes beyond the codebook's 50 entries"):
        read_tokens(tmp_path)


@pytest.mark.parametrize(("label", "names"), [(2, ("cat", "dog")), (-2, ("cat", "dog")), (0, ())])
def test_labels_beyond_the_classes_are_named(label: int, names: tuple[str, ...], tmp_path: Path) -> None:
    path = write(tmp_path, some_codes(3), [-1, label, -1], info_with(class_names=names))
    with pytest.raises(ValueError, match=f"{path}: holds labels beyond the {len(names)} classes"):
        read_tokens(tmp_path)


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
        assert batch.codes.dtype == batch.labels.dtype == torch.int64
        for row, (codes, label) in enumerate(zip(batch.codes, batch.labels, strict=True)):
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
    assert [(b.step, b.micro, b.offset, len(b.codes)) for b in found] == [
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
