"""Tables of measured blocks: written and read, for the card and the width at hand, and refused if broken.

Left out: the kernel (test_limits.py) and measuring (test_tuning.py of the benchmarks).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenizer.hub.files import cache_folder
from tokenizer.search import cuda
from tokenizer.search.blocks import (
    VARIABLE,
    VERSION,
    BlockSizes,
    blocks_for,
    read_table,
    table_path,
    tuned_widths,
    write_table,
)

CARD = "NVIDIA H100"
NARROW, WIDE = BlockSizes(64, 32, 16, 4, 2), BlockSizes(64, 128, 32, 8, 4)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that the search reads; the card at hand is `CARD`."""
    path = tmp_path / "folder" / "table.json"
    monkeypatch.setenv(VARIABLE, str(path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: CARD)
    caches = (tuned_widths, cuda.blocks_on)
    for cached in caches:
        cached.cache_clear()
    yield path
    for cached in caches:
        cached.cache_clear()


def test_the_table_lies_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert table_path() == cache_folder() / "search-blocks.json" == tmp_path / "tokenloom/search-blocks.json"  # type: ignore[operator]
    monkeypatch.setenv(VARIABLE, "other.json")
    assert table_path() == Path("other.json")


def test_a_card_has_its_own_blocks_by_width(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(table, "other", {8: WIDE})
    write_table(table, CARD, {64: WIDE, 8: NARROW})
    assert read_table(table) == {"other": {8: WIDE}, CARD: {8: NARROW, 64: WIDE}}
    monkeypatch.setattr(cuda, "works", lambda *_: True)
    gpu = torch.device("cuda")
    assert [cuda.blocks_on(gpu, width) for width in (1, 8, 9, 64, 300)] == [NARROW, NARROW, *[WIDE] * 3]
    assert cuda.blocks_on(torch.device("cpu"), 8) == cuda.BLOCKS
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a third")
    cuda.blocks_on.cache_clear()
    assert cuda.blocks_on(gpu, 8) == cuda.BLOCKS == blocks_for({}, 8, cuda.BLOCKS)


def without(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A deep copy without the last of `keys`."""
    copy: dict[str, Any] = json.loads(json.dumps(values))
    inner = copy
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    return copy


GOOD = {"version": VERSION, "cards": {CARD: {"8": NARROW._asdict()}}}
BROKEN = {
    "{": "cannot be read as JSON",
    "[]": "expected a JSON object",
    json.dumps({**GOOD, "version": VERSION + 1}): f"version {VERSION + 1}, not {VERSION}",
    json.dumps(without(GOOD, "version")): "version None",
    json.dumps(without(GOOD, "cards")): "no table of blocks .*cards",
    json.dumps(without(GOOD, "cards", CARD, "8", "warps")): "no table of blocks .*warps",
    json.dumps({**GOOD, "cards": {CARD: {"wide": NARROW._asdict()}}}): "no table of blocks .*wide",
    json.dumps({**GOOD, "cards": {CARD: [1]}}): "no table of blocks",
    json.dumps({**GOOD, "cards": {CARD: {"8": NARROW._replace(rows=48)._asdict()}}}): "rows is 48",
    json.dumps({**GOOD, "cards": {CARD: {"8": NARROW._replace(factors=8)._asdict()}}}): "factors is 8",
    json.dumps({**GOOD, "cards": {CARD: {"8": NARROW._replace(warps=64)._asdict()}}}): "warps is 64",
    json.dumps({**GOOD, "cards": {CARD: {"8": NARROW._replace(stages=0)._asdict()}}}): "stages is 0",
    json.dumps({**GOOD, "cards": {CARD: {"8": NARROW._asdict() | {"rows": "64"}}}}): "rows is '64'",
}


@pytest.mark.parametrize(("text", "said"), BROKEN.items())
def test_a_broken_table_is_named_once_and_not_used(
    text: str, said: str, table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table.parent.mkdir()
    table.write_text(text)
    assert [cuda.blocks_on(torch.device("cuda"), width) for width in (8, 16)] == [cuda.BLOCKS] * 2
    (record,) = caplog.records
    assert str(table) in record.getMessage() and "benchmark.py search --tune" in record.getMessage()
    with pytest.raises(ValueError, match=said):
        read_table(table)
    with pytest.raises(ValueError, match=said):  # nor written over, as it may be of a newer version
        write_table(table, CARD, {8: NARROW})
    assert table.read_text() == text


def test_blocks_that_do_not_run_are_named_once_and_not_used(
    table: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_table(table, CARD, {8: NARROW})

    def too_large(*_: object) -> bool:
        raise RuntimeError("out of resource: shared memory")

    for works, said in ((too_large, "shared memory"), (lambda *_: False, "other entries")):
        caplog.clear()
        cuda.blocks_on.cache_clear()
        monkeypatch.setattr(cuda, "works", works)
        assert [cuda.blocks_on(torch.device("cuda"), 8) for _ in range(3)] == [cuda.BLOCKS] * 3
        (record,) = caplog.records
        assert all(part in record.getMessage() for part in (str(table), said, "--tune"))


def test_without_a_table_nothing_is_said(table: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert cuda.blocks_on(torch.device("cuda"), 8) == cuda.BLOCKS and not caplog.records
