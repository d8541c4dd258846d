"""Data sets of tokens that are broken or not whole: what is wrong is named, with what mends it.

Left out: tokens that are whole (pipelines/tokens/test_items.py), and those of sound
(pipelines/tokens/test_clips.py).
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.run.folder import TOKENS_FILE
from pipelines.tokens.info import read_info, write_info
from pipelines.tokens.items import read_tokens
from pipelines.tokens.shards import CODES, count_codes
from tests.helpers.tokens import INFO, SOUND, info_with, some_clips, some_codes, write


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, some_codes(3), shard=1, shards=2)
    with pytest.raises(ValueError, match=r"train-00000-of-00002\.parquet: .*encode_dataset\.py"):
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


def test_a_shard_whose_codes_were_damaged_never_passes_for_one_of_others(tmp_path: Path) -> None:
    codes = some_codes(40)
    path = write(tmp_path, codes)
    whole, refused = path.read_bytes(), 0
    for at in range(4, len(whole) // 2, 7):  # what comes first are the codes
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            found = read_tokens(tmp_path)[1]["train"].rows(slice(None))[0]
        except ValueError as error:
            assert path.name in str(error)
            refused += 1
        else:
            assert torch.equal(found, codes), at
    assert refused > 20


def test_a_folder_without_tokens_json_names_the_fix(tmp_path: Path) -> None:
    write(tmp_path, some_codes(3))
    (tmp_path / TOKENS_FILE).unlink()
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=rf"{folder}: .*tokens\.json.*encode_dataset\.py"):
            read_tokens(folder)


def test_a_folder_without_training_tokens_is_named(tmp_path: Path) -> None:
    write(tmp_path, some_codes(3), split="held_out")
    with pytest.raises(ValueError, match=rf"{tmp_path}: .*training.*encode_dataset\.py"):
        read_tokens(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"codebook_size": 0}, r"codebook_size is 0, expected 1 to 2\^24"),
        ({"codebook_size": "50"}, "codebook_size: expected int, got '50'"),
        ({"grid": []}, r"grid is \(\), expected 1 or more"),
        ({"grid": [2, 0]}, r"grid is \(2, 0\), expected 1 or more"),
        ({"num_codebooks": 5000}, "num_codebooks is 5000, expected 1 to 1024"),
        ({"more": 1}, "'more'; known: class_names, codebook_size"),
    ],
)
def test_a_tokens_json_that_does_not_fit_is_named(changes: Any, named: str, tmp_path: Path) -> None:
    write(tmp_path, some_codes(3))
    values = json.loads((tmp_path / TOKENS_FILE).read_text())
    (tmp_path / TOKENS_FILE).write_text(json.dumps({**values, **changes}))
    with pytest.raises(ValueError, match=rf"tokens\.json.*{named}.*; .*encode_dataset\.py"):
        read_info(tmp_path)


def test_a_tokens_json_without_a_key_is_named(tmp_path: Path) -> None:
    write(tmp_path, some_codes(3))
    values = json.loads((tmp_path / TOKENS_FILE).read_text())
    del values["codebook_size"]
    (tmp_path / TOKENS_FILE).write_text(json.dumps(values))
    with pytest.raises(
        ValueError, match=r"'codebook_size' is missing; expected: codebook_size, .*; .*encode_dataset\.py"
    ):
        read_info(tmp_path)


def test_a_broken_tokens_json_is_named(tmp_path: Path) -> None:
    (tmp_path / TOKENS_FILE).write_text('{"tokenizer": "runs')
    with pytest.raises(ValueError, match=f"{tmp_path / TOKENS_FILE}: .*JSON.*column 15"):
        read_tokens(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1 not really", None])
def test_a_broken_shard_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = write(tmp_path, some_codes(30))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ValueError, match=rf"{path}: .*[Pp]arquet.*encode_dataset\.py"):
        read_tokens(tmp_path)


@pytest.mark.parametrize("column", ["codes", "label"])
def test_a_shard_without_a_column_is_named(column: str, tmp_path: Path) -> None:
    path = write(tmp_path, some_codes(3))
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(ValueError, match=rf'{path}: .*"{column}".*encode_dataset\.py'):
        read_tokens(tmp_path)


def test_a_shard_of_another_grid_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, some_codes(3, info_with(grid=(5, 5))), info=info_with(grid=(5, 5)))
    write_info(tmp_path, INFO)
    with pytest.raises(ValueError, match=rf"{path}: .*\[50\].* 12 .*encode_dataset\.py"):
        read_tokens(tmp_path)


def test_codes_beyond_the_codebook_are_named(tmp_path: Path) -> None:
    codes = some_codes(3)
    codes[1, 0, 0, 0] = 50
    path = write(tmp_path, codes)
    with pytest.raises(ValueError, match=rf"{path}: .*codes.* 50 .*encode_dataset\.py"):
        read_tokens(tmp_path)


@pytest.mark.parametrize(("label", "names"), [(2, ("cat", "dog")), (-2, ("cat", "dog")), (0, ())])
def test_labels_beyond_the_classes_are_named(label: int, names: tuple[str, ...], tmp_path: Path) -> None:
    path = write(tmp_path, some_codes(3), [-1, label, -1], info_with(class_names=names))
    with pytest.raises(ValueError, match=rf"{path}: .*labels.* {len(names)} .*encode_dataset\.py"):
        read_tokens(tmp_path)


@pytest.mark.parametrize("column", ["label", "view"])
def test_labels_and_views_that_are_no_integers_are_named(column: str, tmp_path: Path) -> None:
    path = write(tmp_path, some_codes(3), [-1, 0, 1])
    table = pq.read_table(path)
    for wrong in (pa.array([0.0, 0.5, 0.0]), pa.array([0, None, 0]), pa.array(["0", "0", "0"])):
        pq.write_table(table.set_column(table.column_names.index(column), column, wrong), path)
        with pytest.raises(ValueError, match=rf"{path}: .*column {column} .*integers.*encode_dataset\.py"):
            read_tokens(tmp_path)


def test_a_number_of_shards_that_nothing_has_is_refused_at_the_first(tmp_path: Path) -> None:
    write(tmp_path, some_codes(3))
    values = json.loads((tmp_path / TOKENS_FILE).read_text())
    (tmp_path / TOKENS_FILE).write_text(json.dumps({**values, "shards": [2**62, 1]}))
    with pytest.raises(ValueError, match=rf"train-00000-of-{2**62}\.parquet: .*encode_dataset\.py"):
        read_tokens(tmp_path)


def test_a_missing_key_of_tokens_json_is_named(tmp_path: Path) -> None:
    write(tmp_path, some_codes(3))
    values = json.loads((tmp_path / TOKENS_FILE).read_text())
    del values["codebook_size"]
    (tmp_path / TOKENS_FILE).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"tokens\.json: .*'codebook_size' .*missing"):
        read_tokens(tmp_path)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (b"8", r"more .*footer.*encode_dataset\.py"),
        (b"10", r"fewer .*footer.*encode_dataset\.py"),
        (b"-1", r"more .*footer.*encode_dataset\.py"),
        (b"x", r"b'x'.*encode_dataset\.py"),
        (b"1" + b"0" * 17, "decoded into this folder once, which failed .*bytes are needed"),
    ],
)
def test_a_shard_of_sound_that_promises_other_codes_is_named(said: bytes, named: str, tmp_path: Path) -> None:
    path = write(tmp_path, some_clips(1, 2), info=SOUND)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, CODES: said}), path)
    with pytest.raises(ValueError, match=f"{path if said[:3] != b'100' else tmp_path}.*{named}"):
        read_tokens(tmp_path)
    assert not list((tmp_path / ".decoded").glob("*-*"))


def test_shards_of_sound_of_an_older_release_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, some_clips(1, 2), info=SOUND)
    table = pq.read_table(path)
    assert table.schema.metadata[CODES] == b"9" and count_codes(path, SOUND) == 9
    marks = {k: v for k, v in table.schema.metadata.items() if k != CODES}
    pq.write_table(table.replace_schema_metadata(marks), path)
    assert count_codes(path, SOUND) == 9 and len(read_tokens(tmp_path)[1]["train"]) == 2
