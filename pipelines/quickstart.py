"""All of it on embedded data: train a tokenizer, encode, train a prior, sample, evaluate. `python -m
pipelines.quickstart [--preset emoji | --preset speech]`

Left out: options of the steps; each step is a command that is printed, to be run again with other flags.
"""

if __name__ == "__main__":  # before anything imports torch
    from pipelines.run.environment import prepare_environment

    prepare_environment()

import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.run.command_line import parse, run
from tokenizer.variants import require

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tour:
    """What a quickstart trains, for how long, and what to look at in the end."""

    what: str
    """What it learns and draws, and how long that takes on two CPU cores, as --help says it too."""
    folder: Path
    tokenizer: tuple[str, ...]
    """Preset and flags of the tokenizer, without its steps."""
    tokenizer_steps: int
    prior: tuple[str, ...]
    prior_steps: int
    data: str
    sample: tuple[str, ...]
    results: tuple[tuple[str, str, str], ...]
    """Where a file is, its name at the top of the folder, and what it shows."""
    shipped: str
    """How long the models that ship with the project learnt the same data."""
    views: tuple[str, ...] = ()
    """Flags of encoding, for views that the prior learns."""


MODELS = (
    ("tokenizer/", "the tokenizer, ready for the Hub"),
    ("prior/", "the prior, ready for the Hub"),
)
# Drawn anew at each evaluation of the prior.
FIRST = "prior/sample.png"
# Where what is drawn before anything is trained goes.
SHIPPED = "shipped"
SHOWN = (
    ("eval/codebook.png", "codebook.png", "how often each code is used"),
    ("tokenizer/loss.png", "loss.png", "the tokenizer's losses (the prior's: prior/loss.png)"),
    ("eval/metrics.json", "metrics.json", "all that was measured on held-out data"),
)


def _pictures(name: str) -> tuple[tuple[str, str, str], ...]:
    samples = f"new {name} from the prior, a row per class"
    rebuilt = f"held-out {name} above what is kept of them"
    return (
        ("samples/samples.png", "samples.png", samples),
        ("eval/reconstructions.png", "reconstructions.png", rebuilt),
        *SHOWN,
    )


TOURS = {
    "digits": Tour(
        what="handwritten digits, 2 to 4 minutes",
        folder=Path("runs/quickstart"),
        tokenizer=("digits-small",),
        tokenizer_steps=400,
        prior=("small", "--warmup-steps", "30", "--eval-every", "100"),
        prior_steps=400,
        data="embedded:digits",
        sample=("--label", "all", "--cfg-scale", "2", "--temperature", "0.9"),
        results=_pictures("digits"),
        shipped="an hour",
    ),
    "emoji": Tour(
        what="emoji, 4 to 15 minutes",
        folder=Path("runs/quickstart-emoji"),
        # 512 entries, not the preset's 1024: in so little time the prior gains more than the tokenizer loses.
        tokenizer=("emoji", "--model.bottleneck.codebook-size", "512"),
        tokenizer_steps=1000,
        # In the time of 450 steps of 64 items without views: 4.42 bits per code held out, 4.62 with these.
        prior=("small", "--batch-size", "32"),
        prior_steps=900,
        data="embedded:emoji",
        sample=("--label", "all", "--cfg-scale", "2", "--temperature", "0.9"),
        results=_pictures("emoji"),
        shipped="two hours",
        views=("--views", "2", "--augment.flip"),
    ),
    "speech": Tour(
        what="English speech, 10 to 30 minutes",
        folder=Path("runs/quickstart-audio"),
        tokenizer=("audio-small",),
        tokenizer_steps=2000,
        prior=("speech",),
        prior_steps=300,
        data="embedded:speech",
        sample=("--temperature", "0.9"),
        results=(
            ("samples/samples.html", "samples.html", "new speech from the prior, to listen to"),
            ("samples/samples.png", "samples.png", "its spectrograms"),
            ("eval/reconstructions.html", "reconstructions.html", "held-out speech and what is kept of it"),
            ("eval/reconstructions.png", "reconstructions.png", "their spectrograms"),
            ("eval/rate_distortion.png", "rate_distortion.png", "quality at each number of codebooks"),
            *SHOWN,
        ),
        shipped="two hours",
    ),
}


@dataclass(frozen=True)
class QuickstartOptions:
    """Options of quickstart.py."""

    preset: Literal["digits", "emoji", "speech"] | None = None
    """What to learn and to draw, on 2 CPU cores: handwritten digits (2 to 4 minutes), emoji (4 to 15), or
    English speech (10 to 30). Left out: digits."""
    modality: Literal["image", "audio"] = "image"
    """audio: the same as --preset speech."""
    output: Path | None = None
    """Folder for everything; must not hold a quickstart already. Left out: runs/quickstart,
    runs/quickstart-emoji or runs/quickstart-audio."""
    threads: int = 0
    """CPU threads per process; 0: one per core."""
    tokenizer_steps: int | None = None
    """Training steps of the tokenizer. Left out: as many as fit into the time."""
    prior_steps: int | None = None
    """Training steps of the prior. Left out: as many as fit into the time."""
    samples_per_class: int = 10
    """Pictures in each row of samples.png, or clips of speech."""

    def __post_init__(self) -> None:
        steps = [n for n in (self.tokenizer_steps, self.prior_steps) if n is not None]
        require(all(n >= 1 for n in steps), "steps: expected 1 or more")
        require(self.threads >= 0, f"threads is {self.threads}, expected 0 or more")
        require(self.samples_per_class >= 1, "samples_per_class: expected 1 or more")
        require(
            self.modality == "image" or self.preset in (None, "speech"),
            f"--modality audio is --preset speech, which does not go with --preset {self.preset}",
        )

    @property
    def tour(self) -> Tour:
        """The steps of the chosen preset."""
        return TOURS[self.preset or ("speech" if self.modality == "audio" else "digits")]

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return self.output or self.tour.folder


def main() -> None:
    """Run the commands in turn and say where their results lie."""
    options = parse(QuickstartOptions, __doc__ or "")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    folder, tour = options.folder, options.tour
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; choose another --output or delete it")
    logger.info("%s on two CPU cores", tour.what)
    started = time.monotonic()
    logger.info("First what models draw that learnt for %s, to look at while yours learn", tour.shipped)
    environment = {"PYTHONUNBUFFERED": "1"}
    for title, command in [first_look(options), *commands(options)]:
        logger.info("\n=== %s\n%s", title, shlex.join(command))
        done = subprocess.run([sys.executable, *command[1:]], env={**environment, **os.environ})
        if done.returncode:
            raise ValueError(
                f"step {title} failed with exit code {done.returncode}; its message stands above"
            )
    for source, name, _ in tour.results:
        shutil.copyfile(folder / source, folder / name)
    minutes = (time.monotonic() - started) / 60
    logger.info("\nDone in %.1f minutes. Look at:", minutes)
    for name, what in (*((name, what) for _, name, what in tour.results), *MODELS):
        logger.info("  %-48s %s", folder / name, what)


def first_look(options: QuickstartOptions) -> tuple[str, list[str]]:
    """Title and command of drawing from the models that ship."""
    tour, output = options.tour, options.folder / SHIPPED
    _, shown, _ = tour.results[0]
    flags = ["--num", str(options.samples_per_class), *tour.sample]
    command = ["python", "-m", "pipelines.sample", "--prior", tour.data, *flags, "--output", str(output)]
    return f"look first at {output / shown}", command


def commands(options: QuickstartOptions) -> list[tuple[str, list[str]]]:
    """Titles and commands; what trains or encodes goes through accelerate's launcher."""
    folder, tour = options.folder, options.tour
    threads = options.threads or os.cpu_count() or 1
    launch = ["python", "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    launch += ["--quiet"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--num_cpu_threads_per_process", str(threads), "-m"]
    tok, tokens, prior = (str(folder / name) for name in ("tokenizer", "tokens", "prior"))

    def step(*words: str) -> list[str]:
        return ["python", "-m", *words]

    samples, evaluation = str(folder / "samples"), str(folder / "eval")
    tokenizer_steps = str(options.tokenizer_steps or tour.tokenizer_steps)
    prior_steps = str(options.prior_steps or tour.prior_steps)
    data = ["--data.path", tour.data]
    token_flags = ["--tokenizer", tok, *data, *tour.views, "--output", tokens]
    tokenizer_flags = [*tour.tokenizer, "--output", tok, "--max-steps", tokenizer_steps]
    prior_flags = [*tour.prior, "--tokens", tokens, "--output", prior, "--max-steps", prior_steps]
    sample_flags = ["--num", str(options.samples_per_class), *tour.sample]
    return [
        ("1/5 train the tokenizer", [*launch, "pipelines.train_tokenizer", *tokenizer_flags]),
        ("2/5 encode", [*launch, "pipelines.encode_dataset", *token_flags]),
        (
            f"3/5 train the prior (soon the first it draws: {folder / FIRST})",
            [*launch, "pipelines.train_prior", *prior_flags],
        ),
        ("4/5 sample", step("pipelines.sample", "--prior", prior, "--output", samples, *sample_flags)),
        ("5/5 evaluate", step("pipelines.evaluate", "--prior", prior, *data, "--output", evaluation)),
    ]


if __name__ == "__main__":
    run(main)
