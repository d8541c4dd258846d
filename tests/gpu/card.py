"""The card of a run of `pytest -m gpu`: the machine, and each check with its outcome and its figures.

Left out: the checks.
"""

import importlib
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

# What the checks run on.
DEVICE = torch.device("cuda")
# What is the project's own is never missing.
OURS = ("tokenizer", "prior", "pipelines", "tests")
PACKAGES = ("triton", "accelerate", "torchaudio", "numpy")


class NotRun(Exception):
    """Why a check cannot be made here."""


def require(*modules: str) -> None:
    """Raise `NotRun` that names a package which one of the modules needs and which is missing."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            package = (error.name or module).split(".")[0]
            if package in OURS:
                raise
            raise NotRun(f"{package} is missing") from error


@dataclass(frozen=True)
class Result:
    """How a check ended, in how many seconds, and what it measured."""

    check: str
    outcome: str
    seconds: float
    figures: Sequence[str] = ()


@dataclass
class Card:
    """What is known of the run so far; `figures` are those of the check that is under way."""

    results: list[Result] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)

    def note(self, figure: str) -> None:
        """A figure of the check that is under way."""
        self.figures.append(figure)

    def end(self, check: str, outcome: str, seconds: float) -> None:
        """The check that is under way has ended."""
        self.results.append(Result(check, outcome, seconds, tuple(self.figures)))
        self.figures.clear()

    def text(self, machine: Sequence[str]) -> str:
        """All of it, in Markdown."""
        ended = [result.outcome.split(":")[0] for result in self.results]
        counts = ", ".join(f"{ended.count(name)} {name}" for name in dict.fromkeys(ended))
        rows = [
            f"| {r.check} | {cell(r.outcome)} | {r.seconds:.1f} | {'<br>'.join(map(cell, r.figures))} |"
            for r in self.results
        ]
        total = sum(result.seconds for result in self.results)
        return "\n".join(
            [
                "# What a GPU shows",
                "",
                *(f"* {line}" for line in machine),
                f"* command: `python -m pytest -m gpu`; {counts}; {total:.0f} s",
                "",
                "| check | outcome | seconds | figures |",
                "| --- | --- | --- | --- |",
                *rows,
                "",
            ]
        )

    def write(self, path: Path, machine: Sequence[str]) -> None:
        """Put it into a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text(machine), encoding="utf-8")


def cell(text: str) -> str:
    """A text as one cell of a table."""
    return " ".join(text.replace("|", "\\|").split())


def machine(device: torch.device) -> list[str]:
    """The card, its driver, and the versions of what runs on it."""
    lines = ["GPU: none"]
    if device.type == "cuda":
        seen = torch.cuda.get_device_properties(device)
        about = f"{seen.total_memory / 2**30:.0f} GiB, capability {seen.major}.{seen.minor}"
        about += f", {seen.multi_processor_count} multiprocessors"
        lines = [f"GPU: {seen.name} ({about})", f"driver {driver()}, CUDA {torch.version.cuda} of torch"]
    versions = ", ".join(f"{package} {installed_version(package)}" for package in PACKAGES)
    return [*lines, f"Python {platform.python_version()}, torch {torch.__version__}, {versions}"]


def driver() -> str:
    """The driver's version, as nvidia-smi gives it."""
    if shutil.which("nvidia-smi") is None:
        return "unknown (no nvidia-smi)"
    words = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    said = subprocess.run(words, capture_output=True, text=True, timeout=60)
    return said.stdout.splitlines()[0].strip() if said.returncode == 0 and said.stdout.strip() else "unknown"


def installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
