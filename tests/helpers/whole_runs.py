"""What runs leave behind: their logs, what is left of one that is stopped, and whether two are the same.

Left out: making the runs (conftest.py).
"""

import json
import shutil
from pathlib import Path
from typing import Any

from pipelines.training.checkpoints import list_checkpoints

# What differs between equal runs: they take other times.
SPEED = "train/items_per_second"


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's log, without `SPEED`."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != SPEED} for row in rows]


def stopped_at(step: int, whole: Path, folder: Path) -> Path:
    """The folder of the same run, killed while it logged the second step after its checkpoint at `step`; with
    12, the last one, after its last evaluation."""
    folder.mkdir()
    shutil.copy(whole / "run.json", folder)
    for checkpoint in list_checkpoints(whole / "checkpoints"):
        if int(checkpoint.name.removeprefix("step-")) <= step:
            shutil.copytree(checkpoint, folder / "checkpoints" / checkpoint.name)
    rows = [row for row in rows_of(whole) if row["step"] <= step + 1]
    half = json.dumps(rows[-1])[:20]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + half)
    return folder


def assert_same_run(folder: Path, whole: Path) -> None:
    """Equal models, logs and last checkpoints, to the byte."""
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert rows_of(folder) == rows_of(whole)
    last = whole / "checkpoints" / "step-12"
    for path in last.iterdir():
        assert (folder / "checkpoints" / "step-12" / path.name).read_bytes() == path.read_bytes(), path.name


def assert_same_files(folder: Path, whole: Path, *besides: str) -> None:
    """Equal files, to the byte, and no others but those in the folders `besides`. The folder's own
    name may differ; a tracker's files and run.json are not compared."""
    found, expected = _files(folder), _files(whole)
    extra = {name for name in found if str(Path(name).parent) in besides}
    assert found.keys() - extra == expected.keys() and {str(Path(n).parent) for n in extra} == {*besides}
    assert [name for name in expected if found[name] != expected[name]] == []


def _files(folder: Path) -> dict[str, bytes]:
    paths = [p for p in folder.rglob("*") if p.is_file() and "logs" not in p.relative_to(folder).parts]
    found = {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.name != ".lock"}
    for name in found.keys() & {"README.md", "command.txt"}:
        found[name] = found[name].replace(str(folder).encode(), b"FOLDER")
    found["metrics.jsonl"] = json.dumps(rows_of(folder)).encode()
    found["run.json"] = b""  # of the last life, which may have had other words
    return found
