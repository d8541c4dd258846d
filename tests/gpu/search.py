"""Checks of the search on a device: codes, errors, blocks, time.

Left out: the search on CPUs, which others test (tests/tokenizer/search/).
"""

import itertools
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from pipelines.benchmarks.registry import in_turns, ratios, spread, synchronizer
from pipelines.benchmarks.search import tune as tuning
from tests.gpu.card import NotRun
from tests.helpers.brute_force import normal
from tokenizer.search import blocks as tables
from tokenizer.search import cuda as search_cuda
from tokenizer.search.exact import Distance, nearest

Shape = tuple[int, int, int]
KINDS = ("normal", "ties", "crowded", "entries", "far", "tiny")
DISTANCES: tuple[Distance, ...] = ("euclidean", "cosine")


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Products of float32 in `name` precision; as before afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def vectors(kind: str, m: int, n: int, d: int) -> tuple[Tensor, Tensor]:
    """z (m, d) and a codebook (n, d) of a kind, on the CPU."""
    z, codebook = normal(m, d), normal(n, d, seed=1)
    if kind == "ties":  # equal entries, and vectors halfway between others
        return (2 * z).round() / 2, codebook.round()
    if kind == "crowded":
        few = codebook[: max(1, n // 100)]
        return z, few.repeat(-(-n // len(few)), 1)[:n]
    if kind == "entries":
        return codebook[torch.arange(m) % n] + 1e-7 * z, codebook
    scale = {"normal": 1.0, "far": 1e20, "tiny": 1e-20}[kind]
    return z * scale, codebook * scale


def codes_of_a_cpu(device: torch.device, shapes: Sequence[Shape], kinds: Sequence[str]) -> int:
    """How many codes there are; all are those of a CPU."""
    count = 0
    for (m, n, d), kind, distance in itertools.product(shapes, kinds, DISTANCES):
        z, codebook = vectors(kind, m, n, d)
        found = nearest(z.to(device), codebook.to(device), distance)
        assert found.device.type == device.type and found.dtype == torch.int64
        differing = int((found.cpu() != nearest(z, codebook, distance)).sum())
        assert not differing, f"{differing} of {m} codes differ ({m}x{n}x{d}, {kind}, {distance})"
        count += m
    return count


def errors_of_a_cpu(device: torch.device) -> int:
    """How many kinds of bad values there are; each is refused in the words that a CPU has for it."""
    count = 0
    for value, place, which, distance in itertools.product(
        ("nan", "inf", "-inf"), ((0, 0), (-1, -1)), ("z", "codebook"), DISTANCES
    ):
        given = dict(zip(("z", "codebook"), vectors("normal", 1000, 9, 3), strict=True))
        given[which][place] = float(value)
        said = []
        for where in (torch.device("cpu"), device):
            try:
                nearest(given["z"].to(where), given["codebook"].to(where), distance)
            except ValueError as error:
                said.append(str(error))
        assert len(said) == 2 and said[0] == said[1], f"{value} in {which}, {distance}: {said}"
        count += 1
    return count


def kernel_runs(device: torch.device) -> None:
    """The kernel is used; `NotRun` where nothing can build it."""
    if not search_cuda.installed():
        raise NotRun("triton is missing")
    if not any(map(shutil.which, ("gcc", "clang", "cc"))):
        raise NotRun("there is no C compiler")
    assert search_cuda.runs(device)


def usable_blocks(device: torch.device, shapes: Sequence[Shape]) -> str:
    """Which of the blocks that --tune tries run, and propose what the usual ones do."""
    found = []
    for shape in shapes:
        job = tuning.kernels(shape, device)
        found += [tuning.runs([job], blocks) for blocks in tuning.CANDIDATES]
    assert all(found[:: len(tuning.CANDIDATES)]), "the usual blocks do not run"
    return f"{sum(found)} of {len(found)} pairs of blocks and shapes run"


def tuned(device: torch.device, shapes: Sequence[Shape], turns: int, folder: Path) -> list[str]:
    """Measure blocks and search by the table of them; for each width what was chosen, with its ratio."""
    table = folder / "table.json"
    values = tuning.tune(shapes, turns, 2, device, table)
    with patch.object(search_cuda, "table_path", lambda: table):
        search_cuda.blocks_on.cache_clear()
        for width, measured in values["widths"].items():
            chosen = tables.BlockSizes(**measured["blocks"])
            if device.type == "cuda":
                assert search_cuda.blocks_on(device, int(width)) == chosen
            codes_of_a_cpu(device, [(3000, 700, int(width))], ["normal"])
    search_cuda.blocks_on.cache_clear()
    lines = []
    for width, measured in values["widths"].items():
        chosen = tables.BlockSizes(**measured["blocks"])
        ratio = measured["ratio"][str(tuple(chosen))]
        spread = f"{ratio['median']:.3f} ({ratio['low']:.3f}..{ratio['high']:.3f})"
        lines.append(f"D {width}: {tuple(chosen)}, time / usual {spread}")
    return lines


def timed(device: torch.device, shape: Shape, turns: int) -> str:
    """Milliseconds of the search, and its time beside the bare product and the search without the kernel."""
    m, n, d = shape
    z, codebook = (normal(k, d, seed=k).to(device) for k in (m, n))
    products = torch.empty(m, n, device=device)

    def by_tiles() -> Tensor:
        with patch.object(search_cuda, "runs", lambda device: False):
            return nearest(z, codebook)

    jobs = {
        "nearest": lambda: nearest(z, codebook),
        "torch.mm": lambda: torch.mm(z, codebook.T, out=products),
        "tiles": by_tiles,
    }
    seconds = in_turns(jobs, turns, 3, synchronizer(device))
    ours = seconds["nearest"]
    others = ", ".join(f"/ {name} {ratios(ours, seconds[name])}" for name in ("torch.mm", "tiles"))
    return f"{'x'.join(map(str, shape))}: {spread([1000 * s for s in ours])} ms, {others}"
