"""Makes tests/golden/folders/: folders as the scripts write them, with a checkpoint in the midst of each
training, and tests/golden/options.json: what every preset and every script sets.

Left out: the comparison (test_folders.py), and models trained for more than a few steps (make_models.py). Run
`python -m tests.golden.make_folders` only when it is meant that runs of before end here, and say so in the
commit: users can then not resume theirs.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.presets import DECODERS, PRIORS, TOKENIZERS
from pipelines.run.command_line import flatten
from tests.helpers.running import (
    TINY_CODEC,
    TINY_PRIOR,
    TINY_TOKENIZER,
    TINY_VAE,
    options_of,
    run_script,
    without_plots,
)
from tokenizer.variants import config_to_dict

GOLDEN = Path(__file__).parent
STEPS = ("--max-steps", 5, "--checkpoint-every", 3, "--eval-every", 3, "--tracker", "none")
# By the folder that it writes, a script and its words; all paths lie beside each other. The checkpoint of the
# tokenizer is just after its codebook began with k-means, that of the codec before, with half a reservoir.
RUNS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "tokenizer": (
        "train_tokenizer",
        ("emoji", *TINY_TOKENIZER, "--model.modality.widths", 4, 8, *STEPS),
    ),
    "codec": (
        "train_tokenizer",
        (
            "audio-small-waveform",
            *TINY_CODEC,
            "--model.modality.widths",
            *"446",
            "--model.bottleneck.stage.kmeans-steps",
            4,
            *STEPS,
        ),
    ),
    "vae": (
        "train_tokenizer",
        ("digits-vae", *TINY_VAE, "--model.modality.widths", *"33334", "--optimizer", "adamw", *STEPS),
    ),
    "quantized": (
        "quantize_vae",
        ("--tokenizer", "vae", "--data.path", "embedded:digits", "--data.limit", 32, "--codebook-size", 16),
    ),
    "tokens": (
        "encode_dataset",
        ("--tokenizer", "tokenizer", "--data.limit", 48, "--views", 2, "--augment.flip"),
    ),
    "codec-tokens": (
        "encode_dataset",
        ("--tokenizer", "codec", "--data.path", "embedded:speech", "--data.limit", 6),
    ),
    "prior": ("train_prior", ("small", *TINY_PRIOR, "--model.dim", 16, "--tokens", "tokens", *STEPS)),
    "codec-prior": (
        "train_prior",
        ("speech", *TINY_PRIOR, "--model.dim", 8, "--tokens", "codec-tokens", "--seconds", 0.5, *STEPS),
    ),
}
SCRIPTS = ("encode_dataset", "evaluate", "quantize_vae", "quickstart", "sample")


def options() -> dict[str, dict[str, Any]]:
    """By the first words of a command line, the options as they are then; of a preset what differs from the
    first preset of its script."""
    found = {name: flatten(config_to_dict(options_of(name, []))) for name in SCRIPTS}
    scripts = {"train_tokenizer": TOKENIZERS, "train_decoder": DECODERS, "train_prior": PRIORS}
    for name, presets in scripts.items():
        first: dict[str, Any] = {}
        for preset in presets:
            values = flatten(config_to_dict(options_of(name, [preset])))
            found[f"{name} {preset}"] = {k: v for k, v in values.items() if first.get(k, ...) != v}
            first = first or values
    return found


@contextlib.contextmanager
def at(folder: Path) -> Iterator[None]:
    """`folder` as the working directory, and no plots."""
    with contextlib.chdir(folder), without_plots():
        yield


def main() -> None:
    runs = GOLDEN / "folders"
    shutil.rmtree(runs, ignore_errors=True)
    runs.mkdir()
    with at(runs):
        for folder, (script, words) in RUNS.items():
            run_script(script, *words, "--output", folder)
    for path in sorted(runs.rglob("*"), reverse=True):
        if path.suffix in (".png", ".html", ".wav") or path.name == ".lock":
            path.unlink()
        elif path.name == "step-5":  # the run ends with it, and has the model beside it
            shutil.rmtree(path)
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    for path in (p for p in runs.rglob("*") if p.is_file()):
        path.chmod(0o644)
        if path.stat().st_size >= 50_000:
            raise ValueError(f"{path}: {path.stat().st_size} bytes, expected less than 50,000")
    text = json.dumps(options(), indent=1, sort_keys=True) + "\n"
    (GOLDEN / "options.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
