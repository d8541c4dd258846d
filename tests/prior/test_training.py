"""What makes a prior's training faster or smaller changes no result: norms, parts, checkpointing, compiling.

Left out: how fast or small, which `pipelines/benchmark.py prior` measures, and whole runs.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prior import Prior, PriorConfig, layers, likelihood
from prior.checks import require_compiler
from prior.layers import ByProducts, FewPasses, RMSNorm, attend
from prior.likelihood import in_parts, nats, nats_and_entropy
from tests.helpers.priors import PICTURE, SOUND, random_codes, random_prior
from tests.helpers.running import TINY_PRIOR, Script

DEPTH = dataclasses.replace(SOUND, num_codebooks=3, pattern="depth")


def gradients(prior: Prior, codes: Tensor) -> dict[str, Tensor]:
    prior.zero_grad()
    prior(codes, torch.tensor([1, -1, 0])).losses["nll"].backward()
    return {name: p.grad.clone() for name, p in prior.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("shape", [(3, 8), (2, 3, 5), (0, 4)])
def test_a_norm_in_few_passes_is_torchs(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape[-1], generator=generator, dtype=torch.float64, requires_grad=True)
    found = FewPasses.apply(x, weight, 0.01)
    torch.testing.assert_close(found, F.rms_norm(x, weight.shape, weight, 0.01))
    assert torch.autograd.gradcheck(lambda *args: FewPasses.apply(*args, 0.01), (x, weight))


def test_a_norm_takes_any_order_of_memory_and_keeps_low_precision() -> None:
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).transpose(1, 2).requires_grad_()
    norm = RMSNorm(4)
    norm(x).square().sum().backward()
    other = x.detach().contiguous().requires_grad_()
    F.rms_norm(other, (4,), norm.weight, 1e-6).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    assert norm.bfloat16()(x.detach().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("most", [1, 100, 1 << 22])
def test_attention_by_products_has_torchs_gradients(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MOST_SCORES", most)
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    q, k, v = (part.transpose(1, 2).requires_grad_() for part in parts)
    assert torch.equal(ByProducts.apply(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True))
    assert torch.autograd.gradcheck(ByProducts.apply, (q, k, v))


def test_attention_in_bfloat16_has_gradients_near_those_of_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, 40, 8, generator=generator) for _ in range(4)]
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v, grad = (part.to(dtype).requires_grad_() for part in parts)
        y = attend(q, k, v)
        assert ("ByProducts" in type(y.grad_fn).__name__) == (dtype == torch.bfloat16)
        found[dtype] = torch.autograd.grad(y, (q, k, v), grad)
    for ours, exact in zip(found[torch.bfloat16], found[torch.float32], strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("score", [nats, nats_and_entropy])
@pytest.mark.parametrize("most", [1, 5, 64, 1 << 20])
def test_scores_in_parts_are_those_of_the_whole(
    score: Callable[[Tensor, Tensor, Tensor], Tensor], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    heads = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(5, (2, 7), generator=generator)
    expected = score(hidden, heads, targets)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    wanted = torch.autograd.grad((weights * expected).sum(), (hidden, heads))
    monkeypatch.setattr(likelihood, "MOST_LOGITS", most)
    held: list[int] = []

    def counted(*args: Tensor) -> Tensor:
        held.append(args[0].shape[0] * args[0].shape[1] * 5)
        return score(*args)

    found = in_parts(counted, hidden, heads, targets)
    torch.testing.assert_close(found, expected)
    assert max(held) <= max(most, 5)  # a row at least
    for ours, theirs in zip(
        torch.autograd.grad((weights * found).sum(), (hidden, heads)), wanted, strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(in_parts(score, hidden, heads, targets), expected.detach())


@pytest.mark.parametrize("config", [PICTURE, DEPTH])
def test_a_prior_scored_in_parts_is_the_same(config: PriorConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    prior, codes = random_prior(dataclasses.replace(config, dropout=0.0)), random_codes(config)
    expected, whole = gradients(prior, codes), prior.likelihood(codes, 1)
    monkeypatch.setattr(likelihood, "MOST_LOGITS", 20)
    for name, gradient in gradients(prior, codes).items():
        torch.testing.assert_close(gradient, expected.pop(name))
    assert not expected
    for ours, theirs in zip(prior.likelihood(codes, 1), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("config", [PICTURE, DEPTH])
def test_activation_checkpointing_keeps_less_and_gives_the_same(config: PriorConfig) -> None:
    # With dropout: what is computed once more must drop the same.
    prior, codes = random_prior(config), random_codes(config)
    kept: dict[bool, list[int]] = {False: [], True: []}
    found = {}
    for flag in (False, True):

        def note(x: Tensor, sizes: list[int] = kept[flag]) -> Tensor:
            sizes.append(x.numel())
            return x

        if flag:
            prior.checkpoint_activations()
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            found[flag] = gradients(prior, codes)
    assert found[False].keys() == found[True].keys()
    for name, gradient in found[True].items():
        assert torch.equal(gradient, found[False][name])
    # Of the blocks their inputs; what is before and after them is kept as it was.
    assert prior.config.dropout and sum(kept[True]) < 0.5 * sum(kept[False])


# What dynamo does: it looks at the gradients of activations, and makes functions of autograd.
@pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore:.*should not be instantiated")
# bfloat16 alone has attention by products, whose loops depend on shapes: there where blocks have several.
@pytest.mark.parametrize(("config", "bf16", "off"), [(PICTURE, False, 1e-5), (DEPTH, True, 0.03)])
def test_compiled_blocks_give_the_same(config: PriorConfig, bf16: bool, off: float) -> None:
    config = dataclasses.replace(config, dropout=0.0)
    prior, codes = random_prior(config).float(), random_codes(config)
    names = list(prior.state_dict())
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        expected = gradients(prior, codes)
        prior.compile_blocks("aot_eager")
        found = gradients(prior, codes)
    assert found.keys() == expected.keys() and list(prior.state_dict()) == names
    for name, gradient in found.items():
        assert (gradient - expected[name]).norm() <= off * expected[name].norm(), name


def test_flags_of_the_script_reach_the_prior(
    script: Script, tiny_tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Prior] = []
    monkeypatch.setattr(Prior, "compile_blocks", lambda prior: seen.append(prior))
    words = ("--tokens", tiny_tokens, "--output", tmp_path / "p", "--max-steps", 1, "--tracker", "none")
    script("train_prior", "small", *TINY_PRIOR, *words, "--compile", "--activation-checkpointing")
    assert [prior.blocks.checkpointing for prior in seen] == [True]


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()
    monkeypatch.setattr(shutil, "which", asked.append)
    with pytest.raises(ValueError, match=r"CPU needs a C\+\+ compiler; install g\+\+, .* --compile"):
        Prior(PICTURE).compile_blocks()
    with pytest.raises(ValueError, match=r"GPU needs a C compiler; install gcc, .* --compile"):
        Prior(PICTURE).to("meta").compile_blocks()  # as on any device but a CPU
    with pytest.raises(ValueError, match=r"GPU needs a C compiler; install gcc, .* compile"):
        require_compiler("cuda", "compile")
    assert asked == ["g++", "gcc", "clang", "gcc", "clang"]
    monkeypatch.setenv("CC", "my-cc")
    with pytest.raises(ValueError, match="install gcc"):
        require_compiler("cuda", "compile")
    assert asked[-1] == "my-cc"
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    require_compiler("cuda", "compile")
    Prior(PICTURE).compile_blocks("aot_eager")  # which needs none


@pytest.mark.parametrize("pattern", ["delay", "flatten", "depth"])
def test_gradients_do_not_depend_on_which_thread_is_first(pattern: str) -> None:
    """At a size that several threads share, as those of a real run are."""
    config = PriorConfig(64, num_codebooks=6, grid=(50,), pattern=pattern, dim=64, depth=1, heads=2)
    prior, codes = random_prior(config).eval(), random_codes(config, 8)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = [gradients_of(prior, codes) for _ in range(6)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for found in others for a, b in zip(found, first, strict=True))


def gradients_of(prior: Prior, codes: Tensor) -> list[Tensor]:
    prior.zero_grad()
    prior(codes).losses["nll"].backward()
    return [p.grad.clone() for p in prior.parameters() if p.grad is not None]
