"""Encoding in blocks: what an interruption leaves is kept, what differs is refused, and views of items.

Left out: files of tokens (pipelines/tokens/test_items.py, pipelines/tokens/test_table.py) and two processes
(processes/test_two_processes.py).
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipelines import encode_dataset
from pipelines.data.augment import Augment
from pipelines.data.batches import load_splits
from pipelines.data.config import DataConfig
from pipelines.data.kinds import to_float
from pipelines.data.pictures import PICTURES
from pipelines.tokens.items import TokenSplit, read_tokens
from tests.helpers.running import TINY_PRIOR, Finished, Script, assert_refused, names_in, read
from tokenizer import Tokenizer

SHARDS = [f"train-0000{i}-of-00003.parquet" for i in range(3)]
SHARDS += [f"held_out-0000{i}-of-00003.parquet" for i in range(3)]
FLIP = ("--views", 2, "--augment.flip")

Encode = Callable[..., Finished]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PICTURES, "block", 8)


@pytest.fixture
def encode(script: Script, tiny_tokenizer: Path) -> Encode:
    """Ten emoji and as many held out, in blocks of eight views."""

    def call(output: Path, *words: object, limit: int = 10, code: int = 0) -> Finished:
        start = ("--tokenizer", tiny_tokenizer, "--output", output, "--data.limit", limit, "--batch-size", 3)
        return script("encode_dataset", *start, *words, code=code)

    return call


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names_in(folder)}


def interrupt_after(shards: int, patch: pytest.MonkeyPatch) -> None:
    """Have the next encoding fail once it has written so many shards."""
    write, left = encode_dataset.write_shard, iter(range(shards))

    def some(*arguments: Any) -> Path:
        if next(left, None) is None:
            raise OSError("the machine went away")
        return write(*arguments)

    patch.setattr(encode_dataset, "write_shard", some)


@pytest.fixture
def whole(encode: Encode, tmp_path: Path) -> Path:
    encode(tmp_path / "whole", *FLIP)
    return tmp_path / "whole"


@pytest.fixture
def part(encode: Encode, tmp_path: Path) -> Path:
    """The same after four of its six shards."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(4, patch)
        encode(tmp_path / "part", *FLIP, code=2)
    return tmp_path / "part"


def test_a_block_is_a_shard(whole: Path) -> None:
    assert names_in(whole) == {"tokens.json", "encoding.json", *SHARDS}
    assert [len(pq.read_table(whole / name)) for name in SHARDS] == [8, 8, 4, 4, 4, 2]
    info, splits = read_tokens(whole)
    assert (info.views, info.shards) == (2, (3, 3)) and len(splits["train"]) == len(splits["held_out"]) == 10


def test_an_interrupted_encoding_continues(
    encode: Encode, whole: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names_in(part) == {"encoding.json", *SHARDS[:4]}
    before = {name: (part / name).stat().st_mtime_ns for name in SHARDS[:4]}
    (part / ".train-00002-of-00003.parquet.4711.unfinished").mkdir()
    (part / ".train-00002-of-00003.parquet.4711.unfinished" / "half").write_bytes(b"of a shard")
    interrupt_after(2, monkeypatch)  # the two that are missing, and no other
    said = encode(part, *FLIP)
    assert "4 of 6 shards are there" in said.err
    assert files(part) == files(whole)
    assert {name: (part / name).stat().st_mtime_ns for name in SHARDS[:4]} == before
    assert_refused(encode(part, *FLIP, code=2), part, "holds tokens", "--output")


@pytest.mark.parametrize(
    "spoil",
    [lambda whole: whole[: len(whole) // 2], lambda _: b"", lambda whole: whole[:100] + b"x" + whole[101:]],
)
def test_a_broken_shard_is_encoded_anew(
    spoil: Callable[[bytes], bytes], encode: Encode, whole: Path, part: Path
) -> None:
    path = part / SHARDS[1]
    path.write_bytes(spoil(path.read_bytes()))
    said = encode(part, *FLIP)
    assert f"{path} is not whole" in said.err and "3 of 6 shards" in said.err
    assert files(part) == files(whole)


def test_a_shard_that_is_another_one_is_encoded_anew(encode: Encode, whole: Path, part: Path) -> None:
    shutil.copy(part / SHARDS[1], part / SHARDS[0])
    pq.write_table(pq.read_table(part / SHARDS[2])[:2], part / SHARDS[2])
    said = encode(part, *FLIP)
    assert SHARDS[1] in said.err and "1 items, expected 2" in said.err
    assert files(part) == files(whole)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--views", 3, "--augment.flip", "--augment.shift", 1), "views was 2, is now 3"),
        ((*FLIP, "--augment.shift", 1), "shift was 0, is now 1"),
        ((*FLIP, "--seed", 1), "seed was 0, is now 1"),
        ((*FLIP, "--tf32"), "tf32 was False, is now True"),
        ((*FLIP, "--data.limit", 9), "data was "),
        ((*FLIP, "--data.label-column", "none"), "data was "),
        ((*FLIP, "--data.column", "image"), "column was None, is now 'image'"),
        ((*FLIP, "--data.path", "embedded:digits"), "source was 'embedded:emoji', is now 'embedded:digits'"),
    ],
)
def test_another_encoding_is_not_continued(
    words: tuple[object, ...], named: str, encode: Encode, part: Path
) -> None:
    before = files(part)
    said = encode(part, *words, code=2)
    assert_refused(said, part, named, "another --output", "delete")
    assert files(part) == before


def test_the_codes_of_another_tokenizer_are_not_continued(
    script: Script, tiny_tokenizer: Path, part: Path, no_plots: None, tmp_path: Path
) -> None:
    values = read(part / "encoding.json")
    (part / "encoding.json").write_text(json.dumps({**values, "tokenizer": "0" * 16}))
    words = ("--tokenizer", tiny_tokenizer, "--output", part, "--data.limit", 10, *FLIP)
    said = script("encode_dataset", *words, code=2)
    assert_refused(said, part, f"tokenizer was {'0' * 16!r}, is now {values['tokenizer']!r}")


def test_shards_of_unknown_origin_are_not_continued(encode: Encode, part: Path) -> None:
    (part / "encoding.json").unlink()
    assert_refused(encode(part, *FLIP, code=2), part, SHARDS[3], "no encoding.json")


def test_options_without_effect_do_not_count(encode: Encode, tmp_path: Path) -> None:
    encode(tmp_path / "a")
    said = encode(tmp_path / "b", "--seed", 5, "--augment.flip", "--batch-size", 7)
    assert "--augment.* has no effect with --views 1" in said.err
    assert files(tmp_path / "a") == files(tmp_path / "b")


# Views


def test_views_are_codes_of_augmented_pictures(encode: Encode, tiny_tokenizer: Path, tmp_path: Path) -> None:
    encode(tmp_path, "--views", 3, "--augment.flip", "--augment.shift", 2, "--seed", 7)
    tok = Tokenizer.from_pretrained(tiny_tokenizer)
    splits = load_splits(DataConfig("embedded:emoji", limit=10), tok.modality)
    x = splits.train.take(np.arange(10))[0]
    shards = {name: sorted(tmp_path.glob(f"{name}-*.parquet")) for name in ("train", "held_out")}
    assert [len(paths) for paths in shards.values()] == [5, 5]  # of two items: eight views hold no more
    table = [row for path in shards["train"] for row in pq.read_table(path).to_pylist()]
    assert [row["view"] for row in table] == [0, 1, 2] * 10
    assert [row["id"] for row in table] == [splits.train.id(i) for i in range(10) for _ in range(3)]
    assert [row["label"] for row in table] == np.repeat(splits.train.labels, 3).tolist()
    everything, views = np.arange(10), np.arange(3)
    seen = [Augment(True, 2).fixed_view(x, everything, int(v), 10, 7) for v in views]
    assert torch.equal(seen[0], x) and not torch.equal(seen[1], x) and not torch.equal(seen[1], seen[2])
    for view, y in enumerate(seen):
        codes = tok.encode(to_float(y)).flatten(1)
        assert torch.equal(torch.tensor([row["codes"] for row in table[view::3]]), codes)
    held_out = [row for path in shards["held_out"] for row in pq.read_table(path).to_pylist()]
    assert [row["view"] for row in held_out] == [0] * 10


def test_a_prior_learns_all_views_and_is_measured_on_plain_items(
    script: Script,
    encode: Encode,
    whole: Path,
    no_plots: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, rows = [], TokenSplit.rows

    def watched(self: TokenSplit, index: Any, epochs: Any = None) -> Any:
        codes, labels = rows(self, index, epochs)
        seen.append((epochs is not None, {c.numpy().tobytes() for c in codes}))
        return codes, labels

    monkeypatch.setattr(TokenSplit, "rows", watched)
    prior = (*TINY_PRIOR, "--tokens", whole, "--output", tmp_path / "prior", "--tracker", "none")
    script("train_prior", "small", *prior, "--batch-size", 10, "--max-steps", 4)
    train = read_tokens(whole)[1]["train"]
    plain, mirrored = (train.codes[v::2].astype(np.int64) for v in (0, 1))
    learnt = set().union(*(found for training, found in seen if training))
    measured = set().union(*(found for training, found in seen if not training))
    assert learnt == {c.tobytes() for c in plain} | {c.tobytes() for c in mirrored}
    assert {c.tobytes() for c in plain} <= measured
    assert not ({c.tobytes() for c in mirrored} - {c.tobytes() for c in plain}) & measured
    assert "each epoch in one of 2 views" in (tmp_path / "prior" / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--views", 2), ("--views 2", "only 1 different", "--augment.shift")),
        (("--views", 3, "--augment.flip"), ("--views 3", "only 2 different", "--augment.shift")),
        (("--views", 0), ("views is 0",)),
    ],
)
def test_views_that_would_be_equal_are_refused(
    words: tuple[object, ...], named: tuple[str, ...], encode: Encode, tmp_path: Path
) -> None:
    assert_refused(encode(tmp_path / "out", *words, code=2), *named)
    assert not (tmp_path / "out").exists()
