"""The compiled decoder: what whole passes give, and to the bit the same however many are drawn at once."""

import functools
import re
import threading
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from prior import PriorConfig
from prior.sampling.cpu import products as numba_products
from prior.sampling.cpu.decoder import CompiledDecoder
from prior.sampling.cpu.kernels import step_kernel
from prior.sampling.cpu.layout import Panels
from prior.sampling.cpu.products import installed, product_kernel, tile_kernel
from prior.sampling.weights import WEIGHTS, PreparedWeights
from tests.helpers.decoders import CONFIG, DEPTH, VARIANTS, both_logits, codes_of, random_prior
from tokenizer.installation import install_extra

needs_numba = pytest.mark.skipif(not installed(), reason="numba is not installed")


@needs_numba
@pytest.mark.parametrize("config", [*VARIANTS, DEPTH])
@pytest.mark.parametrize("first", [1, 4])
@pytest.mark.parametrize("batch", [1, 11])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("weights", "off"), [("full", 1e-5), ("bf16", 0.05), ("int8", 0.05)])
def test_compiled_steps_give_what_whole_passes_give(
    config: PriorConfig, first: int, batch: int, threads: int, weights: str, off: float
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, whole = both_logits(random_prior(config), weights, batch, first, CompiledDecoder)
    finally:
        torch.set_num_threads(before)
    error = (ours - whole).std() / whole.std()
    assert error < off
    assert weights == "full" or error > 1e-4


@needs_numba
def test_threads_end_when_drawing_stops_early() -> None:
    prior = random_prior()
    x = torch.zeros(1, 1, CONFIG.dim)
    before = threading.active_count()
    with (
        pytest.raises(KeyboardInterrupt),
        CompiledDecoder(prior, PreparedWeights(prior, "full", True), 1, 9) as decoder,
    ):
        decoder.advance(x)
        raise KeyboardInterrupt
    assert threading.active_count() == before


def as_on_another_processor(monkeypatch: pytest.MonkeyPatch, wide: int, rows: tuple[int, ...]) -> None:
    """Kernels made from now on are for vectors of `wide` numbers and tiles of so many rows, and are not kept:
    to make those of this processor again takes seconds."""
    monkeypatch.setattr(numba_products, "lanes", lambda: wide)
    monkeypatch.setattr(numba_products, "tile_rows", lambda: rows)
    monkeypatch.setattr("prior.sampling.cpu.kernels.lanes", lambda: wide)
    monkeypatch.setattr("prior.sampling.cpu.layout.lanes", lambda: wide)
    monkeypatch.setattr(numba_products, "tile_kernel", functools.cache(tile_kernel.__wrapped__))
    monkeypatch.setattr("prior.sampling.cpu.kernels.product_kernel", product_kernel.__wrapped__)
    monkeypatch.setattr("prior.sampling.cpu.decoder.step_kernel", step_kernel.__wrapped__)


@needs_numba
@pytest.mark.parametrize(
    ("wide", "rows", "weights"),
    [(8, (4, 2, 1), "full"), (4, (8, 4, 2, 1), "full"), (8, (4, 2, 1), "bf16"), (4, (4, 2, 1), "int8")],
)
def test_products_by_vectors_of_other_processors_are_exact(
    wide: int, rows: tuple[int, ...], weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_another_processor(monkeypatch, wide, rows)
    generator = torch.Generator().manual_seed(0)
    matrix = Panels(torch.randn(40, 21, generator=generator), weights)
    x = torch.randn(23, 21, generator=generator)  # tiles of 8, 4, 2 and 1 rows
    products, skipped = product_kernel.__wrapped__(weights), 1
    panels, _, wanted = matrix.numbers.shape
    y = torch.zeros(len(x), (panels - skipped) * wanted)
    addresses = matrix.numbers.data_ptr(), matrix.scale.data_ptr()
    products(*addresses, matrix.inputs, skipped, panels, x.numpy(), y.numpy())
    whole = rearrange(matrix.numbers.double(), "panels k out -> (panels out) k")
    if weights == "int8":
        whole *= matrix.scale.double()[:, None]
    expected = x.double() @ whole[skipped * wanted :].T
    torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)


@needs_numba
def test_steps_by_vectors_of_other_processors_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = random_prior()
    ours, _ = both_logits(prior, "int8", 7, 3, CompiledDecoder)
    as_on_another_processor(monkeypatch, 4, (4, 2, 1))
    others, _ = both_logits(prior, "int8", 7, 3, CompiledDecoder)
    # Sums take their terms in the same order, but attention and norms do not.
    torch.testing.assert_close(others, ours, atol=1e-4, rtol=1e-4)


@needs_numba
@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.parametrize("weights", WEIGHTS)
@torch.no_grad()
def test_logits_do_not_depend_on_how_many_are_drawn_or_on_the_prefix(
    config: PriorConfig, weights: Any
) -> None:
    prior, batch = random_prior(config), 13
    prepared = PreparedWeights(prior, weights, compiled=True)
    sequence = prior.pattern.to_sequence(codes_of(config, batch))
    x = prior.inputs(sequence[:, :-1], torch.zeros(batch, dtype=torch.int64))

    def hidden(inputs: Tensor, first: int) -> Tensor:
        """The last hidden layer of all steps from `first` - 1 on, the steps before in one."""
        parts = [inputs[:, :first], *inputs[:, first:].split(1, dim=1)]
        with CompiledDecoder(prior, prepared, len(inputs), inputs.shape[1]) as decoder:
            return torch.stack([decoder.advance(part).clone() for part in parts], dim=1)

    whole = hidden(x, 1)
    for start, stop in [(0, 1), (1, 3), (3, 13)]:
        assert torch.equal(hidden(x[start:stop], 1), whole[start:stop])
    assert torch.equal(hidden(x[2:9], 4), whole[2:9, 3:])


@needs_numba
@pytest.mark.parametrize("weights", WEIGHTS)
def test_codes_do_not_depend_on_how_many_are_drawn(weights: Any) -> None:
    fast = random_prior().for_sampling(weights, compile=True)

    def drawn(seeds: range) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return fast.sample(len(seeds), 1, generator=generators, cfg_scale=1.5)

    whole = drawn(range(9))
    assert torch.equal(torch.cat([drawn(range(4)), drawn(range(4, 5)), drawn(range(5, 9))]), whole)


@needs_numba
def test_the_compiled_loops_draw_what_others_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = random_prior()
    plain = prior.sample(3, 1, generator=torch.Generator().manual_seed(0))
    steps: list[int] = []
    advance = CompiledDecoder.advance

    def counted(decoder: CompiledDecoder, x: Tensor) -> Tensor:
        steps.append(1)
        return advance(decoder, x)

    monkeypatch.setattr(CompiledDecoder, "advance", counted)
    fast = prior.for_sampling(compile=True)
    assert torch.equal(fast.sample(3, 1, generator=torch.Generator().manual_seed(0)), plain)
    assert len(steps) == 16
    prior.double().for_sampling(compile=True).sample(1)  # which they are not for
    assert len(steps) == 16


@needs_numba
def test_torch_has_its_threads_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        random_prior().for_sampling(compile=True).sample(1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_compiled_loops_without_numba_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prior.sampling.weights.installed", lambda: False)
    with pytest.raises(ValueError, match="compile: .*numba.*" + re.escape(install_extra("fast"))):
        random_prior().for_sampling(compile=True)
