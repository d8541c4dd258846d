"""A prior as a Llama of transformers: the same logits and samples, and errors where it cannot be one.

Left out: transformers itself.
"""

import builtins
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.presets import PRIORS
from pipelines.tokens.info import TokenInfo
from pipelines.train_prior import prior_config
from prior import Prior, PriorConfig
from prior.network import num_parameters
from tests.helpers.priors import PICTURE, SOUND, random_codes, random_prior, step_logits
from tokenizer.installation import PIP_INSTALL

LLAMA: dict[str, Any] = {"rotary": "sequence", "qk_norm": False, "target_embedding": False}
CONFIGS = [
    dataclasses.replace(PICTURE, **LLAMA),
    dataclasses.replace(SOUND, **LLAMA, rope_theta=10000.0),
    dataclasses.replace(SOUND, **{**LLAMA, "rotary": "grid"}, num_codebooks=1, pattern="delay"),
]


def tokens(prior: Prior, codes: Tensor, label: Tensor) -> Tensor:
    """The Llama's input: the class, then all codes but the last, with those of later codebooks shifted."""
    config = prior.config
    sequence = prior.pattern.to_sequence(codes)[..., 0] + prior.pattern.codebook[:, 0] * config.codebook_size
    classes = torch.where(label < 0, len(config.class_names), label)
    first = config.num_codebooks * config.codebook_size + classes
    return torch.cat([first[:, None], sequence[:, :-1]], dim=1)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 2e-6), (torch.float32, 1e-5)])
def test_logits_are_the_same(config: PriorConfig, dtype: torch.dtype, close: float) -> None:
    prior = random_prior(config, scale=0.1).to(dtype)
    codes, label = random_codes(config), torch.tensor([1, -1, 2])
    llama = prior.to_transformers()
    assert type(llama).__name__ == "LlamaForCausalLM" and not llama.training
    with torch.no_grad():
        found = llama(tokens(prior, codes, label)).logits
    assert found.dtype == dtype
    expected = step_logits(prior, codes, label)  # (B, K, P, N)
    for step, ((book, position),) in enumerate(prior.pattern.layout()):
        part = found[:, step, book * config.codebook_size : (book + 1) * config.codebook_size]
        torch.testing.assert_close(part, expected[:, book, position], rtol=close, atol=close)
    assert expected.std() > 0.05
    assert (found[..., config.num_codebooks * config.codebook_size :] == 0).all()


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_are_counted_before_they_are_allocated(config: PriorConfig) -> None:
    assert sum(p.numel() for p in Prior(config).parameters()) == num_parameters(config)


@pytest.mark.parametrize(("grid", "num_codebooks"), [((8, 8), 1), ((75,), 6)])
def test_the_preset_llama_makes_one(grid: tuple[int, ...], num_codebooks: int) -> None:
    info = TokenInfo("tok", "abc", 32, num_codebooks, grid, (3, 32, 32), class_names=("a", "b"))
    config = prior_config(PRIORS["llama"].build(), info)
    assert config.rope_theta == 10000.0 and config.num_codes == math.prod(grid) * num_codebooks
    llama = Prior(config).to_transformers()
    assert llama.config.vocab_size == 32 * num_codebooks + 3


def test_it_generates_what_the_prior_does() -> None:
    prior = random_prior(CONFIGS[0])
    llama = prior.to_transformers()
    begin = torch.tensor([[5 + 1]])  # the class "dog" after 5 codes
    ids = llama.generate(begin, do_sample=False, max_new_tokens=12, suppress_tokens=[5, 6, 7, 8])
    assert torch.equal(ids[:, 1:].view(1, 1, 3, 4), prior.sample(1, "dog", temperature=0))


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (
            PICTURE,
            {},
            ("rotary positions of several axes", "normalised queries", "embeddings of what", "llama"),
        ),
        (PICTURE, {"rotary": "sequence", "qk_norm": False}, ("target_embedding",)),
        (SOUND, {**LLAMA, "pattern": "delay"}, ("several codes per step", "pattern flatten")),
        (SOUND, {**LLAMA, "rotary": "grid"}, ("rotary positions of frames", "rotary sequence")),
    ],
)
def test_what_llama_lacks_is_named(
    config: PriorConfig, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match="Llama") as caught:
        Prior(dataclasses.replace(config, **changes)).to_transformers()
    assert all(word in str(caught.value) for word in words)


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any) -> Any:
        if name == "transformers":
            raise ImportError("No module named 'transformers'")
        return real(name, *arguments)

    prior = Prior(CONFIGS[0])
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=f"{PIP_INSTALL} transformers"):
        prior.to_transformers()
