"""Bottlenecks: the contract that every registered one keeps, on one process and on several.

Left out: what single bottlenecks do (test_vq.py, test_gaussian.py), the search (test_search.py), and the
networks around a bottleneck (test_tokenizer.py).
"""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from einops import rearrange
from safetensors.torch import load_file, save_file
from tiny import VARIANTS, bottleneck_config, latents, trained
from torch import Tensor

from pipelines.cli import leave_group
from tokenizer.bottlenecks import Bottleneck, BottleneckConfig, kinds
from tokenizer.config import config_from_dict, config_to_dict
from tokenizer.distributed import Step, all_reduce_sum

KINDS = [*sorted(kinds()), *VARIANTS]
GRIDS = [(5,), (3, 4)]


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
            with pytest.raises(TypeError, match="posterior"):
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


@pytest.mark.parametrize("done", range(5))
@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_from_its_saved_state(kind: str, done: int, tmp_path: Path) -> None:
    """State dict and training state are all that a resume needs, whatever the step it happens at."""

    def step(bottleneck: Bottleneck, index: int) -> Tensor:
        z_q: Tensor = bottleneck(latents(bottleneck, 8, 6, seed=index), Step(5, index, 0, 8)).z_q
        return z_q

    torch.manual_seed(0)
    bottleneck = bottleneck_config(kind).build().train()
    for index in range(done):
        step(bottleneck, index)
    save_file(bottleneck.state_dict(), tmp_path / "model")
    save_file(bottleneck.training_state(), tmp_path / "training")
    torch.manual_seed(1)
    resumed = bottleneck_config(kind).build().train()
    resumed.load_state_dict(load_file(tmp_path / "model"))
    resumed.load_training_state(load_file(tmp_path / "training"))
    for index in range(done, 6):
        assert torch.equal(step(resumed, index), step(bottleneck, index))
    assert_same(resumed.state_dict(), bottleneck.state_dict())


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
    if not is_discrete(bottleneck):
        return
    before, training = values_of(bottleneck.state_dict()), values_of(bottleneck.training_state())
    z = latents(bottleneck, 2, 5, seed=99)
    z[1, -1, 3] = torch.nan
    with pytest.raises(ValueError, match=r"z_e \(2, \d+, 5\) holds NaN or infinity at step 8:"):
        bottleneck(z, Step(0, 7, 0, 2))
    with pytest.raises(ValueError, match="not finite|NaN or infinity"):  # noqa: RUF043
        bottleneck.eval().encode(z)
    assert_same(bottleneck.state_dict(), before)
    assert_same(bottleneck.training_state(), training)


def run_in_passes(
    bottleneck: Bottleneck, data: list[Tensor], seed: int, rank: int = 0, world: int = 1, passes: int = 1
) -> list[Tensor]:
    """Train on global batches `data`, of which this rank sees its part, in several accumulation passes, with
    plain gradient descent. Returns the z_q of this rank's rows, in the order of the global batch's rows."""
    outputs, parameters = [], list(bottleneck.parameters())
    for index, z in enumerate(data):
        total = z.shape[0]
        rows = total // (world * passes)
        for micro in range(passes):
            offset = (rank * passes + micro) * rows
            step = Step(seed, index, offset, total, last=micro == passes - 1)
            out = bottleneck(z[offset : offset + rows], step)
            outputs.append(out.z_q.detach())
            if parameters:
                loss = torch.stack([out.z_q.square().mean(), *out.losses.values()]).sum()
                (loss / (passes * world)).backward()
        for p in parameters:
            assert p.grad is not None
            p.data -= 0.02 * all_reduce_sum(p.grad)
            p.grad = None
    return outputs


def moving_clusters(dim: int, steps: int) -> list[Tensor]:
    """Global batches (24, dim, 2) float64 around few centres that jump halfway, so that entries die."""
    generator = torch.Generator().manual_seed(3)
    centres = [5 * torch.randn(10, dim, generator=generator, dtype=torch.float64) for _ in range(2)]
    data = []
    for index in range(steps):
        which = torch.randint(10, (48,), generator=generator)
        z = centres[2 * index // steps][which]
        z = z + 0.3 * torch.randn(48, dim, generator=generator, dtype=torch.float64)
        data.append(rearrange(z, "(b p) d -> b d p", b=24))
    return data


@pytest.mark.parametrize("passes", [2, 3, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_passes_equal_the_whole_batch(kind: str, passes: int) -> None:
    def train(passes: int) -> tuple[Bottleneck, list[str], Tensor]:
        torch.manual_seed(0)
        bottleneck = lively_config(kind).build().double().train()
        outputs = run_in_passes(bottleneck, moving_clusters(bottleneck.in_dim, 30), seed=1, passes=passes)
        return bottleneck, bottleneck.events(), torch.cat(outputs)

    whole, whole_events, expected = train(1)
    parts, parts_events, found = train(passes)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-12, atol=1e-12, msg=name)
    assert parts_events == whole_events
    if kind == "vq":
        assert [e.split()[0] for e in whole_events] == ["k-means", "revived"]


def lively_config(kind: str) -> BottleneckConfig:
    """Small, with a quick decay where there is one, so that 30 steps see deaths and revivals."""
    changes = {"decay": 0.8, "kmeans_steps": 4, "revive_below": 0.2}
    return _lively(bottleneck_config(kind), changes)


def _lively(config: BottleneckConfig, changes: dict[str, float]) -> BottleneckConfig:
    values = {n: getattr(config, n) for n in config.__dataclass_fields__}
    inner = {n: _lively(v, changes) for n, v in values.items() if isinstance(v, BottleneckConfig)}
    mine = {n: v for n, v in changes.items() if n in values}
    return dataclasses.replace(config, **mine, **inner)


def one_rank(rank: int, world: int, kind: str, folder: str) -> None:
    torch.manual_seed(0)
    bottleneck = lively_config(kind).build().double().train()
    passes = 4 // world
    outputs = run_in_passes(bottleneck, moving_clusters(bottleneck.in_dim, 40), 1, rank, world, passes)
    state = {
        **bottleneck.state_dict(),
        **{f"training.{k}": v for k, v in bottleneck.training_state().items()},
    }
    saved = {**state, "z_q": torch.stack(outputs)}
    save_file({k: v.contiguous() for k, v in saved.items()}, f"{folder}/{kind}-{world}-{rank}")
    Path(f"{folder}/{kind}-{world}-{rank}-events").write_text("\n".join(bottleneck.events()))


def all_kinds_on_one_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{world}", rank=rank, world_size=world)
    for kind in KINDS:
        one_rank(rank, world, kind, folder)
    leave_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two and what four processes learn from the same global batches."""
    folder = tmp_path_factory.mktemp("ranks")
    for world in (2, 4):
        mp.spawn(all_kinds_on_one_rank, (world, str(folder)), nprocs=world)
    return folder


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_several_processes_equal_one(kind: str, world: int, processes: Path) -> None:
    torch.manual_seed(0)
    single = lively_config(kind).build().double().train()
    outputs = run_in_passes(single, moving_clusters(single.in_dim, 40), seed=1, passes=4)
    ranks = [load_file(processes / f"{kind}-{world}-{rank}") for rank in range(world)]
    z_q = rearrange(torch.stack(outputs), "(s r m) ... -> r (s m) ...", r=world, m=4 // world)
    for rank in range(world):
        torch.testing.assert_close(ranks[rank].pop("z_q"), z_q[rank], rtol=1e-9, atol=1e-9)
        assert_same(ranks[0], ranks[rank])
    state = {**single.state_dict(), **{f"training.{k}": v for k, v in single.training_state().items()}}
    for name, value in state.items():
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-9, atol=1e-9, msg=name)
    events = single.events()
    for rank in range(world):
        assert (processes / f"{kind}-{world}-{rank}-events").read_text().splitlines() == events
    if kind.startswith("vq"):
        assert any("vectors" in e for e in events) and any(e.startswith("revived") for e in events)
    if kind == "vq":
        assert any(e.startswith("k-means") for e in events) and any(e.startswith("revived") for e in events)
