"""A prior's step as a graph: drawn step by step with onnxruntime, the most likely codes are those of the
prior.

Left out: the script (scripts/test_export.py).
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.export import export_prior
from pipelines.graphs.agreement import Session, compare_prior, empty_cache
from pipelines.graphs.step import check_prior
from tests.helpers.priors import SOUND, random_prior

CONFIGS = {
    # In raster order, as `export.json` says.
    "any": dataclasses.replace(SOUND, order="any"),
    "flatten": dataclasses.replace(SOUND, qk_norm=False, target_embedding=False, class_names=()),
    "delay": dataclasses.replace(SOUND, num_codebooks=3, pattern="delay", rotary="sequence"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_most_likely_codes_are_those_of_the_prior(name: str, tmp_path: Path) -> None:
    prior = random_prior(CONFIGS[name]).float().eval()
    file, facts = export_prior(prior, tmp_path)
    config, steps = prior.config, facts["steps"]
    assert facts["order"] == "raster"
    assert facts["checked"]["steps"] == len(steps) and file["inputs"]["step"] == [1]
    label = torch.tensor([2, -1, 0]) if config.class_names else torch.full((3,), -1)
    step = Session(tmp_path / "prior.onnx")
    codes = np.full((3, config.num_codebooks, int(np.prod(config.grid))), -1)
    before, cache = np.full((3, len(steps[0])), -1), empty_cache(prior, 3)
    for number, held in enumerate(steps):
        logits, cache = step(before, np.array([number]), label, cache)
        before = np.where(np.array(held)[:, 0] >= 0, logits.argmax(-1), -1)
        for q, (book, position) in enumerate(held):
            if book >= 0:
                codes[:, book, position] = before[:, q]
    expected = prior.sample(3, label, temperature=0).flatten(2)
    assert (codes == expected.numpy()).all()
    with torch.no_grad():
        prior.head.mul_(1.1)
    with pytest.raises(ValueError, match=r"prior\.onnx: likelihoods .* nats .* Nothing was written"):
        compare_prior(prior, step)


def test_a_pattern_in_turn_is_refused() -> None:
    prior = random_prior(dataclasses.replace(SOUND, pattern="depth")).float()
    with pytest.raises(ValueError, match=r"depth a second transformer \(inner\).*--pattern flatten"):
        check_prior(prior, "runs/prior")
