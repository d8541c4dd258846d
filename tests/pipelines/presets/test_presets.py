"""Presets and help of the command lines."""

import dataclasses
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.encode_dataset import EncodeOptions
from pipelines.evaluate import EvaluateOptions
from pipelines.presets import DECODERS, PRIORS, TOKENIZERS
from pipelines.quantize_vae import QuantizeOptions
from pipelines.quickstart import QuickstartOptions
from pipelines.run.command_line import parse
from pipelines.sample import SampleOptions
from pipelines.train_decoder import check_preset, chosen_losses, load_jury, weights_of
from pipelines.training.options import DecoderTraining, PriorTraining, TokenizerTraining
from tests.pipelines.run.test_command_line import prior_options, tokenizer_options
from tokenizer import Tokenizer
from tokenizer.bottlenecks import BottleneckConfig
from tokenizer.decoder_stage import DecoderStage
from tokenizer.perceptual import load_perceptual
from tokenizer.variants import config_from_dict, config_to_dict


def test_the_presets_that_were_promised_are_there() -> None:
    pictures, sound = {"emoji", "digits", "digits-vae", "image-64", "image-256"}, {"small", "16k", "24k"}
    assert set(TOKENIZERS) >= pictures | {f"audio-{name}" for name in sound}
    assert next(iter(TOKENIZERS)) == "emoji"
    assert next(iter(PRIORS)) == "small"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_tokenizer_preset_builds_and_can_be_written_down(name: str) -> None:
    options = tokenizer_options(name)
    assert options == TOKENIZERS[name].build() and options.max_steps >= 100
    restored = config_from_dict(TokenizerTraining, config_to_dict(options))
    assert restored == options
    assert options.checkpoint_every <= options.max_steps
    Tokenizer(options.model)


@pytest.mark.parametrize("name", PRIORS)
def test_every_prior_preset_builds_and_can_be_written_down(name: str) -> None:
    options = prior_options(name)
    assert options == PRIORS[name].build()
    assert config_from_dict(PriorTraining, config_to_dict(options)) == options
    assert options.model.dim % (options.model.heads * 4) == 0  # whole pairs for two axes


# The presets of tokenizers that those of decoders are for, where they have not the same name.
FIRST = {"pictures": "emoji", "speech": "audio-small"}


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_preset_builds_on_its_tokenizer_and_can_be_written_down(name: str) -> None:
    options = parse(DecoderTraining, "Train.", [name], DECODERS, "pictures")
    assert options == DECODERS[name].build()
    assert config_from_dict(DecoderTraining, config_to_dict(options)) == options
    first = TOKENIZERS[FIRST.get(name, name)].build()
    with torch.device("meta"):  # weights of hundreds of megabytes, of which no value matters
        tok = Tokenizer(first.model)
        check_preset(name, tok)
        jury = load_jury(options, tok)
        stage = DecoderStage(tok, chosen_losses(options, tok))
    assert jury is None or jury.config.modality == tok.modality.name
    # All that the decoder pays for has a weight, and is judged by networks that are there.
    weights = {k: weight for k, weight in weights_of(options, stage).items() if weight > 0}
    assert set(weights) & {*first.model.losses} and ("adversarial" in weights) == (jury is not None)
    assert ("perceptual" in weights) == bool(options.perceptual)
    if options.perceptual:
        load_perceptual(options.perceptual)
    # As in the first stage, where that is not for two cores.
    if name not in FIRST:
        same = ("batch_size", "mixed_precision", "checkpoint_every", "eval_every", "data", "augment")
        assert [getattr(options, k) for k in same] == [getattr(first, k) for k in same]
        assert DECODERS[name].about.endswith("Not trained.")
        assert TOKENIZERS[name].about.endswith("Not trained.")


def test_the_decoder_presets_that_were_promised_are_there() -> None:
    assert list(DECODERS)[:2] == ["pictures", "speech"]
    assert set(DECODERS) >= {"audio-16k", "audio-24k", "image-256"}


def test_every_bottleneck_has_a_preset_that_shows_it() -> None:
    shown = {preset.build().model.bottleneck.kind for preset in TOKENIZERS.values()}
    assert shown == set(BottleneckConfig.members())


def help_of(cls: type, monkeypatch: pytest.MonkeyPatch, **presets: Any) -> str:
    """What --help prints, as one line without frames."""
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stdout", printed)
    monkeypatch.setenv("COLUMNS", "100")  # one column of options
    with pytest.raises(SystemExit) as stop:
        parse(cls, "Does a thing.", ["--help"], **presets)
    monkeypatch.undo()
    assert stop.value.code in (0, None)
    return " ".join(printed.getvalue().translate({ord(c): " " for c in "│╭╮╰╯─"}).split())


@pytest.mark.parametrize(
    ("cls", "presets", "default"),
    [
        (TokenizerTraining, TOKENIZERS, "emoji"),
        (PriorTraining, PRIORS, "small"),
        (DecoderTraining, DECODERS, "pictures"),
    ],
)
def test_help_lists_every_preset_with_its_cost(
    cls: type, presets: Any, default: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_of(cls, monkeypatch, presets=presets, default_preset=default)
    for name, preset in presets.items():
        assert f"{name}{' (default)' if name == default else ''}: {preset.about}" in text
        assert len(preset.about) > 20 and re.search(r"minute|hours|day", preset.about)
    assert "Does a thing." in text and "--config FILE" in text


def flags_of(cls: type) -> list[str]:
    """The flags of an options class, with those of plain dataclasses inside it."""
    flags = []
    for field in dataclasses.fields(cls):
        factory = field.default_factory
        inner = factory() if factory is not dataclasses.MISSING else field.default
        if dataclasses.is_dataclass(inner):
            flags += [f"{field.name}.{flag}" for flag in flags_of(type(inner))]
        else:
            flags.append(field.name.replace("_", "-"))
    return flags


@pytest.mark.parametrize(
    "cls",
    [
        *(TokenizerTraining, PriorTraining, DecoderTraining, EncodeOptions, EvaluateOptions, SampleOptions),
        *(QuantizeOptions, QuickstartOptions),
    ],
)
def test_help_explains_every_flag(cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_of(cls, monkeypatch)
    for flag in flags_of(cls):
        assert f"--{flag}" in text
        # A default straight after the flag and the kind of its value: nothing explains it.
        assert not re.search(rf"--{re.escape(flag)}( [^a-z ]+)* \(default", text)


def test_both_training_scripts_have_the_flags_that_were_promised() -> None:
    promised = {
        *("output", "max-steps", "batch-size", "seed", "checkpoint-every", "keep-checkpoints", "resume"),
        *("mixed-precision", "data.valid-fraction"),
    }
    assert promised | {"data.path"} <= set(flags_of(TokenizerTraining))
    assert promised <= set(flags_of(PriorTraining))
    assert prior_options("--data.path", "my/tokens").tokens == Path("my/tokens")


@dataclass(frozen=True)
class Plain:
    """Options without presets."""

    number: int = 1
    """A number."""


def test_without_presets_a_loose_word_is_a_mistake() -> None:
    assert parse(Plain, "Plain.", ["--number", "3"]) == Plain(3)
    with pytest.raises(ValueError, match="loose"):
        parse(Plain, "Plain.", ["loose"])
