"""A soak: the second stage from several seeds, on small tokenizers of embedded pictures and speech. No number
is lost on the way, and what comes out is no worse than before.

On two cores a tokenizer takes a minute or two to train, and a seed some minutes.

Left out: the sizes that presets have, whose figures stand in cards/decoders.md.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.evaluation.kid import LITE
from tests.helpers.running import Script, read, without_plots
from tests.helpers.whole_runs import rows_of
from tokenizer.sound_metrics import available

SEEDS, STEPS = range(5), 1000

pytestmark = pytest.mark.soak

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Case:
    """Words that train a small tokenizer, its second stage, and what they are measured on; and of what is
    measured that which must not get worse, as numbers of which less is better."""

    first: tuple[object, ...]
    second: tuple[object, ...]
    evaluation: tuple[object, ...]
    measures: Callable[[Metrics], dict[str, float]]


def distance_of_pictures(metrics: Metrics) -> dict[str, float]:
    return {"kid": metrics["kid_reconstructions"]}


def distances_of_speech(metrics: Metrics) -> dict[str, float]:
    """DNSMOS and PESQ; STOI and the distance of spectra where PESQ is not installed."""
    if "pesq" in available():
        return {"dnsmos": -metrics["dnsmos"], "pesq": -metrics["pesq"]}
    return {name: -metrics[name] for name in ("dnsmos", "stoi")} | {"mel_distance": metrics["mel_distance"]}


EMOJI = (
    *("emoji", "--model.modality.widths", 32, 64, "--model.bottleneck.codebook-size", 256),
    *("--max-steps", 500),
)
OF_EMOJI = ("--data.path", "embedded:emoji", "--kid", LITE)
# Two codebooks, since every script at its end measures all held-out clips at each number of them.
SPEECH = (
    *("audio-small", "--model.modality.dim", 96, "--model.modality.depth", 3),
    *("--model.bottleneck.num-codebooks", 2, "--model.modality.size", 6400, "--max-steps", 500),
)
OF_SPEECH = ("--data.path", "embedded:speech", "--data.limit", 16)
CASES = {
    "pictures": Case(EMOJI, ("pictures", "--adversarial.width", 16), OF_EMOJI, distance_of_pictures),
    # Discriminators have made nothing so small better yet, whatever the weight; nothing may run away.
    "pictures-judged": Case(
        EMOJI,
        ("pictures", "--adversarial.weight", 0.1, "--adversarial.width", 16),
        OF_EMOJI,
        lambda metrics: {},
    ),
    "speech": Case(SPEECH, ("speech", "--batch-size", 8), OF_SPEECH, distances_of_speech),
    "speech-judged": Case(
        SPEECH,
        (
            *("speech", "--batch-size", 8, "--adversarial.width", 4, "--adversarial.weight", 1),
            *("--adversarial.feature-weight", 2),
        ),
        OF_SPEECH,
        lambda metrics: {},
    ),
}


def measured(script: Script, case: Case, tokenizer: Path, output: Path) -> Metrics:
    script("evaluate", "--tokenizer", tokenizer, *case.evaluation, "--output", output, dnsmos=True)
    metrics: Metrics = read(output / "metrics.json")
    return metrics


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def trained(
    case: Case, script: Script, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    """A tokenizer after its first stage, and what must not get worse of it."""
    folder = tmp_path_factory.mktemp("first")
    with without_plots():
        script("train_tokenizer", *case.first, "--output", folder / "tokenizer")
        before = measured(script, case, folder / "tokenizer", folder / "before")
    return folder / "tokenizer", case.measures(before)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_second_stage_stays_finite_and_makes_nothing_worse(
    seed: int,
    case: Case,
    trained: tuple[Path, dict[str, float]],
    script: Script,
    no_plots: None,
    tmp_path: Path,
) -> None:
    tokenizer, before = trained
    words = ("--tokenizer", tokenizer, "--seed", seed, "--max-steps", STEPS, "--log-every", 10)
    script("train_decoder", *case.second, *words, "--output", tmp_path / "sharp")
    rows = rows_of(tmp_path / "sharp")
    last = [row for row in rows if "train/loss" in row][-1]
    judged = (tmp_path / "sharp" / "discriminator").exists()
    assert last["step"] == STEPS and ("train/adversarial" in last) == judged
    metrics = measured(script, case, tmp_path / "sharp", tmp_path / "after")
    for values in (*rows, read(tmp_path / "sharp" / "metrics.json"), metrics):
        assert all(math.isfinite(value) for value in values.values()), values
    after = case.measures(metrics)
    print({name: (round(before[name], 4), round(value, 4)) for name, value in after.items()})
    worse = {name: (before[name], value) for name, value in after.items() if value > before[name]}
    assert not worse
