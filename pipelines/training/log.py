"""metrics.jsonl: the log of a run, which a resume goes on with.

Left out: trackers, which `accelerate` serves.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizer.hub.files import write_text
from tokenizer.variants import shortened


class MetricsLog:
    """metrics.jsonl, one object per line; on a resume the lines that came after the checkpoint are dropped
    first: those of later steps, and the evaluation after the run's last step."""

    def __init__(self, path: Path, start_step: int, enabled: bool, last_step: int | None = None) -> None:
        self.path, self.enabled = path, enabled
        if not enabled:
            return
        rows = read_metrics(path) if path.exists() else []
        rows = [row for row in rows if row["step"] <= start_step]
        if start_step == last_step:
            rows = [row for row in rows if row["step"] < start_step or not is_evaluation(row)]
        kept = "".join(json.dumps(row) + "\n" for row in rows)
        write_text(path, kept if start_step else "")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row and flush it."""
        if self.enabled:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")

    def sync(self) -> None:
        """Have all rows written to the disk, before a checkpoint that comes after them."""
        if self.enabled and self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())


def is_evaluation(row: Mapping[str, Any]) -> bool:
    return any(name.startswith("valid/") for name in row)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a half-written last line, as a killed run leaves it, is left out.

    `ValueError` for a line of JSON that is no row of ours.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise ValueError(
                f"{path}: line {number} is {shortened(row)}, expected an object with a step; remove the line"
            )
        rows.append(row)
    return rows
