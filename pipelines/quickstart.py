"""All of it on embedded data: train a tokenizer, encode, train a prior, sample, evaluate. `python -m
pipelines.quickstart`

Left out: options of the steps; each step is a command that is printed, to be run again with other flags.
"""

import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pipelines.cli import parse, run
from tokenizer.config import require

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuickstartOptions:
    """Options of quickstart.py."""

    output: Path = Path("runs/quickstart")
    """Folder for everything; must not hold a quickstart already."""
    threads: int = 0
    """CPU threads per process; 0: one per core."""
    tokenizer_steps: int = 1000
    """Training steps of the tokenizer."""
    prior_steps: int = 450
    """Training steps of the prior."""
    samples_per_class: int = 10
    """Pictures in each row of samples.png."""

    def __post_init__(self) -> None:
        require(self.tokenizer_steps >= 1 and self.prior_steps >= 1, "steps: expected 1 or more")
        require(self.threads >= 0, f"threads is {self.threads}, expected 0 or more")
        require(self.samples_per_class >= 1, "samples_per_class: expected 1 or more")


def main() -> None:
    """Run the five commands in turn and say where their results lie."""
    options = parse(QuickstartOptions, __doc__ or "")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    folder = options.output
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; choose another --output or delete it")
    started = time.monotonic()
    # Threads that wait without spinning: on a machine that others use too, steps are several times faster.
    environment = {"PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    for title, command in commands(options):
        logger.info("\n=== %s\n%s", title, shlex.join(command))
        done = subprocess.run([sys.executable, *command[1:]], env={**environment, **os.environ})
        if done.returncode:
            raise ValueError(
                f"step {title} failed with exit code {done.returncode}; its message stands above"
            )
    collect(folder)
    minutes = (time.monotonic() - started) / 60
    logger.info("\nDone in %.1f minutes. Look at:", minutes)
    for name, what in (
        ("samples.png", "new emoji from the prior, a row per class"),
        ("reconstructions.png", "held-out emoji above what the tokenizer keeps of them"),
        ("codebook.png", "how often each code is used"),
        ("loss.png", "the tokenizer's losses (the prior's: prior/loss.png)"),
        ("metrics.json", "all that was measured on held-out data"),
        ("tokenizer/", "the tokenizer, ready for the Hub"),
        ("prior/", "the prior, ready for the Hub"),
    ):
        logger.info("  %-48s %s", folder / name, what)


def commands(options: QuickstartOptions) -> list[tuple[str, list[str]]]:
    """Titles and commands; what trains or encodes goes through accelerate's launcher."""
    threads = options.threads or os.cpu_count() or 1
    launch = ["python", "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    launch += ["--quiet"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--num_cpu_threads_per_process", str(threads), "-m"]
    tok, tokens, prior = (str(options.output / name) for name in ("tokenizer", "tokens", "prior"))

    def step(*words: str) -> list[str]:
        return ["python", "-m", *words]

    samples, evaluation = str(options.output / "samples"), str(options.output / "eval")
    # 512 entries, not the preset's 1024: in so little time the prior gains more than the tokenizer loses.
    tokenizer_flags = ["--output", tok, "--max-steps", str(options.tokenizer_steps)]
    tokenizer_flags += ["--model.bottleneck.codebook-size", "512"]
    prior_flags = ["--tokens", tokens, "--output", prior, "--max-steps", str(options.prior_steps)]
    sample_flags = ["--label", "all", "--num", str(options.samples_per_class), "--cfg-scale", "2"]
    sample_flags += ["--temperature", "0.9"]
    return [
        ("1/5 train the tokenizer", [*launch, "pipelines.train_tokenizer", "emoji", *tokenizer_flags]),
        ("2/5 encode", [*launch, "pipelines.encode_dataset", "--tokenizer", tok, "--output", tokens]),
        ("3/5 train the prior", [*launch, "pipelines.train_prior", "small", *prior_flags]),
        ("4/5 sample", step("pipelines.sample", "--prior", prior, "--output", samples, *sample_flags)),
        ("5/5 evaluate", step("pipelines.evaluate", "--prior", prior, "--output", evaluation)),
    ]


def collect(folder: Path) -> None:
    """Copy what a person wants to see first to the top of the folder."""
    for source, name in (
        ("samples/samples.png", "samples.png"),
        ("eval/reconstructions.png", "reconstructions.png"),
        ("eval/codebook.png", "codebook.png"),
        ("tokenizer/loss.png", "loss.png"),
        ("eval/metrics.json", "metrics.json"),
    ):
        shutil.copyfile(folder / source, folder / name)


if __name__ == "__main__":
    run(main)
