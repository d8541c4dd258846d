"""The prior: exact likelihoods, causality, cached sampling, guidance, saving, and what it refuses.

Left out: training runs, which the scripts' tests cover.
"""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prior import Prior, PriorConfig
from prior.decoder import Decoder
from prior.patterns import PATTERNS
from prior.sampling import draw, probabilities

PICTURE = PriorConfig(
    codebook_size=5,
    grid=(3, 4),
    class_names=("cat", "dog", "owl"),
    dim=16,
    depth=2,
    heads=2,
    ffn=2.0,
    dropout=0.5,
)
SOUND = dataclasses.replace(PICTURE, num_codebooks=2, grid=(6,), rope_theta=10000.0)
# Of several codebooks, in every pattern.
ALL = [
    dataclasses.replace(config, num_codebooks=3, pattern=pattern)
    for config in (PICTURE, SOUND)
    for pattern in sorted(PATTERNS)
]


def random_prior(config: PriorConfig, seed: int = 0, scale: float = 0.3) -> Prior:
    """A float64 prior in training mode with random weights everywhere, the zero-initialised ones included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prior = Prior(config).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return prior


def random_codes(config: PriorConfig, batch: int = 3, seed: int = 0) -> Tensor:
    shape = (batch, config.num_codebooks, *config.grid)
    return torch.randint(config.codebook_size, shape, generator=torch.Generator().manual_seed(seed))


def step_logits(prior: Prior, codes: Tensor, label: Tensor) -> Tensor:
    """Logits (B, K, P, N) of a full pass without a cache, from the parts of the model."""
    rows = torch.where(label < 0, len(prior.config.class_names), label)
    sequence = prior.pattern.to_sequence(codes)
    start = prior.class_embedding(rows)[:, None]
    hidden = prior.hidden(torch.cat([start, prior.embed(sequence[:, :-1], 0)], dim=1))
    if prior.inner is None:
        return torch.einsum("bkpd,knd->bkpn", hidden[:, prior.pattern.step], prior.head).detach()
    flat = codes.flatten(2)
    found = [prior.inner(hidden[:, p], flat[:, :, p]) for p in range(flat.shape[2])]
    return torch.einsum("bpkd,knd->bkpn", torch.stack(found, dim=1), prior.head).detach()


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
    assert sum(p.numel() for p in Prior(config).parameters()) == config.num_parameters


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


def test_samples_have_the_frequencies_that_nll_says() -> None:
    config = dataclasses.replace(PICTURE, codebook_size=3, grid=(1, 2))
    prior = random_prior(config, seed=3)
    every = torch.tensor(list(itertools.product(range(3), repeat=2)))
    count = 20000
    expected = count * torch.exp(-prior.nll(every.view(-1, 1, 1, 2), "dog"))
    codes = prior.sample(count, "dog", generator=torch.Generator().manual_seed(0)).flatten(1)
    found = (codes @ torch.tensor([3, 1])).bincount(minlength=9)
    assert ((found - expected) ** 2 / expected).sum() < 26.1  # chi-square, 8 degrees of freedom, p = 0.001
    swapped = expected.view(3, 3).T.flatten()
    assert ((found - swapped) ** 2 / swapped).sum() > 100


def uncached(prior: Prior, label: Tensor, uniform: Tensor, cfg_scale: float = 1.0, **options: Any) -> Tensor:
    """Sampling as slow and as plain as it can be: a full pass over all codes for every code."""
    config = prior.config
    codes = torch.zeros((len(label), config.num_codebooks, *config.grid), dtype=torch.int64)
    for step, held in enumerate(prior.pattern.layout()):
        for q, (book, position) in enumerate(held):
            if position >= 0:
                logits = step_logits(prior, codes, label)
                if cfg_scale != 1:
                    other = step_logits(prior, codes, torch.full_like(label, -1))
                    logits = other + cfg_scale * (logits - other)
                chosen = draw(probabilities(logits[:, book, position], **options), uniform[:, step, q])
                codes.view(len(label), config.num_codebooks, -1)[:, book, position] = chosen
    return codes


@pytest.mark.parametrize("config", [PICTURE, SOUND])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 3}, {"top_p": 0.8}, {"cfg_scale": 2.5}],
)
@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_cached_sampling_equals_uncached(config: PriorConfig, options: dict[str, Any], pattern: str) -> None:
    prior = random_prior(dataclasses.replace(config, pattern=pattern))
    label = torch.tensor([0, 2, 1, -1])
    codes = prior.sample(4, label, generator=torch.Generator().manual_seed(5), **options)
    shape = (4, prior.pattern.num_steps, prior.pattern.width)
    uniform = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    assert codes.dtype == torch.int64 and codes.unique().numel() > 1
    assert torch.equal(codes, uncached(prior, label, uniform, **options))
    assert prior.training  # sampling leaves the mode alone, and its dropout of 0.5 never acts


def test_greedy_sampling_takes_the_most_likely_code() -> None:
    prior = random_prior(PICTURE)
    greedy = prior.sample(3, [0, 1, 2], temperature=0)
    assert torch.equal(prior.sample(3, [0, 1, 2], top_k=1), greedy)
    logits = step_logits(prior, greedy, torch.tensor([0, 1, 2]))
    assert torch.equal(logits.argmax(dim=-1).view_as(greedy), greedy)


def test_a_seed_decides_the_samples_whatever_the_form_of_the_label() -> None:
    prior = random_prior(PICTURE)

    def sample(label: Any, seed: int = 7, **options: Any) -> Tensor:
        return prior.sample(4, label, generator=torch.Generator().manual_seed(seed), **options)

    owl = sample("owl")
    for label in (2, ["owl"] * 4, ["owl", 2, 2, "owl"], torch.tensor(2), torch.tensor([2] * 4)):
        assert torch.equal(sample(label), owl)
    assert torch.equal(sample("owl", cfg_scale=1.0, temperature=1.0, top_k=5, top_p=1.0), owl)
    assert torch.equal(sample(None), sample(-1))
    assert not torch.equal(sample("owl", seed=8), owl)
    assert not torch.equal(sample("cat"), owl)
    assert torch.equal(sample("owl", cfg_scale=0.0), sample(None))


def test_without_label_dropout_there_is_nothing_to_guide_away_from() -> None:
    prior, codes = random_prior(dataclasses.replace(PICTURE, unconditional=False)), random_codes(PICTURE)
    expected = random_prior(PICTURE).sample(3, "cat", generator=torch.Generator().manual_seed(0))
    assert torch.equal(prior.sample(3, "cat", generator=torch.Generator().manual_seed(0)), expected)
    mask = torch.ones(3, 4, dtype=torch.bool)
    for call, what in (
        (lambda: prior.sample(3, "cat", cfg_scale=2.0), "cfg_scale=2.0"),
        (lambda: prior.sample(3), "sampling without a label"),
        (lambda: prior.sample(3, ["cat", "dog", -1]), "sampling without a label"),
        (lambda: prior.inpaint(codes, mask), "sampling without a label"),
    ):
        with pytest.raises(ValueError, match=f"{what} needs p.codes. .* label dropout"):
            call()


def test_guidance_makes_its_class_likelier() -> None:
    prior = random_prior(PICTURE)

    def advantage(cfg_scale: float) -> float:
        codes = prior.sample(200, "dog", cfg_scale=cfg_scale, generator=torch.Generator().manual_seed(0))
        return (prior.nll(codes) - prior.nll(codes, "dog")).mean().item()

    assert advantage(1.0) > 0
    assert advantage(3.0) > 1.5 * advantage(1.0)


@pytest.mark.parametrize("config", [PICTURE, SOUND, *ALL])
def test_a_prefix_stays_and_the_rest_goes_on_from_it(config: PriorConfig) -> None:
    prior = random_prior(config)

    def sample(prefix: Tensor | None) -> Tensor:
        return prior.sample(3, 1, prefix, generator=torch.Generator().manual_seed(1))

    whole = sample(None)
    for rows in range(config.grid[0] + 1):
        # The same uniform numbers after the same beginning give the same end.
        assert torch.equal(sample(whole[:, :, :rows]), whole)
    other = random_codes(config, 1, seed=9)[:, :, :2]
    continued = sample(other)
    assert torch.equal(continued[:, :, :2], other.expand(3, *other.shape[1:]))
    assert not torch.equal(continued[:, :, 2:], whole[:, :, 2:])


@pytest.mark.parametrize("config", [PICTURE, SOUND, *ALL])
def test_a_beginning_alone_is_that_of_the_whole(config: PriorConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = random_prior(config)
    passes: list[int] = []
    advance = Decoder.advance

    def counted(decoder: Decoder, x: Tensor) -> Tensor:
        passes.append(1)
        return advance(decoder, x)

    monkeypatch.setattr(Decoder, "advance", counted)

    def sample(prefix: Tensor | None = None, size: int | None = None) -> Tensor:
        passes.clear()
        generator = torch.Generator().manual_seed(1)
        return prior.sample(3, 1, prefix, cfg_scale=2.0, size=size, generator=generator)

    whole = sample()
    assert len(passes) == prior.pattern.num_steps
    for size in range(1, config.grid[0] + 1):
        beginning = sample(size=size)
        assert torch.equal(beginning, whole[:, :, :size])
        # Up to the last step that holds one of its codes, and no further.
        assert len(passes) == 1 + prior.pattern.step.view(-1, *config.grid)[:, :size].max()
        for rows in range(size + 1):
            assert torch.equal(sample(whole[:, :, :rows], size), whole[:, :, :size])
            assert rows < size or not passes


def test_a_generator_for_each_example_makes_it_independent_of_the_others() -> None:
    prior = random_prior(SOUND)

    def sample(*seeds: int) -> Tensor:
        return prior.sample(len(seeds), 1, generator=[torch.Generator().manual_seed(s) for s in seeds])

    together = sample(5, 6, 7)
    assert torch.equal(together, torch.cat([sample(5), sample(6), sample(7)]))
    assert torch.equal(sample(7, 5), together[[2, 0]]) and not torch.equal(together[0], together[1])
    one = prior.sample(1, 1, generator=torch.Generator().manual_seed(5))
    assert torch.equal(together[:1], one)


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
    for _ in range(60):
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
    compile(Prior(config).card_fields()["usage"], "usage", "exec")


def test_codes_of_another_tokenizer_are_refused() -> None:
    prior = Prior(dataclasses.replace(PICTURE, tokenizer_id="user/tok", tokenizer_fingerprint="abc"))
    prior.check_tokenizer("abc")
    with pytest.raises(ValueError, match=r"abc.*user/tok.*xyz"):
        prior.check_tokenizer("xyz")
    with pytest.raises(ValueError, match=r"not recorded.*xyz"):
        Prior(PICTURE).check_tokenizer("xyz")


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (
            torch.zeros(2, 1, 3, 3, dtype=torch.int64),
            r"codes: expected int64 of shape \(B, 1, 3, 4\), got .*3, 3",
        ),
        (torch.zeros(2, 3, 4, dtype=torch.int64), r"codes: expected int64 of shape \(B, 1, 3, 4\)"),
        (torch.zeros(2, 1, 3, 4), r"got torch.float32"),
        (torch.full((2, 1, 3, 4), 5), r"codes: expected 0 to 4, got 5 to 5"),
        (torch.full((2, 1, 3, 4), -1), r"codes: expected 0 to 4, got -1 to -1"),
    ],
)
def test_bad_codes_are_refused(codes: Tensor, message: str) -> None:
    prior = Prior(PICTURE)
    for call in (prior, prior.nll):
        with pytest.raises(ValueError, match=message):
            call(codes)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("frog", "unknown class 'frog'; known: cat, dog, owl"),
        (["cat", "frog"], "unknown class 'frog'"),
        (3, r"expected -1 \(unconditional\) to 2, got 3"),
        (-2, "got -2"),
        (["cat"], "expected one for all or 2 of them, got 1"),
        (torch.tensor([0, 3]), "expected -1 .* to 2, got 0 to 3"),
        (torch.tensor([0, 1, 2]), "expected one for all or 2 of them, got 3"),
        (torch.tensor([0.0, 1.0]), "expected int64 .*, got torch.float32"),
        (torch.tensor([[0, 1]]), r"got torch.int64 of \(1, 2\)"),
    ],
)
def test_bad_labels_are_refused(label: Any, message: str) -> None:
    prior, codes = Prior(PICTURE), random_codes(PICTURE, 2)
    for call in (
        lambda: prior.sample(2, label),
        lambda: prior.nll(codes, label),
        lambda: prior(codes, label),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_labels_by_name_and_number() -> None:
    prior = Prior(PICTURE)
    assert [prior.label_index(x) for x in ("cat", "owl", 1, -1)] == [0, 2, 1, -1]
    with pytest.raises(ValueError, match="known: none, this prior has no classes"):
        Prior(dataclasses.replace(PICTURE, class_names=())).sample(1, "cat")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ({"temperature": -1.0}, "temperature: expected"),
        ({"top_k": 6}, r"top_k: expected 1 to 5"),
        ({"top_p": 0.0}, "top_p: expected"),
        ({"min_p": 1.5}, "min_p: expected"),
        ({"cfg_schedule": "steep"}, "cfg_schedule: unknown 'steep'; known: constant, linear, cosine"),
        ({"cfg_scale": 2.0}, "needs a label"),
        ({"cfg_scale": 2.0, "label": -1}, "needs a label"),
        ({"prefix": torch.full((1, 1, 1, 4), 5)}, "prefix: expected 0 to 4, got 5 to 5"),
        (
            {"prefix": torch.zeros(1, 1, 4, 4, dtype=torch.int64)},
            "prefix: expected at most 3 rows or frames, got 4",
        ),
        (
            {"prefix": torch.zeros(1, 1, 1, 3, dtype=torch.int64)},
            r"prefix: expected int64 of shape \(B, 1, 1, 4\)",
        ),
        ({"prefix": torch.zeros(1, 4, dtype=torch.int64)}, r"prefix: expected int64 of shape"),
        ({"prefix": torch.zeros(1, 1, 1, 4)}, r"got torch.float32"),
        ({"prefix": torch.zeros(3, 1, 1, 4, dtype=torch.int64)}, "prefix: expected 1 or 2 examples, got 3"),
        ({"size": 0}, "size: expected 1 to 3 rows or frames, got 0"),
        ({"size": 4}, "size: expected 1 to 3 rows or frames, got 4"),
        (
            {"size": 1, "prefix": torch.zeros(1, 1, 2, 4, dtype=torch.int64)},
            r"size: expected 2 \(the prefix's\) to 3 rows or frames, got 1",
        ),
        ({"generator": [torch.Generator()]}, "generator: expected one for all or 2 of them, got 1"),
    ],
)
def test_bad_options_of_sampling_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prior(PICTURE).sample(**{"batch_size": 2, **options})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 1}, "codebook_size: expected 2 to"),
        ({"codebook_size": 1 << 40}, "codebook_size: expected 2 to"),
        ({"num_codebooks": 0}, "num_codebooks"),
        ({"grid": ()}, "grid: expected a tuple of 1 to 3 sizes"),
        ({"grid": [8, 8]}, "grid: expected a tuple"),
        ({"grid": (8, 0)}, r"grid\[1\]: expected 1 to 65536, got 0"),
        ({"grid": (60000, 60000)}, "codes per example"),
        ({"class_names": ("a", "a")}, "class_names"),
        ({"class_names": ("",)}, "class_names"),
        ({"class_names": (), "unconditional": False}, "unconditional: expected true"),
        ({"dim": 18}, "dim: expected a multiple of heads × 4 = 8"),
        ({"dim": 10**9}, "dim: expected"),
        ({"heads": 0}, "heads: expected"),
        ({"depth": 10**9}, "depth: expected"),
        ({"ffn": math.nan}, "ffn: expected"),
        ({"dropout": 1.0}, r"dropout: expected a share in \[0, 1\), got 1.0"),
        ({"pattern": "spiral"}, "pattern: unknown 'spiral'; known: .*flatten"),
        ({"rope_theta": 0.0}, "rope_theta: expected"),
        ({"rotary": "spiral"}, "rotary: expected grid or sequence, got 'spiral'"),
        (
            {"rotary": "sequence", "dim": 18, "heads": 6},
            "a multiple of heads × 2 = 12 .*positions",
        ),
        ({"dim": 1 << 15, "heads": 64, "depth": 512}, "number of parameters"),
    ],
)
def test_bad_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PICTURE, **changes)
