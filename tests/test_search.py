"""The search: equal to brute force in float64, ties, precision, memory, compiled kernels, bad input.

Left out: speed, which a benchmark measures, and real GPUs; triton's kernel runs in its interpreter.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from brute_force import brute_force, normal
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokenizer import search, search_cpu, search_cuda, search_tiles
from tokenizer.search import Distance, Table, directions, full_precision, nearest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles and parts even for small shapes."""
    for module, name, value in (
        (search, "TILE", 64),
        (search, "PAIRS", 20),
        (search_tiles, "TILE", 1 << 10),
        (search_tiles, "WIDEST", 128),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops of numba, however small the work."""
    if not search_cpu.installed():
        pytest.skip("numba is not installed (tokenloom[fast])")
    monkeypatch.setattr(search_tiles, "COMPILED_FROM", 0)


SIZES = [
    (0, 5, 3),
    (1, 1, 1),
    (7, 1, 4),
    (300, 17, 1),
    (33, 100, 8),
    (1, 2049, 5),
    (1025, 512, 8),
    (100, 33, 64),
    (130, 4101, 16),
    (40, 300, 512),
    (5, 1 << 18, 3),
]


@pytest.mark.parametrize(("m", "n", "d"), SIZES)
def test_equals_brute_force(m: int, n: int, d: int) -> None:
    z, codebook = normal(m, d), normal(n, d, seed=1)
    expected = brute_force(z, codebook)
    codes = nearest(z, codebook)
    assert codes.shape == (m,) and codes.dtype == torch.int64
    assert torch.equal(codes, expected)
    assert torch.equal(nearest(z.double(), codebook), expected)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("m", "n", "d"), SIZES)
def test_equals_brute_force_in_small_tiles(m: int, n: int, d: int) -> None:
    z, codebook = normal(m, d), normal(n, d, seed=1)
    assert torch.equal(nearest(z, codebook), brute_force(z, codebook))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("m", "n", "d"), [s for s in SIZES if s[2] in (8, 64)] + [(70, 15, 8), (1, 2049, 8)])
def test_equals_brute_force_in_compiled_loops(m: int, n: int, d: int) -> None:
    z, codebook = normal(m, d), normal(n, d, seed=1)
    assert torch.equal(nearest(z, codebook), brute_force(z, codebook))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 9), (65, 16, 9), (200, 301, 9), (5, 300, 9)])
def test_compiled_loops_propose_as_the_tiles_do(
    m: int, n: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, entries = normal(m, k), normal(n, k, seed=1)
    z[:, -1] = 1
    compared = [search_tiles.propose(z, entries)]
    compared.append((*(x.clone() for x in search_cpu.two_least((z @ entries.T).contiguous())),))
    monkeypatch.setattr(search_tiles, "COMPILED_FROM", 1 << 60)
    least, codes, second = search_tiles.propose(z, entries)
    for other_least, other_codes, other_second in compared:
        assert torch.equal(other_codes, codes)
        torch.testing.assert_close(other_least, least, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other_second, second, rtol=1e-5, atol=1e-5)
    assert torch.isinf(second).all() == (n == 1)


@pytest.mark.usefixtures("compiled")
def test_threads_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    z, codebook = normal(700, 8), normal(60, 8, seed=1)
    assert torch.equal(nearest(z, codebook), brute_force(z, codebook))


def test_every_entry_finds_itself_across_all_tiles() -> None:
    codebook = normal(2 * search_tiles.WIDEST + 300, 3)
    z = codebook[::7]
    assert torch.equal(nearest(z, codebook), torch.arange(0, len(codebook), 7))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_a_vector_has_the_same_code_alone_as_in_a_batch(distance: Distance) -> None:
    # A lattice, where float32 rounds many pairs of distances the wrong way.
    codebook = (normal(300, 6, seed=1) * 2).round() / 3 + 0.1
    z = (normal(200, 6) * 4).round() / 6 + 0.1
    codes = nearest(z, codebook, distance)
    assert torch.equal(torch.cat([nearest(row[None], codebook, distance) for row in z]), codes)
    assert torch.equal(nearest(z.flip(0), codebook, distance).flip(0), codes)


@pytest.mark.parametrize("d", [1, 3, 8, 64])
def test_cosine_is_the_distance_of_directions(d: int) -> None:
    z, codebook = normal(200, d) * 30, normal(80, d, seed=1) * torch.arange(1, 81)[:, None]
    z[0] = 0
    codes = nearest(z, codebook, "cosine")
    assert torch.equal(codes, brute_force(directions(z, "z"), directions(codebook, "")))
    similarity = torch.nn.functional.cosine_similarity(z[1:, None].double(), codebook.double(), dim=2)
    chosen = similarity.gather(1, codes[1:, None])[:, 0]
    assert (chosen > similarity.amax(1) - 1e-7).all()
    codebook[7] = 0
    assert nearest(z, codebook, "cosine")[0] == 7
    codes = nearest(z, codebook, "cosine")
    scaled = nearest(z * 2.0**60, codebook * 2.0**-60, "cosine")
    assert torch.equal(scaled, codes)


def test_layout_in_memory_does_not_matter() -> None:
    z, codebook = normal(200, 6), normal(40, 6, seed=1)
    expected = nearest(z, codebook)
    wide = torch.stack([z, -z], dim=-1)[..., 0]
    assert not wide.is_contiguous()
    assert torch.equal(nearest(wide, codebook), expected)
    assert torch.equal(nearest(z.T.contiguous().T, codebook.T.contiguous().T), expected)
    assert torch.equal(nearest(z[::2], codebook), expected[::2])
    assert torch.equal(nearest(z[:1].expand(5, -1), codebook), expected[:1].expand(5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_exactly(dtype: torch.dtype) -> None:
    z, codebook = normal(500, 8).to(dtype), normal(64, 8, seed=1)
    expected = nearest(z.float(), codebook)
    assert torch.equal(nearest(z, codebook), expected)
    assert torch.equal(expected, brute_force(z, codebook))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest(z, codebook), expected)
    assert torch.equal(nearest(z, codebook.to(dtype)), brute_force(z, codebook.to(dtype)))


def test_far_from_the_origin_no_code_flips() -> None:
    # Multiples of 2⁻¹⁰ are exact in float32 even beside 1000.
    z = (normal(2000, 8) * 1024).round() / 1024 + 1000
    codebook = (normal(256, 8, seed=1) * 1024).round() / 1024 + 1000
    expected = brute_force(z, codebook)
    uncentred = (codebook.square().sum(1) - 2 * z @ codebook.T).argmin(dim=1)
    assert (uncentred != expected).float().mean() > 0.05
    assert torch.equal(nearest(z, codebook), expected)
    assert torch.equal(nearest(z - 1000, codebook - 1000), expected)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("rows", [1, 2, 51])
@pytest.mark.parametrize(
    ("size", "first", "second"), [(5, 2, -1), (17, 2, -1), (511, 2, -1), (257, 127, 128)]
)
def test_of_equal_entries_the_lowest_index_wins(size: int, first: int, second: int, rows: int) -> None:
    for d in (1, 2, 3, 5, 8, 12, 33):
        codebook = normal(size, d, seed=d)
        codebook[first] = codebook[second] = 10 + normal(d)
        z = codebook[first] + 0.1 * normal(rows, d, seed=size)
        assert (nearest(z, codebook) == first).all()


def test_points_halfway_go_to_the_lowest_index() -> None:
    codebook = torch.tensor([[2.0], [-2.0], [0.0], [4.0], [-4.0]])
    z = torch.tensor([[1.0], [-1.0], [3.0], [-3.0], [0.0]])
    assert nearest(z, codebook).tolist() == [0, 1, 0, 1, 2]
    assert nearest(z, codebook.expand(5, 1).repeat(2000, 1)).tolist() == [0, 1, 0, 1, 2]
    assert nearest(torch.zeros(3, 2), torch.zeros(2051, 2)).tolist() == [0, 0, 0]


class LargestTensor(TorchDispatchMode):
    """Records the elements of the largest tensor that any operation gives."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.largest = max(self.largest, leaf.numel())
        return out


@pytest.mark.parametrize(("m", "n"), [(3000, 6000), (30000, 1000), (100, 80000)])
def test_no_table_of_all_distances(m: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_tiles, "COMPILED_FROM", 1 << 60)
    monkeypatch.setattr(search_tiles, "TILE", 1 << 18)
    monkeypatch.setattr(search, "TILE", 1 << 18)
    z, codebook = normal(m, 4), normal(n, 4, seed=1)
    with LargestTensor() as seen:  # it sees nothing inside an operator
        Table(codebook).search(z)
    bound = max(5 * m, 5 * n, 1 << 18)
    assert 1 << 17 <= seen.largest <= bound < m * n


def test_no_gradient_is_recorded() -> None:
    z = normal(5, 3).requires_grad_()
    assert not nearest(z, normal(4, 3, seed=1).requires_grad_()).requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    for where in ((0, 0), (-1, -1)):
        z, codebook = normal(1000, 3), normal(9, 3)
        z[where] = value
        with pytest.raises(ValueError, match="not finite"):
            nearest(z, codebook)
        codebook[where] = value
        with pytest.raises(ValueError, match="not finite"):
            nearest(normal(4, 3), codebook)
    opposite = torch.tensor([[float("inf")], [float("-inf")]])
    with pytest.raises(ValueError, match="not finite"):
        nearest(opposite, normal(2, 1))


@pytest.mark.parametrize(
    ("z", "codebook", "message"),
    [
        ((4,), (5, 4), r"z \(M, D\) and codebook \(N, D\), got \(4,\) and \(5, 4\)"),
        ((2, 3, 4), (5, 4), r"got \(2, 3, 4\)"),
        ((3, 4), (5, 3), r"got \(3, 4\) and \(5, 3\)"),
        ((3, 4), (5,), r"got \(3, 4\) and \(5,\)"),
        ((3, 4), (0, 4), "the codebook has no entries"),
        ((3, 0), (2, 0), "have no dimensions"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(z: Any, codebook: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest(torch.zeros(z), torch.zeros(codebook))


@pytest.mark.parametrize("size", [1, 1 << 14])
def test_a_collapsed_codebook_takes_no_long_search(size: int) -> None:
    codebook = torch.ones(size, 8) / 3
    codebook[size // 2 :] = -0.7
    codebook[-1] = -0.7
    z = normal(4096, 8)
    started = time.perf_counter()
    codes = nearest(z, codebook)
    assert time.perf_counter() - started < 10
    assert torch.equal(codes, brute_force(z, codebook[[0, size // 2]]) * (size // 2))


def test_tight_clusters_are_told_apart() -> None:
    # Entries a few float32 steps apart, in two places; the product in float32 sees two points.
    steps = torch.arange(400.0)[:, None] * 2.0**-22
    codebook = torch.cat([1 + steps, -1 - steps]).expand(-1, 3).contiguous()
    z = codebook[::3] + 2.0**-23
    assert torch.equal(nearest(z, codebook), brute_force(z, codebook))


@pytest.mark.parametrize("scale", [2.0**-140, 2.0**-100, 2.0**-45, 2.0**30, 2.0**80, 2.0**120])
def test_scale_does_not_matter(scale: float) -> None:
    # Multiples of 2⁻⁵ survive in float32 at all of these scales.
    z, codebook = ((normal(n, 5, seed=n) * 32).round() / 32 for n in (200, 70))
    assert torch.equal(nearest(z * scale, codebook * scale), brute_force(z, codebook))
    assert torch.equal(nearest(z * scale, codebook), brute_force(z.double() * scale, codebook))


def test_one_entry_far_away_harms_no_other() -> None:
    z, codebook = normal(300, 8), normal(500, 8, seed=1)
    for far in (1e4, 1e9, 1e25):
        codebook[3] = far
        with LargestTensor() as seen:
            codes = Table(codebook).search(z)
        assert torch.equal(codes, brute_force(z, codebook))
        assert seen.largest < 20 * 500 * 64  # few were close enough to be compared in float64


def test_float64_is_told_apart_in_float64() -> None:
    codebook = 1 + torch.arange(50, dtype=torch.float64)[:, None] * 1e-13
    assert torch.equal(nearest(codebook + 2e-14, codebook), torch.arange(50))
    assert torch.equal(nearest(codebook * 1e140, codebook * 1e140), torch.arange(50))
    with pytest.raises(ValueError, match=r"z holds values .* too large to be squared"):
        nearest(codebook * 1e160, codebook)
    with pytest.raises(ValueError, match="the codebook holds values"):
        nearest(codebook, torch.stack([codebook[0], codebook[0] * 1e160, codebook[1]]))


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_torch_compile_takes_it_whole(distance: Distance) -> None:
    z, codebook = normal(50, 4), normal(20, 4, seed=1)
    compiled = torch.compile(nearest, fullgraph=True, backend="eager")
    expected = nearest(z, codebook, distance)
    assert torch.equal(compiled(z, codebook, distance), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(z, codebook, distance), expected)
        assert torch.equal(nearest(z, codebook, distance), expected)
    assert torch.equal(compiled(z.requires_grad_(), codebook, distance), expected)
    with torch.inference_mode():
        assert torch.equal(nearest(z, codebook, distance), expected)


@pytest.fixture
def precision() -> Any:
    matmuls = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [m.fp32_precision for m in matmuls]
    yield lambda: [m.fp32_precision for m in matmuls]
    for matmul, value in zip(matmuls, before, strict=True):
        matmul.fp32_precision = value
    torch.set_float32_matmul_precision("highest")


def test_the_precision_of_products_is_full_and_then_as_before(precision: Any) -> None:
    for chosen, expected in (
        ("high", ["tf32", "tf32"]),
        ("medium", ["tf32", "bf16"]),
        ("highest", ["ieee"] * 2),
    ):
        torch.set_float32_matmul_precision(chosen)
        assert precision() == expected
        with full_precision():
            assert precision() == ["ieee", "ieee"]
        with pytest.raises(ValueError, match="not finite"):
            nearest(torch.tensor([[torch.nan]]), torch.zeros(1, 1))
        z, codebook = normal(300, 64), normal(200, 64, seed=1)
        assert torch.equal(nearest(z, codebook), brute_force(z, codebook))
        assert precision() == expected and torch.get_float32_matmul_precision() == chosen
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    nearest(normal(3, 2), normal(2, 2))
    assert precision() == ["ieee", "bf16"]


def test_an_unknown_distance_and_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="distance is 'manhattan', expected euclidean or cosine"):
        nearest(torch.zeros(1, 1), torch.zeros(1, 1), "manhattan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected floats, got z of torch.int64"):
        nearest(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1))


INTERPRETED = """
import json, sys, torch
from tokenizer import search_cuda, search_tiles
wrong = []
for m, n, k, programs in json.loads(sys.argv[1]):
    generator = torch.Generator().manual_seed(m)
    z, entries = torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator)
    entries[n // 2] = entries[0]
    expected = search_tiles.propose(z, entries)
    found = search_cuda.launch(z, entries, search_cuda.Blocks(32, 64, 16, 4, 2), programs)
    close = all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found, expected))
    if not close or [x.dtype for x in found] != [x.dtype for x in expected]:
        wrong.append([m, n, k, programs])
print(json.dumps(wrong))
"""


@pytest.mark.skipif(not search_cuda.installed(), reason="triton is not installed")
def test_the_kernel_for_gpus_proposes_as_the_tiles_do() -> None:
    shapes = [
        (37, 50, 9, 1),
        (5, 300, 2, 8),
        (40, 129, 40, 1),
        (33, 17, 17, 4),
        (1, 1, 2, 1),
        (16, 320, 65, 3),
    ]
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED, json.dumps(shapes)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_without_triton_and_numba_the_tiles_search(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((search_cpu, "numba"), (search_cuda, "triton")):
        assert module.installed() == (importlib.util.find_spec(name) is not None)
    monkeypatch.setattr(search_tiles, "COMPILED_FROM", 0)
    monkeypatch.setattr(search_cpu, "installed", lambda: False)
    monkeypatch.setattr(search_cpu, "propose", None)
    z, codebook = normal(100, 8), normal(40, 8, seed=1)
    assert torch.equal(nearest(z, codebook), brute_force(z, codebook))
