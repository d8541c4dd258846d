"""Data sets of tokens that are broken: shards (Parquet), tokens.json, and the decoded codes beside them.

Left out: what single breakages are called (test_broken_tokens.py, pipelines/tokens/test_table.py).
"""

import dataclasses
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.run.folder import TOKENS_FILE
from pipelines.tokens import table as token_table
from pipelines.tokens.items import read_tokens
from pipelines.tokens.shards import shard_path
from pipelines.tokens.windows import Windows, window_info
from tests.helpers.broken_parquet import broken_table, rewrite
from tests.helpers.broken_safetensors import broken_safetensors
from tests.helpers.fuzzing import ERROR, RESULT, Make, Subject, fuzz, shares
from tests.helpers.mutators import broken_bytes, broken_json, flip
from tests.helpers.tokens import INFO, SOUND
from tests.pipelines.tokens.test_table import write

NAMED = (TOKENS_FILE, ".parquet", "no training tokens")


def folders(folder: Path) -> list[Path]:
    """Tokens of pictures and of sound, in two shards of seven items in two views, and one held out."""
    for name, info in (("pictures", INFO), ("sound", SOUND)):
        write(folder / name, info, shards=2)
    return [folder / "pictures", folder / "sound"]


def check_tokens(folder: Path) -> None:
    """Read, they are what tokens.json says, in range, and can be learnt from."""
    info, splits = read_tokens(folder, 0.3)
    raw = json.loads((folder / TOKENS_FILE).read_text())
    for name, value in dataclasses.asdict(info).items():
        assert name not in raw or np.array_equal(raw[name], value), name
    for split in splits.values():
        assert split.codes.dtype == info.dtype
        assert not split.codes.size or split.codes.max() < info.codebook_size
        assert ((split.labels >= -1) & (split.labels < len(info.class_names))).all()
        rows: Any = split
        if not info.grid:
            if not len(split):
                continue
            assert split.lengths.min() >= 1 and split.spans.max() <= len(split.codes)
            try:
                rows = Windows(split, *window_info(info, 4 / info.frame_rate).grid)
            except ValueError as error:
                raise AssertionError(str(error)) from error
        codes, labels = rows.rows(np.arange(min(len(rows), 3)), np.array([0, 1, 2])[: len(rows)])
        assert codes.shape[:2] == (len(labels), info.num_codebooks)
        assert not codes.numel() or (int(codes.min()) >= 0 and int(codes.max()) < info.codebook_size)


def reader(folder: Path, broken: Callable[[Path, random.Random], None]) -> Subject:
    """`broken` spoils a file of a folder of tokens; the codes of some folders are decoded and mapped."""
    wholes = {tokens: {p: p.read_bytes() for p in tokens.iterdir()} for tokens in folders(folder)}
    counts: Counter[str] = Counter()

    def read(rng: random.Random) -> None:
        tokens = rng.choice(list(wholes))
        mapped = rng.random() < 1 / 6
        token_table.IN_MEMORY = 0 if mapped else 1 << 28
        try:
            broken(tokens, rng)
            check_tokens(tokens)
            counts["of them mapped"] += mapped
        finally:
            decoded = tokens / token_table.DECODED
            assert set(tokens.iterdir()) <= wholes[tokens].keys() | {decoded}
            shutil.rmtree(decoded, ignore_errors=True)
            for path, content in wholes[tokens].items():
                if path.read_bytes() != content:
                    path.write_bytes(content)

    return Subject(read, NAMED, counts)


def some_shard(tokens: Path, rng: random.Random) -> Path:
    return shard_path(tokens, *rng.choice((("train", 0, 2), ("train", 1, 2), ("held_out", 0, 1))))


def spoil_bytes(tokens: Path, rng: random.Random) -> None:
    """Any byte, or one of the footer; at times in a file without checksums, so that the decoders see it."""
    path = some_shard(tokens, rng)
    if rng.random() < 0.7:
        rewrite(path, pq.read_table(path), rng)
    whole = path.read_bytes()
    footer = max(0, len(whole) - 8 - int.from_bytes(whole[-8:-4], "little"))
    if rng.random() < 0.3:
        path.write_bytes(flip(whole, rng))
    else:
        path.write_bytes(broken_bytes(whole, rng, first=rng.choice((0, 0, 4, footer))))


def spoil_table(tokens: Path, rng: random.Random) -> None:
    """A whole file with other values, types, columns or marks."""
    path = some_shard(tokens, rng)
    rewrite(path, broken_table(pq.read_table(path), rng), rng)


def spoil_info(tokens: Path, rng: random.Random) -> None:
    path = tokens / TOKENS_FILE
    text = broken_json(json.loads(path.read_text()), rng)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def bytes_of_shards(folder: Path) -> Subject:
    return reader(folder, spoil_bytes)


def tables_of_shards(folder: Path) -> Subject:
    return reader(folder, spoil_table)


def tokens_json(folder: Path) -> Subject:
    return reader(folder, spoil_info)


def decoded_index(folder: Path) -> Subject:
    """The index of codes that an earlier run decoded: if it is broken, the codes are decoded again."""
    token_table.IN_MEMORY = 0
    wholes = [(tokens, read_tokens(tokens)[1]) for tokens in folders(folder)]

    def read(rng: random.Random) -> None:
        tokens, expected = rng.choice(wholes)
        indexes = sorted((tokens / token_table.DECODED).glob("*.safetensors"))
        path = rng.choice(indexes)
        path.write_bytes(rng.choice((broken_bytes, broken_safetensors))(path.read_bytes(), rng))
        check_tokens(tokens)
        for name, split in read_tokens(tokens)[1].items():
            assert np.array_equal(split.codes, expected[name].codes)
            assert np.array_equal(split.labels, expected[name].labels)

    return Subject(read, NAMED)


SUBJECTS = {bytes_of_shards: 800, tables_of_shards: 700, tokens_json: 500}


@shares
@pytest.mark.parametrize("make", SUBJECTS)
def test_broken_tokens_are_refused_or_right(make: Make, share: int, tmp_path: Path) -> None:
    report = fuzz(make, range(SUBJECTS[make] // share), tmp_path)
    assert report.ends[ERROR] > 100 // share and report.ends[RESULT] > 30 // share
    assert len(report.refusals) > 10 and report.counts["of them mapped"] > 0


@shares
def test_broken_indexes_of_decoded_codes_are_made_anew(share: int, tmp_path: Path) -> None:
    assert fuzz(decoded_index, range(300 // share), tmp_path).ends == {RESULT: 300 // share}


@pytest.mark.soak
@pytest.mark.parametrize("make", SUBJECTS)
def test_many_more_broken_tokens(make: Make, tmp_path: Path) -> None:
    fuzz(make, range(10_000, 14_000), tmp_path)


@pytest.mark.soak
def test_many_more_broken_indexes(tmp_path: Path) -> None:
    assert fuzz(decoded_index, range(10_000, 14_000), tmp_path).ends == {RESULT: 4000}
