"""The benchmark of tokenizers of another library, on its narrowest codecs and a few short clips.

Left out: how fast anything is.
"""

from pathlib import Path

import pytest
import torch

from pipelines.benchmarks.foreign.codecs import CONFIGS
from pipelines.benchmarks.foreign.speed import PAIRS, ForeignBenchmark, clips_of
from tests.helpers.foreign import saved
from tests.helpers.running import Script, read
from tokenizer import Tokenizer


def test_it_prints_and_writes(script: Script, tmp_path: Path) -> None:
    codecs = ["Encodec", "Dac"]  # with a padded batch that is right, and without
    sizes = (
        "--codecs",
        *codecs,
        "--scale",
        8,
        "--clips",
        2,
        "--shortest",
        0.1,
        "--longest",
        0.2,
        "--device",
        "cpu",
    )
    done = script("benchmark", "foreign", *sizes, "--turns", 1, "--warm-up", 0, "--output", tmp_path)
    values = read(tmp_path / "benchmark-foreign.json")
    assert list(values["codecs"]) == codecs and set(codecs) < set(CONFIGS)
    assert values["versions"].keys() >= {"torch", "transformers"}
    for name, found in values["codecs"].items():
        wanted = [pair for pair in PAIRS if name != "Dac" or pair != "encode, padded batch"]
        assert list(found["ratios"]) == wanted and all(r["low"] > 0 for r in found["ratios"].values())
        # Between near ties a batch may round otherwise than an item.
        assert found["positions_that_differ"] <= 0.02 * found["positions"] and name in done.out
    assert values["command"] in done.out


def test_clips_are_whole_frames_of_all_lengths(tmp_path: Path) -> None:
    tok = Tokenizer.from_pretrained(saved("dac", tmp_path))
    codec = type("Codec", (), {"tok": tok})()
    options = ForeignBenchmark(clips=5, shortest=0.2, longest=1.0)
    lengths = [c.shape[2] for c in clips_of(codec, options, torch.device("cpu"))]
    assert sorted(lengths) == [800, 1600, 2400, 3200, 4000] and lengths != sorted(lengths)


@pytest.mark.parametrize(
    "values",
    [
        {"codecs": ("Opus",)},
        {"codecs": ()},
        {"scale": 3},
        {"shortest": 2.0, "longest": 1.0},
        {"turns": 0},
    ],
)
def test_options_that_cannot_be(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        ForeignBenchmark(**values)  # type: ignore[arg-type]
