"""The search by products in bfloat16: equal to brute force in float64 where it decides, silent elsewhere.

Left out: speed, which a benchmark measures. Every CPU can run it; few are faster by it.
"""

import pytest
import torch
from torch import Tensor

from tests.helpers.brute_force import brute_force, normal
from tokenizer.installation import install_extra
from tokenizer.search import bf16 as search_bf16
from tokenizer.search import cpu as search_cpu
from tokenizer.search.bf16 import UNDECIDED
from tokenizer.search.exact import middle, nearest

if not search_cpu.installed():
    pytest.skip(
        f"numba is not installed ({install_extra('fast')})",
        allow_module_level=True,
    )


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """In small tiles, however small the work and whatever the CPU."""
    for name, value in (("TILE", 48 << 9), ("WIDEST", 512), ("NARROW", 1), ("COMPILED_FROM", 0)):
        monkeypatch.setattr(search_bf16, name, value)
    monkeypatch.setattr(search_bf16, "fast", lambda: True)


def search(z: Tensor, codebook: Tensor) -> Tensor:
    return search_bf16.search(z, codebook, middle(codebook))


SIZES = [(1, 2, 1), (7, 2, 4), (300, 17, 1), (1, 2049, 5), (100, 33, 64), (130, 1301, 16), (40, 300, 512)]


@pytest.mark.parametrize(("m", "n", "d"), SIZES)
def test_equals_brute_force(m: int, n: int, d: int) -> None:
    z, codebook = normal(m, d), normal(n, d, seed=1)
    assert search_bf16.serves(z, codebook)
    assert torch.equal(search(z, codebook), brute_force(z, codebook))
    assert torch.equal(nearest(z.T.contiguous().T, codebook), brute_force(z, codebook))


def test_no_vectors_have_no_codes() -> None:
    assert search(normal(0, 3), normal(4, 3)).shape == (0,)


@pytest.mark.parametrize("noise", [0.3, 0.01, 1e-4])
def test_neighbours_that_bfloat16_cannot_tell_apart_are_told_apart(noise: float) -> None:
    # Up to 40 entries lie around each of 30 points, at distances that rounding to 8 bits blurs.
    points = 10 * normal(30, 24)
    codebook = points.repeat(40, 1) + noise * normal(1200, 24, seed=1)
    z = points.repeat(10, 1) + noise * normal(300, 24, seed=2)
    codes = search(z, codebook)
    assert (codes != UNDECIDED).all()
    assert torch.equal(codes, brute_force(z, codebook))


def test_of_equal_entries_the_lowest_index_wins() -> None:
    codebook = normal(1300, 20)
    for copies in ([700, 3], [256, 511], [1299, 1024], [5, 261]):  # within and across parts and lanes
        codebook[copies[0]] = codebook[copies[1]]
    z = codebook[[3, 256, 1024, 5]] + 1e-3
    assert search(z, codebook).tolist() == [3, 256, 1024, 5]
    # Points halfway between entries: the lower of two at the same distance.
    grid = torch.cartesian_prod(*[torch.arange(8.0)] * 3)
    between = torch.cartesian_prod(*[torch.arange(7.0) + 0.5] * 3)
    assert torch.equal(search(between, grid), brute_force(between, grid))


@pytest.mark.parametrize("scale", [2.0**-38, 2.0**-20, 2.0**30, 2.0**55])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_scale_and_place_do_not_matter(scale: float, offset: float) -> None:
    z, codebook = ((normal(n, 19, seed=n) * 32).round() / 32 + offset for n in (200, 700))
    codes = search(z * scale, codebook * scale)
    assert (codes != UNDECIDED).all()
    assert torch.equal(codes, brute_force(z, codebook))


def test_lengths_of_all_kinds_are_bounded() -> None:
    # Rows and entries of very different lengths in one table: each row has a bound of its own.
    lengths = 2.0 ** torch.arange(-2, 3)
    codebook = (normal(500, 32).view(100, 5, 32) * lengths[:, None]).flatten(0, 1)
    z = (normal(300, 32, seed=1).view(60, 5, 32) * lengths[:, None]).flatten(0, 1)
    assert torch.equal(search(z, codebook), brute_force(z, codebook))


def test_the_middle_of_roundings_is_not_ruled_out() -> None:
    # Every coordinate lies just beside the middle of two numbers of bfloat16, where rounding errs most, and
    # always in the same direction for one of the entries and in the other for its rival.
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(2, (400, 64), generator=generator) * 2 - 1.0
    step = 2.0**-8
    z = sign * (1 + step - 2.0**-20)
    rivals = torch.cat([sign * (1 + step + 2.0**-20), sign * (1 + step - 2.0**-19)])
    codes = search(z, rivals)
    assert torch.equal(codes, brute_force(z, rivals))
    assert set((codes // 400).tolist()) == {1}


def test_too_many_candidates_are_left_to_others() -> None:
    codebook = normal(1000, 18)
    codebook[100:900] = codebook[100]
    z = normal(200, 18, seed=1)
    z[:48:3] = codebook[100] + 1e-3 * normal(16, 18, seed=2)
    expected = brute_force(z, codebook)
    codes = search(z, codebook)
    assert (codes[:48:3] == UNDECIDED).all()
    decided = codes != UNDECIDED
    assert decided.sum() > 100
    assert torch.equal(codes[decided], expected[decided])
    assert torch.equal(nearest(z, codebook), expected)
    # Where most of the first rows are like that, the product is not worth its time.
    assert (search(torch.cat([z[:48:3].repeat(3, 1), z]), codebook) == UNDECIDED).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_has_no_product_is_left_to_others(value: float) -> None:
    z, codebook = normal(60, 20), normal(70, 20, seed=1)
    wild = z.clone()
    wild[3, 4] = value
    assert (search(wild, codebook) == UNDECIDED).all()
    far = codebook.clone()
    far[-1, 0] = value
    assert (search(z, far) == UNDECIDED).all()
    assert (search(z, codebook[:1]) == UNDECIDED).all()  # its distance from itself is below all scales
    if value == 1e30:
        assert torch.equal(nearest(z, far), brute_force(z, far))
    else:
        with pytest.raises(ValueError, match="z holds values that are not finite"):
            nearest(wild, codebook)
        with pytest.raises(ValueError, match="the codebook holds values"):
            nearest(z, far)


def test_threads_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    z, codebook = normal(500, 20), normal(600, 20, seed=1)
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(search(z, codebook), brute_force(z, codebook))


@pytest.mark.parametrize(
    ("policy", "turns", "count"),
    [
        *((None, None, 3), ("ACTIVE", None, 3), ("passive", None, 6), ("PASSIVE", None, 6)),
        *((None, "1000", 6), (None, "300000", 3), ("PASSIVE", "INFINITE", 6)),
    ],
)
def test_threads_leave_room_for_those_that_spin(
    policy: str | None, turns: str | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"OMP_WAIT_POLICY": policy, "GOMP_SPINCOUNT": turns}.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    counts: list[int] = []

    class Counted(search_cpu.Threads):
        def __init__(self, count: int) -> None:
            super().__init__(count)
            counts.append(count)

    monkeypatch.setattr(search_bf16, "Threads", Counted)
    z, codebook = normal(500, 20), normal(600, 20, seed=1)
    assert torch.equal(search(z, codebook), brute_force(z, codebook))
    assert counts == [count]


def test_only_what_is_faster_by_it_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    z, codebook = normal(50, 20), normal(60, 20)
    assert search_bf16.serves(z, codebook)
    assert not search_bf16.serves(z.double(), codebook.double())
    assert not search_bf16.serves(z.to("meta"), codebook.to("meta"))
    for name, value in (("NARROW", 21), ("COMPILED_FROM", 3001), ("fast", lambda: False)):
        with monkeypatch.context() as patch:
            patch.setattr(search_bf16, name, value)
            assert not search_bf16.serves(z, codebook)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not search_bf16.serves(z, codebook)


def test_the_cpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for features, fast in (({"amx-bf16": True}, True), ({"avx512bf16": True}, True), ({"avx2": True}, False)):
        monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", lambda features=features: features)
        search_bf16.fast.cache_clear()
        assert search_bf16.fast() == fast
    search_bf16.fast.cache_clear()
