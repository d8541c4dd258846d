"""The fingerprint of a tokenizer: what decides its codes changes it, and nothing else does.

Left out: the codes themselves (test_model.py), and what a fingerprint refuses (prior/test_bad_input.py).
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.tiny import image_config, tokenizer
from tests.tokenizer.test_model import KINDS
from tokenizer import Tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_is_of_what_decides_codes(kind: str, tmp_path: Path) -> None:
    tok = tokenizer(kind)
    original = tok.fingerprint()
    assert len(original) == 16 and int(original, 16) >= 0
    assert tokenizer(kind).fingerprint() == original
    assert tokenizer(kind, seed=1).fingerprint() != original
    assert Tokenizer.from_pretrained(tok.save_pretrained(tmp_path)).fingerprint() == original
    assert tok.train().fingerprint() == original and tok.eval().double().fingerprint() == original
    with torch.no_grad():
        for parameter in tok.decoder.parameters():
            parameter.add_(1)
    assert tok.fingerprint() == original
    for name, parameter in tokenizer(kind).encoder.named_parameters():
        changed = tokenizer(kind)
        with torch.no_grad():
            changed.encoder.get_parameter(name)[(-1,) * parameter.ndim] += 1e-5
        assert changed.fingerprint() != original, name


def test_every_part_of_a_bottleneck_counts_or_not() -> None:
    original = tokenizer("vq").fingerprint()
    decides = {"codebook.entries", "project_in.weight", "project_in.bias"}
    state = tokenizer("vq").bottleneck.state_dict()
    assert decides < set(state)
    for name in state:
        changed = tokenizer("vq")
        value = changed.bottleneck.state_dict()[name]
        value.view(-1)[0] = ~value.view(-1)[0] if value.dtype == torch.bool else value.view(-1)[0] + 1e-3
        assert (changed.fingerprint() != original) == (name in decides), name


def test_weights_of_losses_leave_the_fingerprint_alone_and_other_options_do_not() -> None:
    tok = tokenizer("vq")

    def fingerprint(**changes: Any) -> str:
        other = Tokenizer(dataclasses.replace(tok.config, **changes))
        other.load_state_dict(tok.state_dict(), strict=True)
        return other.fingerprint()

    assert fingerprint() == fingerprint(losses={"l1": 3.0}) == tok.fingerprint()
    assert fingerprint(modality=image_config(size=(8, 8))) != tok.fingerprint()
    vq = tok.config.bottleneck
    for name, value in {
        "gradient": "rotation", "beta": 0.1, "decay": 0.5, "kmeans_steps": 3, "revive_below": 0.0
    }.items():  # fmt: skip
        assert fingerprint(bottleneck=dataclasses.replace(vq, **{name: value})) == tok.fingerprint(), name
    assert fingerprint(bottleneck=dataclasses.replace(vq, distance="cosine")) != tok.fingerprint()
