"""Tokens of sound of any length: what is written is read, what is held out, and what is broken is named.

Left out: tokens of pictures (test_items.py, robustness/test_broken_tokens.py) and windows (test_windows.py).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.run.folder import TOKENS_FILE
from pipelines.tokens.info import TokenInfo, read_info, write_info
from pipelines.tokens.items import read_tokens
from tests.helpers.tokens import INFO, SOUND, some_clips, write


def test_tokens_of_sound_of_any_length_are_read(tmp_path: Path) -> None:
    train, held_out = some_clips(4, 1, 7, 2), some_clips(5, key=1)
    path = write(tmp_path, train[:3], [1, -1, 0], SOUND, shard=0, shards=2)
    write(tmp_path, train[3:], [1], SOUND, shard=1, shards=2)
    write(tmp_path, held_out, [0], SOUND, split="held_out")
    info, splits = read_tokens(tmp_path)
    assert info == SOUND and info.frame_rate and not INFO.frame_rate
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
    with pytest.raises(ValueError, match=r"frame_rate .*expected .*sample_rate / stride = "):
        TokenInfo(**{**SOUND.__dict__, **changes})


@pytest.mark.parametrize(
    ("codes", "named"),
    [
        (
            pa.array([[0] * 6, [0] * 7], pa.large_list(pa.uint16())),
            "item 1 .* 7 codes, expected .* 3 codebooks",
        ),
        (pa.array([[0] * 6, []], pa.list_(pa.uint16())), "item 1 .* 0 codes"),
        (pa.array([[0] * 6, None], pa.list_(pa.uint16())), "codes .*nulls"),
        (pa.array([[0] * 6, [0, None, 0]], pa.list_(pa.uint16())), "codes .*nulls"),
        (pa.array([[0] * 6, [0] * 3], pa.list_(pa.int64())), "codes .*list<.*expected .*uint16 or uint32"),
        (pa.array([0, 1], pa.uint16()), "codes .*uint16, expected lists"),
        (pa.array([[0] * 6, [0] * 6], pa.list_(pa.uint16(), 6)), "codes .*fixed_size_list<.*expected lists"),
    ],
)
def test_broken_codes_of_sound_are_named(codes: pa.Array, named: str, tmp_path: Path) -> None:
    path = write(tmp_path, some_clips(2, 2), info=SOUND)
    pq.write_table(pq.read_table(path).set_column(0, "codes", codes), path)
    with pytest.raises(ValueError, match=rf"{path}: .*{named}.*encode_dataset\.py"):
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
    [(50, 0, "codes .* 50 "), (49, 2, "labels .* 2 ")],
)
def test_codes_and_labels_of_sound_out_of_range_are_named(
    code: int, label: int, named: str, tmp_path: Path
) -> None:
    codes = some_clips(3, 2)
    codes[1][2, 1] = code
    path = write(tmp_path, codes, [label, 0], SOUND)
    with pytest.raises(ValueError, match=rf"{path}: .*{named}.*encode_dataset\.py"):
        read_tokens(tmp_path)


def test_a_missing_shard_of_sound_is_named(tmp_path: Path) -> None:
    write(tmp_path, some_clips(3), info=SOUND, shard=1, shards=2)
    with pytest.raises(ValueError, match=r"train-00000-of-00002\.parquet: .*missing.*encode_dataset\.py"):
        read_tokens(tmp_path)
