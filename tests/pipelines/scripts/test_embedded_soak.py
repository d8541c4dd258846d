"""A soak: the commands of cards/embedded.md train the smallest model that ships anew, and what they leave is
as good as what ships. Bytes are not compared: they depend on the processor.

On two cores this takes half an hour or more.

Left out: the larger ones, of which the card says how long they took.
"""

import re
import shlex
from pathlib import Path

import pytest

from tests.helpers.running import ROOT, Script, read, without_plots
from tokenizer.hub.embedded import MODELS

pytestmark = pytest.mark.soak

# What may differ of held-out data: decibels of PSNR, bits per code.
DECIBELS, BITS = 0.5, 0.1


def commands_of(name: str) -> list[list[str]]:
    """The words after `accelerate launch pipelines/` in the section of a model in the card."""
    text = (ROOT / "cards" / "embedded.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", text, flags=re.MULTILINE)
    (found,) = (part for part in section if part.startswith(f"{name}\n"))
    lines = [line for line in found.splitlines() if line.startswith("accelerate launch ")]
    return [shlex.split(line.partition("pipelines/")[2]) for line in lines]


def test_digits_trained_anew_are_as_good(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with without_plots():
        for file, *words in commands_of("embedded:digits"):
            script(file.removesuffix(".py"), *words)
    shipped = {kind: read(MODELS / "digits" / kind / "metrics.json") for kind in ("tokenizer", "prior")}
    made = {kind: read(tmp_path / "runs" / f"digits-{kind}" / "metrics.json") for kind in shipped}
    assert abs(made["tokenizer"]["psnr"] - shipped["tokenizer"]["psnr"]) < DECIBELS
    assert abs(made["prior"]["bits_per_code"] - shipped["prior"]["bits_per_code"]) < BITS
