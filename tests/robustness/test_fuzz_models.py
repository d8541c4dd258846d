"""Saved models that are broken: a tokenizer's and a prior's config.json and model.safetensors.

Left out: what single breakages are called (tokenizer/hub/test_strict_loading.py).
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from prior import Prior, PriorConfig
from tests.helpers.broken_safetensors import broken_safetensors
from tests.helpers.fuzzing import ERROR, RESULT, Make, Subject, fuzz, shares
from tests.helpers.mutators import broken_json
from tests.helpers.tiny import codec, pictures, sounds, tokenizer
from tokenizer import Tokenizer
from tokenizer.hub.files import CONFIG, WEIGHTS
from tokenizer.hub.model import HubModel
from tokenizer.variants import config_to_dict

NAMED = (CONFIG, WEIGHTS)
# Of the fingerprint's refusal, which comes last of all.
MADE = re.compile(r"config and weights make '([0-9a-f]+)'")


def tokenizers(folder: Path) -> list[Callable[[], Tokenizer]]:
    """Small ones of several kinds, of pictures and of sound."""
    image = {"size": (8, 8), "strides": (2,), "widths": (4,), "blocks": (1,)}
    sound = {"size": (60,), "strides": (5,), "widths": (4,), "blocks": (1,), "kernel": 3}
    return [lambda k=k: tokenizer(k, **image) for k in ("vq", "fsq", "grouped", "gaussian_quant", "lfq")] + [
        lambda: codec("rvq", **sound)
    ]


def config_of_a_tokenizer(folder: Path) -> Subject:
    saved = [make().save_pretrained(folder / f"{i}") for i, make in enumerate(tokenizers(folder))]
    whole = {path: json.loads((path / CONFIG).read_text()) for path in saved}

    def read(rng: random.Random) -> None:
        path = rng.choice(saved)
        # Most of what there is to break is in the config itself.
        inner = rng.random() < 0.8
        text = broken_json(whole[path]["config"] if inner else whole[path], rng)
        if inner:
            text = json.dumps({**whole[path], "config": 0})[:-2] + text + "}"
        write(path / CONFIG, text)
        try:
            tok = Tokenizer.from_pretrained(path)
        except ValueError as error:
            if not (made := MADE.search(str(error))):
                raise
            # As someone would who wants it to be loaded.
            raw = json.loads((path / CONFIG).read_text())
            write(path / CONFIG, json.dumps({**raw, "fingerprint": made[1]}))
            tok = Tokenizer.from_pretrained(path)
        read_back(tok, path)
        check_codes(tok)

    return Subject(read, NAMED)


def weights_of_a_tokenizer(folder: Path) -> Subject:
    saved, expected = [], []
    for i, make in enumerate(tokenizers(folder)):
        tok = make()
        saved.append(tok.save_pretrained(folder / f"{i}"))
        expected.append(tok.encode(example(tok)))
    whole = [(path / WEIGHTS).read_bytes() for path in saved]

    def read(rng: random.Random) -> None:
        i = rng.randrange(len(saved))
        (saved[i] / WEIGHTS).write_bytes(broken_safetensors(whole[i], rng))
        tok = Tokenizer.from_pretrained(saved[i])
        assert_same_names(tok, saved[i])
        # The fingerprint has seen to it that only the decoder can be another.
        assert torch.equal(tok.encode(example(tok)), expected[i])

    return Subject(read, NAMED)


def priors() -> list[Prior]:
    small = {"codebook_size": 5, "dim": 8, "depth": 1, "heads": 1, "ffn": 1.0, "tokenizer_id": "a/b"}
    inner = {"inner_dim": 8, "inner_depth": 1, "inner_heads": 1}
    configs = [
        PriorConfig(grid=(2, 2), class_names=("a", "b"), **small),
        PriorConfig(grid=(3,), num_codebooks=2, pattern="delay", **small),
        PriorConfig(grid=(3,), num_codebooks=2, pattern="depth", rotary="sequence", **small, **inner),
    ]
    torch.manual_seed(0)
    return [Prior(config) for config in configs]


def config_of_a_prior(folder: Path) -> Subject:
    saved = [prior.save_pretrained(folder / f"{i}") for i, prior in enumerate(priors())]
    whole = [json.loads((path / CONFIG).read_text()) for path in saved]

    def read(rng: random.Random) -> None:
        i = rng.randrange(len(saved))
        text = broken_json(whole[i]["config"], rng)
        if rng.random() < 0.8:
            text = json.dumps({**whole[i], "config": 0})[:-2] + text + "}"
        write(saved[i] / CONFIG, text)
        prior = Prior.from_pretrained(saved[i])
        read_back(prior, saved[i])
        check_samples(prior)

    return Subject(read, NAMED)


def weights_of_a_prior(folder: Path) -> Subject:
    saved = [prior.save_pretrained(folder / f"{i}") for i, prior in enumerate(priors())]
    whole = [(path / WEIGHTS).read_bytes() for path in saved]

    def read(rng: random.Random) -> None:
        i = rng.randrange(len(saved))
        (saved[i] / WEIGHTS).write_bytes(broken_safetensors(whole[i], rng))
        prior = Prior.from_pretrained(saved[i])
        assert_same_names(prior, saved[i])

    return Subject(read, NAMED)


def write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def example(tok: Tokenizer) -> Tensor:
    channels = tok.modality.channels
    return sounds(1, channels, 60) if tok.modality.sample_rate else pictures(1, channels, 8, 8)


def read_back(model: HubModel, path: Path) -> None:
    """The model's config is what stands in the file, which leaves out what has its default."""
    raw = json.loads((path / CONFIG).read_text())
    assert_within(raw["config"], config_to_dict(model.config))


def assert_within(part: Any, whole: Any) -> None:
    if isinstance(part, dict):
        assert part.keys() <= whole.keys()
        for name, value in part.items():
            assert_within(value, whole[name])
    else:
        assert part == whole and isinstance(part, bool) == isinstance(whole, bool), (part, whole)


def check_codes(tok: Tokenizer) -> None:
    if not tok.bottleneck.num_codebooks:
        assert torch.isfinite(tok.posterior(example(tok)).mean).all()
        return
    codes = tok.encode(example(tok))
    assert codes.dtype == torch.int64 and codes.shape[:2] == (1, tok.num_codebooks)
    assert int(codes.min()) >= 0 and int(codes.max()) < tok.codebook_size
    assert torch.isfinite(tok.decode(codes)).all()


def check_samples(prior: Prior) -> None:
    label = None if prior.config.unconditional else 0
    codes = prior.sample(1, label)
    assert int(codes.min()) >= 0 and int(codes.max()) < prior.config.codebook_size
    assert torch.isfinite(prior.nll(codes, label)).all()


def assert_same_names(model: HubModel, path: Path) -> None:
    """Names, shapes and types are the model's own, and the values those of the file, all finite."""
    held = load_file(path / WEIGHTS)
    state = model.state_dict()
    assert held.keys() == state.keys()
    for name, value in state.items():
        assert value.dtype in (torch.float32, torch.bool, torch.int64) and torch.isfinite(value).all(), name
        assert held[name].is_floating_point() == value.is_floating_point(), name
        assert torch.equal(held[name].to(value.dtype), value), name


# How many of each; 2000 of config.json and of model.safetensors.
SUBJECTS = {
    config_of_a_tokenizer: 1300,
    config_of_a_prior: 700,
    weights_of_a_tokenizer: 1300,
    weights_of_a_prior: 700,
}


@shares
@pytest.mark.parametrize("make", SUBJECTS)
def test_broken_models_are_refused_or_right(make: Make, share: int, tmp_path: Path) -> None:
    report = fuzz(make, range(SUBJECTS[make] // share), tmp_path)
    assert report.ends[ERROR] > 300 // share and report.ends[RESULT] > 50 // share
    assert len(report.refusals) > 20


@pytest.mark.soak
@pytest.mark.parametrize("make", SUBJECTS)
def test_many_more_broken_models(make: Make, tmp_path: Path) -> None:
    fuzz(make, range(10_000, 14_000), tmp_path)
