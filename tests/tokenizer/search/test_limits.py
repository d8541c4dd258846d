"""The limits of the search: memory, bad input, hard numbers, torch.compile, triton's kernel, no triton.

Left out: its results on usual input (test_exact.py), speed, which a benchmark measures, and real GPUs;
triton's kernel runs in its interpreter.
"""

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers.brute_force import brute_force, normal
from tokenizer.search import cpu as search_cpu
from tokenizer.search import cuda as search_cuda
from tokenizer.search import exact as search
from tokenizer.search import tiles as search_tiles
from tokenizer.search.exact import CROWDED, CentredCodebook, Distance, nearest

ROOT = Path(__file__).parents[3]


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
        CentredCodebook(codebook).search(z)
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
        with pytest.raises(ValueError, match=r"z .*not finite.* x"):
            nearest(z, codebook)
        codebook[where] = value
        with pytest.raises(ValueError, match=r"codebook .*not finite"):
            nearest(normal(4, 3), codebook)
    opposite = torch.tensor([[float("inf")], [float("-inf")]])
    with pytest.raises(ValueError, match=r"z .*not finite.* x"):
        nearest(opposite, normal(2, 1))


@pytest.mark.parametrize(
    ("z", "codebook", "message"),
    [
        ((4,), (5, 4), r"z \(M, D\) and codebook \(N, D\), got \(4,\) and \(5, 4\)"),
        ((2, 3, 4), (5, 4), r"z \(M, D\).*got \(2, 3, 4\) and \(5, 4\)"),
        ((3, 4), (5, 3), r"got \(3, 4\) and \(5, 3\)"),
        ((3, 4), (5,), r"got \(3, 4\) and \(5,\)"),
        ((3, 4), (0, 4), "codebook .*no entries"),
        ((3, 0), (2, 0), "z .*codebook .*no dimensions"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(z: Any, codebook: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest(torch.zeros(z), torch.zeros(codebook))


@pytest.mark.parametrize("size", [1, 1 << 14])
def test_a_collapsed_codebook_takes_no_long_search(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all entries are as near, each vector is not compared with each of them in float64."""
    pairs, decide = [0], CentredCodebook.decide

    def counted(table: CentredCodebook, z: Tensor, row: Tensor, code: Tensor) -> Tensor:
        pairs[0] += len(row)
        return decide(table, z, row, code)

    monkeypatch.setattr(CentredCodebook, "decide", counted)
    codebook = torch.ones(size, 8) / 3
    codebook[size // 2 :] = -0.7
    codebook[-1] = -0.7
    z = normal(4096, 8)
    expected = brute_force(z, codebook[[0, size // 2]]) * (size // 2)
    assert torch.equal(nearest(z, codebook), expected)
    assert torch.equal(CentredCodebook(codebook).search(z), expected)
    assert pairs[0] <= 2 * CROWDED * len(z)


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
            codes = CentredCodebook(codebook).search(z)
        assert torch.equal(codes, brute_force(z, codebook))
        assert seen.largest < 20 * 500 * 64  # few were close enough to be compared in float64


def test_float64_is_told_apart_in_float64() -> None:
    codebook = 1 + torch.arange(50, dtype=torch.float64)[:, None] * 1e-13
    assert torch.equal(nearest(codebook + 2e-14, codebook), torch.arange(50))
    assert torch.equal(nearest(codebook * 1e140, codebook * 1e140), torch.arange(50))
    with pytest.raises(ValueError, match=r"z .*too large.* x"):
        nearest(codebook * 1e160, codebook)
    with pytest.raises(ValueError, match=r"codebook .*too large"):
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


def test_an_unknown_distance_and_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="distance is 'manhattan', expected euclidean or cosine"):
        nearest(torch.zeros(1, 1), torch.zeros(1, 1), "manhattan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected floats, got z of torch.int64"):
        nearest(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1))


INTERPRETED = """
import json, sys, torch
from tokenizer.search import cuda as search_cuda
from tokenizer.search import tiles as search_tiles
wrong = []
for m, n, k, programs, small in json.loads(sys.argv[1]):
    generator = torch.Generator().manual_seed(m)
    z, entries = torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator)
    entries[n // 2] = entries[0]
    offset = torch.randn(n, generator=generator)
    offset[n // 2] = offset[0]
    expected = search_tiles.propose(z, entries, offset)
    blocks = search_cuda.BlockSizes(32, 64, 16, 4, 2) if small else search_cuda.BLOCKS
    found = search_cuda.launch(z, entries, offset, blocks, programs)
    close = all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found, expected))
    if not close or [x.dtype for x in found] != [x.dtype for x in expected]:
        wrong.append([m, n, k, programs, small])
print(json.dumps(wrong))
"""


@pytest.mark.skipif(not search_cuda.installed(), reason="triton is not installed")
def test_the_kernel_for_gpus_proposes_as_the_tiles_do() -> None:
    small = [
        (37, 50, 9, 1),
        (5, 300, 2, 8),
        (40, 129, 40, 1),
        (33, 17, 17, 4),
        (1, 1, 2, 1),
        (16, 320, 65, 3),
    ]
    as_used = [(1, 1, 1, 1), (17, 4096, 24, 2), (4096, 17, 8, 300), (300, 130, 33, 4)]
    shapes = [*((*shape, True) for shape in small), *((*shape, False) for shape in as_used)]
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


@pytest.mark.skipif(not search_cuda.installed(), reason="triton is not installed")
def test_a_kernel_that_cannot_be_built_is_done_without_and_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler.")

    search_cuda.runs.cache_clear()
    monkeypatch.setattr(search_cuda, "launch", no_compiler)
    device = torch.device("cpu")
    for _ in range(3):
        assert not search_cuda.runs(device)
    (record,) = caplog.records
    assert "C compiler" in record.getMessage() and "gcc" in record.getMessage()
    # One that gives something else is not used either.
    monkeypatch.setattr(search_cuda, "launch", lambda z, *_: (z, torch.ones(2), z))
    assert not search_cuda.runs(torch.device("meta"))
    search_cuda.runs.cache_clear()
    monkeypatch.setattr(search_cuda, "launch", lambda z, *_: (z, torch.zeros(2), z))
    entered = list[torch.device]()
    monkeypatch.setattr(torch.cuda, "device_of", lambda z: entered.append(z.device) or nullcontext())
    assert search_cuda.runs(device) and entered == [device]  # in which triton launches
    search_cuda.runs.cache_clear()


def test_on_a_gpu_the_kernel_is_used_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_cuda, "propose", lambda *_: "kernel")
    monkeypatch.setattr(Tensor, "is_cuda", True)
    z, entries, offset = normal(4, 3), normal(6, 3, seed=1), normal(6, seed=2)
    for runs in (True, False):
        monkeypatch.setattr(search_cuda, "runs", lambda device, runs=runs: device == z.device and runs)
        found = search_tiles.propose(z, entries, offset)
        assert found == "kernel" if runs else torch.equal(found[1], (z @ entries.T + offset).argmin(1))


# Of cards by their compute capability, bytes of shared memory that a program can have (CUDA C++ Programming
# Guide, compute capabilities).
SHARED_MEMORY = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10}


@pytest.mark.skipif(not search_cuda.installed(), reason="triton is not installed")
@pytest.mark.parametrize(("card", "width"), [(80, 64), (86, 64), (90, 8), (90, 64), (90, 256)])
def test_the_kernel_compiles_for_cards_without_spills(
    card: int, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    blocks, kernel = search_cuda.BLOCKS, search_cuda.search_kernel()
    constants = dict(zip(("ROWS", "ENTRIES", "FACTORS"), blocks, strict=False)) | {"WIDTH": width}
    types = {"codes": "*i32", "size": "i32", "total": "i32", "part": "i32"}
    types |= dict.fromkeys(("z", "entries", "offset", "least", "second"), "*fp32")
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    made = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", card, 32),
        options={"num_warps": blocks.warps, "num_stages": blocks.stages},
    )
    assert made.metadata.shared <= SHARED_MEMORY[card]
    assert "tf32" not in made.asm["ptx"] and "fma.rn.f32" in made.asm["ptx"]
    (tmp_path / "kernel.ptx").write_text(made.asm["ptx"])
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    named = f"--gpu-name=sm_{card}{'a' * (card >= 90)}"
    command = [ptxas, "-v", named, tmp_path / "kernel.ptx", "-o", tmp_path / "kernel.cubin"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in said, said
