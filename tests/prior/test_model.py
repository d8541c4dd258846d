"""The prior: exact likelihoods, causality, dropout, precision, learning and saving.

Left out: sampling (`prior/sampling/test_generate.py`), bad input (`test_bad_input.py`), and training runs,
which the scripts' tests cover.
"""

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch

from prior import Prior, PriorConfig
from prior.network import num_parameters
from prior.patterns import PATTERNS
from tests.helpers.priors import ALL, PICTURE, SOUND, random_codes, random_prior, step_logits


@pytest.mark.parametrize("config", [PICTURE, SOUND, *ALL])
def test_an_untrained_prior_is_uniform(config: PriorConfig) -> None:
    prior = Prior(config)
    out = prior(random_codes(config), torch.tensor([0, 2, -1]))
    nats = config.num_codes * math.log(5)
    torch.testing.assert_close(out.nll, torch.full((3,), nats), rtol=1e-6, atol=0)
    assert out.losses["nll"].item() == pytest.approx(math.log(5), rel=1e-6)
    assert out.stats["bits_per_code"].item() == pytest.approx(math.log2(5), rel=1e-6)
    out.losses["nll"].backward()
    assert prior.head.grad is not None and prior.head.grad.abs().max() > 0


@pytest.mark.parametrize(
    "config",
    [PICTURE, SOUND, *(dataclasses.replace(c, target_embedding=False, inner_dim=24) for c in ALL)],
)
def test_parameters_are_counted_before_they_are_allocated(config: PriorConfig) -> None:
    assert sum(p.numel() for p in Prior(config).parameters()) == num_parameters(config)


@pytest.mark.parametrize("config", [PICTURE, SOUND, *ALL])
def test_nll_is_the_sum_of_log_probabilities_of_steps(config: PriorConfig) -> None:
    prior, codes, label = random_prior(config), random_codes(config), torch.tensor([1, -1, 0])
    logprobs = step_logits(prior, codes, label).log_softmax(dim=-1)
    expected = -logprobs.gather(-1, codes.flatten(2)[..., None]).sum(dim=(1, 2, 3))
    assert expected.std() > 0.1
    torch.testing.assert_close(prior.nll(codes, label), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(prior.eval()(codes, label).nll.detach(), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(prior.nll(codes, [1, -1, "cat"]), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("config", [PICTURE, SOUND, *ALL])
def test_a_code_sees_only_what_is_before_it(config: PriorConfig) -> None:
    prior, codes, label = random_prior(config), random_codes(config, 1), torch.tensor([1])
    order, before = prior.pattern.order, step_logits(prior, codes, label)[0]
    for changed in order.unique().tolist():
        other = codes.clone().flatten(2)
        other[:, order == changed] = (other[:, order == changed] + 1) % config.codebook_size
        difference = (step_logits(prior, other.view(codes.shape), label)[0] - before).abs().amax(dim=-1)
        assert (difference[order <= changed] == 0).all()
        assert (difference[order > changed] > 1e-9).all()


@pytest.mark.parametrize("config", ALL)
def test_a_code_changes_all_codes_after_it_and_no_others(config: PriorConfig) -> None:
    prior, codes, label = random_prior(config), random_codes(config, 1), torch.tensor([1])
    order, before = prior.pattern.order, step_logits(prior, codes, label)[0]
    for book, position in [(0, 0), (1, 2), (2, 1), (2, codes.flatten(2).shape[2] - 1)]:
        other = codes.clone()
        other.view(3, -1)[book, position] = (other.view(3, -1)[book, position] + 1) % config.codebook_size
        difference = (step_logits(prior, other, label)[0] - before).abs().amax(dim=-1)
        assert torch.equal(difference > 1e-9, order > order[book, position])


@pytest.mark.parametrize("config", [PICTURE, SOUND, *ALL])
def test_the_likelihood_of_every_code_adds_up(config: PriorConfig) -> None:
    prior, codes, label = random_prior(config), random_codes(config), torch.tensor([1, -1, 0])
    found = prior.likelihood(codes, label)
    assert found.nats.shape == found.entropy.shape == codes.shape
    torch.testing.assert_close(found.nats.flatten(1).sum(1), prior.nll(codes, label), rtol=1e-10, atol=0)
    logprobs = step_logits(prior, codes, label).log_softmax(dim=-1)
    nats = -logprobs.gather(-1, codes.flatten(2)[..., None])[..., 0]
    torch.testing.assert_close(found.nats.flatten(2), nats)
    torch.testing.assert_close(found.entropy.flatten(2), -(logprobs.exp() * logprobs).sum(-1))


def test_one_codebook_gives_all_patterns_one_model() -> None:
    codes = random_codes(PICTURE)
    expected = random_prior(PICTURE).nll(codes, 1)
    for pattern in PATTERNS:
        found = random_prior(dataclasses.replace(PICTURE, pattern=pattern)).nll(codes, 1)
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("num_codebooks", "grid", "size"), [(1, (1, 2), 3), (1, (2, 2), 3), (2, (3,), 2)])
@pytest.mark.parametrize("label", [None, 1])
def test_probabilities_of_all_sequences_sum_to_one(
    num_codebooks: int, grid: tuple[int, ...], size: int, label: int | None
) -> None:
    for pattern in PATTERNS:
        config = dataclasses.replace(
            PICTURE, codebook_size=size, num_codebooks=num_codebooks, grid=grid, pattern=pattern
        )
        every = torch.tensor(list(itertools.product(range(size), repeat=config.num_codes)))
        p = torch.exp(-random_prior(config).nll(every.view(-1, num_codebooks, *grid), label))
        assert p.max() > 2 * p.min()
        assert p.sum().item() == pytest.approx(1, abs=1e-12)


def test_dropout_acts_in_training_only() -> None:
    prior, codes = random_prior(PICTURE), random_codes(PICTURE)
    torch.manual_seed(0)
    first, second = prior(codes).nll, prior(codes).nll
    assert not torch.equal(first, second)
    exact = prior.nll(codes)
    assert torch.equal(exact, prior.nll(codes)) and prior.training and not exact.requires_grad
    assert torch.equal(prior.eval()(codes).nll.detach(), exact)


def test_rotary_positions_tell_rows_from_columns() -> None:
    config = dataclasses.replace(PICTURE, grid=(4, 4))
    prior = random_prior(config)
    with torch.no_grad():
        prior.target_embedding.zero_()
    codes = random_codes(config, 1)
    before = prior.nll(codes)
    for axis in range(2):
        prior.pattern.coordinates[:, axis] += 5
        # The class stands at -1 on every axis, so a shift of all codes changes their distance to it.
        assert (prior.nll(codes) - before).abs() > 1e-6
        prior.pattern.coordinates[:, axis] -= 5
    assert torch.equal(prior.nll(codes), before)


def test_bf16_weights_keep_exact_positions_and_float32_likelihoods() -> None:
    prior = random_prior(PICTURE, scale=0.1)
    codes = random_codes(PICTURE)
    exact = prior.nll(codes, 1)
    rounded = prior.to(torch.bfloat16).nll(codes, 1)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact.float(), rtol=0.02, atol=0)
    assert prior.pattern.coordinates.dtype == torch.int64
    assert prior.sample(2, "cat", cfg_scale=2.0).shape == (2, 1, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        loss = Prior(PICTURE)(codes).losses["nll"]
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(math.log(5), rel=1e-5)


def test_it_learns_a_batch_by_heart() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(PICTURE, dim=32, dropout=0.0, codebook_size=16)
    prior, codes, label = Prior(config), random_codes(config, 8), torch.arange(8) % 4 - 1
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-2, betas=(0.9, 0.95))
    for _ in range(100):
        optimizer.zero_grad()
        loss = prior(codes, label).losses["nll"]
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in prior.parameters())


@pytest.mark.parametrize("config", [PICTURE, SOUND])
def test_save_and_load_bit_for_bit(config: PriorConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, tokenizer_id="user/tok", tokenizer_fingerprint="abc")
    prior = random_prior(config).float()
    prior.save_pretrained(tmp_path / "a")
    loaded = Prior.from_pretrained(tmp_path / "a")
    assert loaded.config == config and not loaded.training
    codes = random_codes(config)
    assert torch.equal(loaded.nll(codes, 2), prior.nll(codes, 2))
    assert torch.equal(
        loaded.sample(2, "owl", generator=torch.Generator().manual_seed(0)),
        prior.sample(2, "owl", generator=torch.Generator().manual_seed(0)),
    )
    loaded.save_pretrained(tmp_path / "b")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_card_names_the_tokenizer_and_the_use(tmp_path: Path) -> None:
    config = dataclasses.replace(PICTURE, tokenizer_id="user/tok", tokenizer_fingerprint="abc")
    card = (Prior(config).save_pretrained(tmp_path) / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: unconditional-image-generation" in card
    assert "user/tok" in card and "abc" in card and 'prior.sample(16, label="cat")' in card
    assert Prior(SOUND).card_fields()["pipeline_tag"] is None
    ships = dataclasses.replace(config, tokenizer_id="embedded:emoji")
    assert 'Tokenizer.from_pretrained("embedded:emoji")\n' in Prior(ships).card_fields()["usage"]
    compile(Prior(config).card_fields()["usage"], "usage", "exec")
