"""The benchmark `search`: speed of the search for nearest entries, and of `vq` around it, beside its peers.

Left out: quality of what is learnt; codes are exact here, so only time and memory differ.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor

from pipelines.benchmarks.registry import (
    benchmark,
    chosen_device,
    in_turns,
    machine,
    plain,
    print_table,
    ratios,
    spread,
    synchronizer,
)
from pipelines.benchmarks.search.memory import search_memory
from pipelines.benchmarks.search.tune import chosen_table, tune
from tokenizer.bottlenecks.vq import VQConfig
from tokenizer.distributed import keyed_generator
from tokenizer.installation import install_extra
from tokenizer.search import cpu, cuda
from tokenizer.search.exact import nearest
from tokenizer.variants import require

Shape = tuple[int, int, int]
Jobs = dict[str, Callable[[], object]]

# Package → the module it is imported as.
PEERS = {"faiss-cpu": "faiss", "vector-quantize-pytorch": "vector_quantize_pytorch"}
# What is compared with what: ours → the others.
COMPARED = {
    "nearest": (
        "nearest torch",
        "torch.mm",
        "torch.cdist",
        "faiss",
        "VectorQuantize eval",
    ),
    "vq eval": ("torch.mm", "VectorQuantize eval"),
    "vq train": ("torch.mm", "VectorQuantize train"),
}
MEMORY_SHAPE = (65536, 262144, 8)


@dataclass(frozen=True)
class SearchBenchmark:
    """Options of benchmark.py search."""

    shapes: tuple[str, ...] = ("16384x8192x64", "16384x16384x8", "16384x16384x256", "16384x1024x64")
    """Vectors x entries x dimensions, one measurement each."""
    turns: int = 10
    """Timed turns; 10 or more for numbers that go elsewhere."""
    warm_up: int = 2
    """Turns before them that do not count."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    memory: bool = False
    """Also measure the memory that searching 65536 vectors among 262144 entries of 8 dimensions takes, on the
    CPU, in a process of its own."""
    tune: bool = False
    """Measure the search's kernel on the GPU with other blocks at these shapes instead, and write the fastest
    for each number of dimensions into a table, which the search then reads."""
    table: Path | None = None
    """Where --tune writes it; left out: where the search looks, TOKENLOOM_SEARCH_TABLE of the environment or
    search-blocks.json in the user's cache folder (~/.cache/tokenloom)."""
    output: Path | None = None
    """Folder for benchmark-search.json."""

    def __post_init__(self) -> None:
        require(self.table is None or self.tune, "--table names what --tune writes; give both, or neither")
        require(len(self.shapes) > 0, "shapes is empty, expected one or more such as 16384x1024x64")
        for shape in self.shapes:
            parse_shape(shape)
        require(self.turns >= 1, f"turns is {self.turns}, expected 1 or more")
        require(self.warm_up >= 0, f"warm_up is {self.warm_up}, expected 0 or more")


def parse_shape(text: str) -> Shape:
    """(M, N, D) of "MxNxD"; `ValueError` for anything else."""
    words = text.split("x")
    good = len(words) == 3 and all(word.isdecimal() and int(word) > 0 for word in words)
    require(good, f"shape is {text!r}, expected vectors x entries x dimensions such as 16384x1024x64")
    m, n, d = map(int, words)
    return m, n, d


def by_torch_alone(z: Tensor, codebook: Tensor) -> Tensor:
    """`nearest` without compiled loops, as where numba is not installed."""
    with patch.object(cpu, "installed", lambda: False):
        return nearest(z, codebook)


def jobs(shape: Shape, device: torch.device) -> Jobs:
    """What is timed at a shape (M, N, D): ours, on a CPU what it is there without numba, the bare product,
    and those peers that are installed."""
    m, n, d = shape
    z = torch.randn(m, d, generator=keyed_generator(0, "z")).to(device)
    codebook = torch.randn(n, d, generator=keyed_generator(0, "codebook")).to(device)
    products = torch.empty(m, n, device=device)
    found: Jobs = {
        "nearest": lambda: nearest(z, codebook),
        "torch.mm": lambda: torch.mm(z, codebook.T, out=products),
        "torch.cdist": lambda: torch.cdist(z, codebook).argmin(1),
    }
    if device.type == "cpu":
        found["nearest torch"] = partial(by_torch_alone, z, codebook)
    grid = z.T[None].contiguous()
    for name, training in (("vq eval", False), ("vq train", True)):
        vq: Any = VQConfig(codebook_size=n, dim=d, codebook_dim=d, kmeans_steps=0).build().to(device)
        vq.codebook.entries.data.copy_(codebook)
        vq.train(training)
        found[name] = lambda vq=vq: vq(grid)  # type: ignore[misc]
    if find_spec(PEERS["faiss-cpu"]) and device.type == "cpu":
        found["faiss"] = faiss_search(z, codebook)
    if find_spec(PEERS["vector-quantize-pytorch"]):
        from vector_quantize_pytorch import VectorQuantize

        for name, training in (("VectorQuantize eval", False), ("VectorQuantize train", True)):
            peer = VectorQuantize(dim=d, codebook_size=n, decay=0.99).to(device).train(training)
            found[name] = lambda peer=peer: peer(z[None])  # type: ignore[misc]
    return found


def faiss_search(z: Tensor, codebook: Tensor) -> Callable[[], object]:
    """FAISS's exact search, with as many threads as torch."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.numpy())
    return lambda: index.search(z.numpy(), 1)


def compare(shape: Shape, options: SearchBenchmark, device: torch.device) -> dict[str, Any]:
    """Milliseconds of every job at a shape, and the ratios of ours to the others, turn by turn."""
    seconds = in_turns(jobs(shape, device), options.turns, options.warm_up, synchronizer(device))
    return {
        "milliseconds": {name: spread([1000 * s for s in values]) for name, values in seconds.items()},
        "ratio": {
            mine: {other: ratios(seconds[mine], seconds[other]) for other in others if other in seconds}
            for mine, others in COMPARED.items()
        },
    }


def show(results: dict[str, dict[str, Any]], missing: list[str], where: dict[str, Any]) -> None:
    """The tables of all shapes on stdout."""
    print(f"{where['device']}, {where['threads']} threads\n")
    for shape, result in results.items():
        times, ratio = result["milliseconds"], result["ratio"]
        print_table(
            f"{shape} (vectors x entries x dimensions): median over turns (least..greatest);\n"
            "ours / the one in the row, below 1 is faster",
            [
                ("", "milliseconds", *(f"{mine} /" for mine in ratio)),
                *((name, times[name], *(r.get(name, "") for r in ratio.values())) for name in times),
            ],
        )
    if missing:
        print(f"Not installed, so not compared: {', '.join(missing)} ({install_extra('bench')})")
    print("  ".join(f"{k} {v}" for k, v in where["versions"].items()))
    print(f"{where['command']}\n")


def show_memory(row: dict[str, float], shape: Shape) -> None:
    """The table of memory on stdout."""
    print_table(
        f"Searching {'x'.join(map(str, shape))}: peak resident memory above that before, MiB",
        [
            ("additional", "(vectors and entries)", "(codes)", "(a table of all distances)"),
            tuple(f"{row[c]:.1f}" for c in ("additional_mib", "inputs_mib", "codes_mib", "table_mib")),
        ],
    )


@benchmark(
    "search",
    SearchBenchmark,
    "Speed of the search for nearest entries and of vq, beside torch.mm, torch.cdist, FAISS and "
    f"vector-quantize-pytorch ({install_extra('bench')}); --memory: its memory; --tune: its blocks on a GPU.",
)
def measure_search(options: SearchBenchmark) -> dict[str, Any]:
    """Compare at every shape, and measure memory if asked to; or measure blocks of the kernel for GPUs."""
    device = chosen_device(options.device)
    if options.tune:
        return measure_blocks(options, device)
    missing = [package for package, module in PEERS.items() if not find_spec(module)]
    where = machine(device, "numba", *PEERS)
    results = {text: compare(parse_shape(text), options, device) for text in options.shapes}
    show(results, missing, where)
    values: dict[str, Any] = {**where, "turns": options.turns, "missing": missing, "shapes": plain(results)}
    if options.memory:
        values["memory"] = search_memory(MEMORY_SHAPE)
        show_memory(values["memory"], MEMORY_SHAPE)
    return values


def measure_blocks(options: SearchBenchmark, device: torch.device) -> dict[str, Any]:
    """`tune` at the shapes; `ValueError` where the kernel does not run."""
    table = chosen_table(options.table)
    if device.type != "cuda":
        raise ValueError("--tune measures the kernel for GPUs, and there is none here; run it where one is")
    if not cuda.runs(device):
        raise ValueError(f"--tune: the kernel does not run on {device}; install triton and a C compiler")
    where = machine(device, "triton")
    shapes = [parse_shape(text) for text in options.shapes]
    return {**where, "turns": options.turns, **tune(shapes, options.turns, options.warm_up, device, table)}
