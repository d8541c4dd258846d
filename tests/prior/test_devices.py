"""No operation of a prior mixes devices: passes, losses, likelihoods and sampling on a GPU that is not there,
with the CPU's values.

Left out: tokenizers (tokenizer/test_devices.py), and CUDA graphs (sampling/test_decoder_cuda.py).
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prior import Prior, PriorConfig
from prior.checks import UNCONDITIONAL
from prior.patterns import PATTERNS
from prior.sampling import weights
from prior.sampling.decoder_cuda import StaticDecoder
from tests.helpers.gpu import on_gpu, pretended_gpu, values_of
from tests.helpers.priors import SOUND, random_codes, random_prior

# In every pattern; no dropout, whose noise is not that of a CPU.
SMALL = dataclasses.replace(SOUND, num_codebooks=2, grid=(3,), depth=1, dropout=0.0)
CONFIGS = [dataclasses.replace(SMALL, pattern=pattern) for pattern in sorted(PATTERNS)]
PLAIN = dataclasses.replace(SMALL, rotary="sequence", qk_norm=False, target_embedding=False)
# The one whose steps hold gaps, and the one with a transformer of its own; a prefix goes the usual way.
WITH_FIXED_SHAPES = {"delay", "depth"}
LABELS = [0, UNCONDITIONAL, 2]


def same(found: Any, expected: Any) -> None:
    """What was computed there is what is computed here."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, check_stride=False)


def learnt(prior: Prior, codes: Tensor, labels: Tensor) -> tuple[Any, ...]:
    """A forward and a backward pass, and likelihoods."""
    output = prior(codes, labels)
    output.losses["nll"].backward()
    grads = {name: p.grad for name, p in prior.named_parameters()}
    return output, grads, prior.nll(codes, "dog"), prior.likelihood(codes, LABELS)


@pytest.mark.parametrize("config", [*CONFIGS, PLAIN], ids=lambda config: f"{config.pattern}-{config.rotary}")
def test_passes_and_likelihoods(config: PriorConfig) -> None:
    config = dataclasses.replace(config, grid=(2, 2))
    here, codes, labels = random_prior(config).float(), random_codes(config), torch.tensor(LABELS)
    here.checkpoint_activations()
    there = copy.deepcopy(here)
    expected = learnt(here, codes, labels)
    with pretended_gpu() as gpu:
        gpu.module(there)
        codes, labels = gpu.tensor(codes), gpu.tensor(labels)
        output = learnt(there, codes, labels)
        steps = there.inputs(there.pattern.to_sequence(codes)[:, :-1], labels)
        assert on_gpu(output, there.by_codebook(there.hidden(steps, dropout=0.5), codes, dropout=0.5))
        found = values_of(output)
    same(found, expected)


def in_parts(prior: Prior, codes: Tensor) -> list[Tensor]:
    """Samples that take all of sampling: a prefix at once, steps, every filter, guidance, seeds of all forms,
    fixed codes between drawn ones, classes mixed, and windows."""
    mask = torch.zeros(prior.config.grid, dtype=torch.bool)
    mask[1:2] = True
    return [
        prior.sample(2, "cat", codes[:1, :, :1], top_k=3, top_p=0.9, cfg_scale=2.0, generator=0),
        prior.inpaint(codes, mask, LABELS, generator=[1, 2, 3], min_p=0.1),
        prior.interpolate("cat", "owl", 2, generator=4, temperature=0.5),
        prior.sample_long(1, 4, prefix=codes[:1], overlap=1, generator=torch.Generator().manual_seed(5)),
    ]


def compare_samples(make: Callable[[Prior], Prior], config: PriorConfig) -> None:
    """Samples of what is made of a prior, there and here."""
    here, codes = random_prior(config).float().eval(), random_codes(config)
    there, expected = copy.deepcopy(here), in_parts(here, codes)
    with pretended_gpu() as gpu:
        gpu.module(there)
        samples = in_parts(make(there), gpu.tensor(codes))
        assert on_gpu(samples)
        found = values_of(samples)
    same(found, expected)


@pytest.mark.parametrize("pattern", sorted(PATTERNS.keys() - WITH_FIXED_SHAPES))
def test_sampling(pattern: str) -> None:
    compare_samples(lambda prior: prior, dataclasses.replace(SMALL, pattern=pattern))


@pytest.mark.parametrize("pattern", sorted(WITH_FIXED_SHAPES))
def test_sampling_by_steps_of_fixed_shapes(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder for GPUs, of which torch.compile would make a graph."""
    monkeypatch.setattr(weights, "require_compiler", lambda *_: None)
    steps = list[StaticDecoder]()

    def as_it_is(step: Any, **options: Any) -> Any:
        steps.append(step.__self__)
        return step

    monkeypatch.setattr(torch, "compile", as_it_is)
    compare_samples(
        lambda prior: prior.for_sampling(compile=True), dataclasses.replace(SMALL, pattern=pattern)
    )
    assert [decoder.rows for decoder in steps] == [4, 2, 1]
