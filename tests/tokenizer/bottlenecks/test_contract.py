"""Bottlenecks: the contract that every registered one keeps.

Left out: accumulation and several processes (processes/test_bottlenecks.py), what single bottlenecks do
(test_vq.py, test_gaussian.py), the search (tokenizer/search/test_exact.py), and the networks around a
bottleneck (tokenizer/test_model.py).
"""

import functools
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.training.setup import put_back
from tests.helpers import tiny
from tests.helpers.tiny import VARIANTS, bottleneck_config, latents
from tokenizer.bottlenecks import Bottleneck, BottleneckConfig, kinds
from tokenizer.bottlenecks.gaussian import Gaussian
from tokenizer.checks import NotFinite
from tokenizer.distributed import Step
from tokenizer.variants import config_from_dict, config_to_dict

KINDS = [*sorted(kinds()), *VARIANTS]
GRIDS = [(5,), (3, 4)]
trained = tiny.made_once(tiny.trained)


def is_discrete(bottleneck: Bottleneck) -> bool:
    return bottleneck.num_codebooks > 0


def values_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in state.items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_the_two_systems_are_registered() -> None:
    assert {"vq", "gaussian"} <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_build_and_configs_survive_json(kind: str) -> None:
    config = bottleneck_config(kind)
    assert config_from_dict(BottleneckConfig, config_to_dict(config)) == config
    assert type(config)().build().in_dim >= 1


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_types_and_ranges(kind: str, grid: tuple[int, ...]) -> None:
    bottleneck = trained(kind)
    z = latents(bottleneck, 2, *grid, seed=99)
    for training in (True, False):
        out = bottleneck.train(training)(z, Step(0, 50, 0, 2))
        assert out.z_q.shape == (2, bottleneck.out_dim, *grid) and out.z_q.dtype == torch.float32
        for values in (out.losses, out.stats):
            for name, value in values.items():
                assert value.shape == () and torch.isfinite(value) and value.dtype == torch.float32, name
        assert not any(v.requires_grad for v in out.stats.values())
        if is_discrete(bottleneck):
            assert out.codes is not None and out.codes.dtype == torch.int64
            assert out.codes.shape == (2, bottleneck.num_codebooks, *grid)
            assert out.codes.min() >= 0 and out.codes.max() < bottleneck.codebook_size
        else:
            assert out.codes is None
    assert not set(out.losses) & {"l1", "l2"} and set(bottleneck.summed_losses) <= set(out.losses)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
def test_encode_and_decode_are_the_forward_pass_of_eval_mode(kind: str, grid: tuple[int, ...]) -> None:
    bottleneck = trained(kind).eval()
    z = latents(bottleneck, 4, *grid, seed=99)
    out = bottleneck(z)
    if not is_discrete(bottleneck):
        for call in (bottleneck.encode, bottleneck.decode):
            with pytest.raises(TypeError, match=r"posterior\(x\) .*decode_latents\(z\)"):
                call(z)
        return
    codes = bottleneck.encode(z)
    assert torch.equal(codes, out.codes) and codes.unique().numel() > 4
    assert torch.equal(bottleneck.decode(codes), out.z_q)
    other = bottleneck.decode((codes + 1) % bottleneck.codebook_size)
    assert not torch.equal(other, out.z_q)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_are_independent_and_grids_are_only_shapes(kind: str) -> None:
    bottleneck = trained(kind).eval()
    z = latents(bottleneck, 3, 4, 5, seed=99)
    whole = bottleneck(z).z_q
    line = bottleneck(rearrange(z, "b d h w -> b d (h w)")).z_q
    torch.testing.assert_close(rearrange(line, "b d (h w) -> b d h w", h=4), whole, rtol=0, atol=1e-6)
    turned = bottleneck(z.transpose(2, 3).flip(0)).z_q
    torch.testing.assert_close(turned, whole.transpose(2, 3).flip(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_z(kind: str) -> None:
    bottleneck = trained(kind)
    z = latents(bottleneck, 4, 3, 4, seed=99).requires_grad_()
    out = bottleneck(z, Step(0, 50, 0, 4))
    (gradient,) = torch.autograd.grad(out.z_q.square().sum(), z, retain_graph=True)
    assert torch.isfinite(gradient).all() and (gradient != 0).float().mean() > 0.9
    if any(loss.requires_grad for loss in out.losses.values()):
        (gradient,) = torch.autograd.grad(torch.stack(list(out.losses.values())).sum(), z)
        assert torch.isfinite(gradient).all() and (gradient != 0).float().mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_z_in_eval_mode_too(kind: str) -> None:
    """A bottleneck that no longer learns must not cut the encoder off, and its values stay what they are."""
    bottleneck = trained(kind).eval()
    z = latents(bottleneck, 4, 3, 4, seed=99)
    with torch.no_grad():
        expected = bottleneck(z)
    z.requires_grad_()
    out = bottleneck(z)
    assert torch.equal(out.z_q, expected.z_q) and out.z_q.dtype == expected.z_q.dtype
    (gradient,) = torch.autograd.grad(out.z_q.square().sum(), z)
    reached = (gradient != 0).float()
    if kind in ("gaussian", "gaussian_quant"):  # without noise, the variance decides nothing
        reached = reached.chunk(2, dim=1)[0]
    assert torch.isfinite(gradient).all() and reached.mean() > 0.9
    if bottleneck.identity_gradient:
        torch.testing.assert_close(gradient, 2 * out.z_q.detach())
    with torch.no_grad():
        assert bottleneck(z).z_q.grad_fn is None


@pytest.mark.parametrize("kind", KINDS)
def test_eval_mode_changes_nothing(kind: str) -> None:
    bottleneck = trained(kind).eval()
    before, training = values_of(bottleneck.state_dict()), values_of(bottleneck.training_state())
    bottleneck.events()
    z = latents(bottleneck, 8, 3, 4, seed=99)
    first = bottleneck(z)
    torch.manual_seed(1)
    second = bottleneck(z, Step(0, 3, 0, 8))
    assert torch.equal(first.z_q, second.z_q)
    assert_same(values_of(bottleneck.state_dict()), before)
    assert_same(bottleneck.training_state(), training)
    assert bottleneck.events() == []


def step(bottleneck: Bottleneck, index: int) -> Tensor:
    z_q: Tensor = bottleneck(latents(bottleneck, 8, 6, seed=index), Step(5, index, 0, 8)).z_q
    return z_q


@functools.cache
def whole_run(kind: str) -> tuple[list[Tensor], list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Of a run of six steps never stopped: z_q of each, and both states before each and at the end."""
    torch.manual_seed(0)
    bottleneck = bottleneck_config(kind).build().train()
    z_q, states, training_states = [], [], []
    for index in range(7):
        states.append(values_of(bottleneck.state_dict()))
        training_states.append(values_of(bottleneck.training_state()))
        z_q += [step(bottleneck, index).detach()] if index < 6 else []
    return z_q, states, training_states


@pytest.mark.parametrize("done", range(5))
@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_from_its_saved_state(kind: str, done: int, tmp_path: Path) -> None:
    """State dict and training state are all that a resume needs, whatever the step it happens at."""
    z_q, states, training_states = whole_run(kind)
    save_file(states[done], tmp_path / "model")
    save_file(training_states[done], tmp_path / "training")
    torch.manual_seed(1)
    resumed = bottleneck_config(kind).build().train()
    resumed.load_state_dict(load_file(tmp_path / "model"))
    resumed.load_training_state(load_file(tmp_path / "training"))
    for index in range(done, 6):
        assert torch.equal(step(resumed, index), z_q[index])
    assert_same(resumed.state_dict(), states[6])


@pytest.mark.parametrize("done", [1, 7])  # the step of a start by k-means, and one that revives
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_can_be_put_back(kind: str, done: int) -> None:
    bottleneck = trained(kind, steps=done)
    tok = nn.ModuleDict({"bottleneck": bottleneck})
    bottleneck.events()
    before, training = values_of(bottleneck.state_dict()), values_of(bottleneck.training_state())
    undo = put_back(tok)
    for micro in range(2):
        z = 9 + latents(bottleneck, 4, 3, 4, seed=99)
        bottleneck(z, Step(0, done, 4 * micro, 8, last=micro == 1))
    if is_discrete(bottleneck):
        now = bottleneck.state_dict() | bottleneck.training_state()
        assert now.keys() != before.keys() | training.keys() or any(
            not torch.equal(v, now[k]) for k, v in (before | training).items()
        )
    undo()
    assert_same(bottleneck.state_dict(), before)
    assert_same(bottleneck.training_state(), training)
    assert bottleneck.events() == []


@pytest.mark.parametrize("kind", KINDS)
def test_float64_stays(kind: str) -> None:
    bottleneck = trained(kind, torch.float64)
    z = latents(bottleneck, 2, 5, seed=99).double()
    for training in (True, False):
        out = bottleneck.train(training)(z, Step(0, 50, 0, 2))
        assert {v.dtype for v in (out.z_q, *out.losses.values(), *out.stats.values())} == {torch.float64}
    assert all(v.dtype in (torch.float64, torch.bool) for v in bottleneck.state_dict().values())
    assert all(v.dtype == torch.float64 for v in bottleneck.training_state().values())


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_under_autocast_is_float32_of_the_same_values(kind: str, half: torch.dtype) -> None:
    for training in (True, False):
        # Each pass in training mode moves the statistics, so each gets a bottleneck of its own.
        bottleneck, other = (trained(kind).train(training) for _ in range(2))
        # So many vectors that some lie where half precision would turn the code.
        z = latents(bottleneck, 8, 20, 25, seed=99).to(half)
        with torch.autocast("cpu", half):
            out = bottleneck(z, Step(0, 50, 0, 8))
        expected = other(z.float(), Step(0, 50, 0, 8))
        assert out.z_q.dtype == torch.float32 and torch.equal(out.z_q, expected.z_q)
        assert_same(out.losses, expected.losses)
        assert_same(bottleneck.state_dict(), other.state_dict())
        if is_discrete(bottleneck):
            assert torch.equal(out.codes, expected.codes)
            with torch.autocast("cpu", half):
                codes = bottleneck.eval().encode(z)
                decoded = bottleneck.decode(codes)
            assert torch.equal(codes, other.eval().encode(z.float()))
            assert torch.equal(decoded, other.decode(codes))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_is_named_and_changes_nothing(kind: str) -> None:
    bottleneck = trained(kind)
    before, training = values_of(bottleneck.state_dict()), values_of(bottleneck.training_state())
    z = latents(bottleneck, 2, 5, seed=99)
    z[1, -1, 3] = torch.nan
    with pytest.raises(NotFinite, match=r"z_e \(2, \d+, 5\) .*NaN.* step 8;"):
        bottleneck(z, Step(0, 7, 0, 2))
    with pytest.raises(NotFinite, match=r"\bz(_e)? .*(finite|NaN)"):
        if isinstance(bottleneck, Gaussian) and not is_discrete(bottleneck):
            bottleneck.eval().posterior(z)
        else:
            bottleneck.eval().encode(z)
    assert_same(bottleneck.state_dict(), before)
    assert_same(bottleneck.training_state(), training)
