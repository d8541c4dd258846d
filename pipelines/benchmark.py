"""Measure ours against a peer in one run, in turns: `python pipelines/benchmark.py NAME [flags]`.

Left out: the benchmarks themselves, each in its room `benchmarks/NAME/`, and what they share.
"""

if __name__ == "__main__":  # before anything imports torch
    from pipelines.run.environment import prepare_environment

    prepare_environment()

import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Any

from pipelines import benchmarks
from pipelines.benchmarks.registry import BENCHMARKS
from pipelines.run.command_line import parse, print_version, run
from tokenizer.hub.files import write_json

for _module in pkgutil.walk_packages(benchmarks.__path__, "pipelines.benchmarks."):
    importlib.import_module(_module.name)  # which enters its benchmark


def main() -> None:
    """Run the benchmark that the first word names; print its tables, and write its numbers if asked to."""
    words = sys.argv[1:]
    about = "".join(f"\n  {name}: {b.about}" for name, b in BENCHMARKS.items())
    if words and words[0] in ("-h", "--help"):
        print(f"{__doc__}\nThe first word chooses a benchmark; NAME --help explains its flags:{about}")
        return
    if "--version" in words:
        print_version()
        return
    if not words or words[0] not in BENCHMARKS:
        got = f"unknown benchmark {words[0]!r}" if words else "no benchmark named"
        raise ValueError(f"{got}; the first word is one of:{about}")
    name = words[0]
    options: Any = parse(BENCHMARKS[name].options, BENCHMARKS[name].about, words[1:])
    values = {"benchmark": name, **BENCHMARKS[name].measure(options)}
    folder: Path | None = options.output
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"benchmark-{name}.json", values)
        print(f"written to {folder / f'benchmark-{name}.json'}")


if __name__ == "__main__":
    run(main)
