"""FSQ: levels, codes and gradients, against another implementation and against borders by hand.

Left out: what every bottleneck keeps (test_contract.py).
"""

import math

import pytest
import torch
from einops import rearrange
from torch import Tensor
from vector_quantize_pytorch import FSQ as OtherFSQ

from tests.helpers.tiny import bottleneck_config, latents, trained
from tokenizer.bottlenecks.fsq import FSQ, FSQConfig
from tokenizer.distributed import Step


def fsq(levels: tuple[int, ...], dtype: torch.dtype = torch.float64, **changes: object) -> FSQ:
    """An FSQ without projections, so that z_e is z."""
    bottleneck = bottleneck_config("fsq", levels=levels, dim=len(levels), **changes).build()
    assert isinstance(bottleneck, FSQ)
    return bottleneck.to(dtype).train()


def rows(z: Tensor) -> Tensor:
    return rearrange(z, "b d ... -> (b ...) d")


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (3,), (4, 7, 6), (16, 9)])
def test_tanh_is_another_implementations(levels: tuple[int, ...]) -> None:
    bottleneck = fsq(levels, bound="tanh").eval()
    z = 2 * latents(bottleneck, 40, 50).double()
    values, codes = OtherFSQ(list(levels))(rearrange(z, "b d p -> b p d"))
    out = bottleneck(z)
    assert torch.equal(out.codes[:, 0], codes.long())
    torch.testing.assert_close(out.z_q, rearrange(values, "b p d -> b d p"), rtol=1e-12, atol=1e-12)
    assert codes.unique().numel() > 0.4 * math.prod(levels)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2,), (2, 3, 4), (1000,)])
def test_even_parts_at_quantiles_of_the_normal_distribution(levels: tuple[int, ...]) -> None:
    bottleneck = fsq(levels).eval()
    z = latents(bottleneck, 40, 50).double()
    code, place = torch.zeros(40, 50, dtype=torch.int64), 1
    for channel, count in enumerate(levels):
        borders = torch.special.ndtri(torch.arange(1, count, dtype=torch.float64) / count)
        code += place * torch.bucketize(z[:, channel].contiguous(), borders, right=True)
        place *= count
    assert torch.equal(bottleneck.encode(z), code[:, None])


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 9])
def test_even_uses_all_levels_alike(count: int) -> None:
    z = torch.linspace(0, 1, 20 * count + 1, dtype=torch.float64)[1:].sub(1 / 40 / count)
    codes = fsq((count,)).eval().encode(torch.special.ndtri(z)[None, None])
    assert torch.bincount(codes.flatten()).tolist() == [20] * count


@pytest.mark.parametrize("count", [3, 8])
def test_the_outer_levels_of_tanh_are_narrower(count: int) -> None:
    z = torch.atanh(torch.linspace(-0.9999, 0.9999, 4001, dtype=torch.float64))
    shift = math.atanh(0.5 / ((count - 1) * 1.001 / 2)) if count % 2 == 0 else 0.0
    counts = torch.bincount(fsq((count,), bound="tanh").eval().encode(z[None, None] - shift).flatten())
    assert len(counts) == count
    assert 0.45 < counts[0] / counts[1] < 0.55 and 0.45 < counts[-1] / counts[-2] < 0.55


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bound", ["even", "tanh"])
def test_no_z_gives_a_level_out_of_range(bound: str, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    z = torch.tensor([-largest, -100, -9, -5.6, 0, 5.6, 9, 100, largest], dtype=dtype)
    for count in (3, 4, 5, 8, 255, 1024, 4095, 1 << 24):
        bottleneck = fsq((count,), torch.float32, bound=bound).eval()
        with torch.autocast("cpu", torch.float16):
            codes, z_q = bottleneck.encode(z[None, None]), bottleneck(z[None, None]).z_q
        assert codes[0, 0, 0] == 0 and codes[0, 0, -1] == count - 1
        assert (codes.diff() >= 0).all() and z_q.abs().max() <= 1


def test_codes_are_mixed_radix_and_values_reach_from_minus_one_to_one() -> None:
    bottleneck = fsq((3, 2, 4)).eval()
    codes = torch.arange(24).view(1, 1, 24)
    first, second, third = bottleneck.decode(codes)[0]
    assert first.tolist() == [-1, 0, 1] * 8
    assert second.tolist() == [-1, -1, -1, 1, 1, 1] * 4
    torch.testing.assert_close(third[::6], torch.linspace(-1, 1, 4, dtype=torch.float64))
    assert torch.equal(bottleneck.codebook_vectors(), rows(bottleneck.decode(codes)))
    # In the paper 0 is a level also where there are four.
    paper = fsq((3, 3, 4), bound="tanh").eval().decode(torch.tensor([[[0, 9, 18, 27]]]))
    assert paper[0, 2].tolist() == [-1, -0.5, 0, 0.5]


@pytest.mark.parametrize("levels", [(2,) * 24, (4095, 4096), (1 << 24,), (250, 251, 252)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_code_is_lost_to_a_float(levels: tuple[int, ...], dtype: torch.dtype) -> None:
    """Codes up to 2^24 - 1, odd ones too, where half precision has the whole numbers to 2048 or 256."""
    size = math.prod(levels)
    codes = torch.cat([torch.arange(40), size - 1 - torch.arange(40), torch.randint(size, (200,))])
    digits, rest = [], codes
    for count in levels:
        digits.append(rest % count)
        rest = rest // count
    level = torch.stack(digits, dim=1).double()
    z = torch.special.ndtri((level + 0.5) / torch.tensor(levels))
    bottleneck = fsq(levels, dtype).eval()
    with torch.autocast("cpu", dtype):
        found = bottleneck.encode(rearrange(z, "m d -> 1 d m"))
        decoded = bottleneck.decode(found)
    assert found.dtype == torch.int64 and torch.equal(found[0, 0], codes)
    assert decoded.dtype == torch.float32
    expected = 2 * level / (torch.tensor(levels) - 1) - 1
    torch.testing.assert_close(rows(decoded), expected.float(), rtol=0, atol=2e-7)


@pytest.mark.parametrize("bound", ["even", "tanh"])
def test_rounding_passes_the_gradient_of_what_it_rounds(bound: str) -> None:
    bottleneck = fsq((8, 5), bound=bound)
    z = (2 * latents(bottleneck, 3, 7)).double().requires_grad_()
    out = bottleneck(z)
    weights = torch.randn(out.z_q.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad((weights * out.z_q).sum(), z)
    levels = torch.tensor([8.0, 5.0], dtype=torch.float64)[:, None]
    if bound == "even":
        density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        slope = levels * density * 2 / (levels - 1)
    else:
        shift = torch.tensor([math.atanh(0.5 / (3.5 * 1.001)), 0], dtype=torch.float64)[:, None]
        slope = (1 - torch.tanh(z + shift) ** 2) * (levels - 1) * 1.001 / 2 / torch.tensor([[4], [2]])
    torch.testing.assert_close(found, weights * slope.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(out.z_q, bottleneck.decode(out.codes), rtol=0, atol=1e-12)
    assert not bottleneck.identity_gradient


def test_it_has_no_losses_and_counts_its_codes() -> None:
    bottleneck = fsq((3, 3))
    out = bottleneck(torch.zeros(2, 2, 5, dtype=torch.float64), Step(0, 0, 0, 2))
    assert out.losses == {} and out.codes.unique().tolist() == [4]
    assert out.stats["usage"].item() == pytest.approx(1 / 9) and out.stats["dead_age"].item() == 1
    out = bottleneck(torch.full((2, 2, 5), 9.0, dtype=torch.float64), Step(0, 1, 0, 2))
    assert out.stats["usage"].item() == pytest.approx(2 / 9) and out.stats["dead_age"].item() == 2


@pytest.mark.parametrize(("bound", "named"), [("even", "levels"), ("tanh", "bound even")])
def test_low_usage_is_told_with_a_remedy(bound: str, named: str) -> None:
    bottleneck = fsq((8, 8), torch.float32, bound=bound)
    for index in range(201):
        bottleneck(torch.zeros(2, 2, 40), Step(0, index, 0, 2))
    (event,) = bottleneck.events()
    assert event.text.startswith("warning: 1.6% of 64 codes") and named in event.text


def test_projections_lead_to_the_levels_and_back() -> None:
    bottleneck = trained("fsq", torch.float64).eval()
    assert isinstance(bottleneck, FSQ)
    z = latents(bottleneck, 2, 5).double()
    z_e = rows(z) @ bottleneck.project_in.weight.T + bottleneck.project_in.bias
    levels = torch.tensor([8, 5, 5, 5])
    level = (levels * torch.special.ndtr(z_e)).floor()
    values = 2 * level / (levels - 1) - 1
    z_q = values @ bottleneck.project_out.weight.T + bottleneck.project_out.bias
    torch.testing.assert_close(rows(bottleneck.decode(bottleneck.encode(z))), z_q, rtol=1e-12, atol=1e-12)
    # What the picture of the codebook compares lies within half a level of its entry.
    seen, entries = bottleneck.compared(z), bottleneck.codebook_vectors()
    near = (seen[0] - entries[bottleneck.encode(z).flatten()]).abs() * (levels - 1) / 2
    assert seen.shape == (1, 10, 4) and near.max() <= 0.5 + 1e-9


def test_a_codebook_too_large_to_draw_is_not_written_out() -> None:
    assert fsq((256, 256)).codebook_vectors().shape == (1 << 16, 2)
    assert fsq((256, 257)).codebook_vectors() is None


def test_values_that_are_not_finite_are_named_and_change_nothing() -> None:
    bottleneck = fsq((5, 5))
    bottleneck(latents(bottleneck, 2, 5).double(), Step(0, 0, 0, 2))
    before = {k: v.clone() for k, v in bottleneck.training_state().items()}
    z = latents(bottleneck, 2, 5).double()
    z[1, 0, 3] = math.nan
    with pytest.raises(ValueError, match=r"z_e \(2, 2, 5\) .*NaN.* step 2"):
        bottleneck(z, Step(0, 1, 0, 2))
    with pytest.raises(ValueError, match=r"z_e .*NaN"):
        bottleneck.encode(z)
    assert all(torch.equal(v, before[k]) for k, v in bottleneck.training_state().items())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"levels": ()}, "levels is empty, expected at least one number of levels"),
        ({"levels": (5, 1)}, "levels has 1, expected 2 or more"),
        ({"levels": (5, -3)}, "levels has -3, expected 2 or more"),
        ({"levels": (4096, 4097)}, r"levels \(4096, 4097\) .* 16781312 codes, expected at most 2\^24"),
        ({"dim": 0}, "dim is 0, expected 1 to 4096"),
        ({"levels": (2, 4), "bound": "tanh"}, "levels .* 2.*bound tanh .*use bound even"),
    ],
)
def test_configs_check_themselves(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FSQConfig(**fields)
