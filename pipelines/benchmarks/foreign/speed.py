"""The benchmark `foreign`: clips of unequal lengths through our tokenizer and through the library whose model
it wraps, in turns.

Left out: quality, which is the library's, and pictures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.benchmarks.foreign.codecs import CODEBOOKS, CONFIGS, Codec, codec_of
from pipelines.benchmarks.registry import (
    Spread,
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
from tokenizer.distributed import keyed_generator
from tokenizer.installation import install_extra
from tokenizer.variants import at_least, require

# What is compared: ours, the library's, in words.
PAIRS = {
    "encode, item by item": ("ours encode", "their items"),
    "encode, padded batch": ("ours encode", "their batch"),
    "decode, item by item": ("ours decoded items", "their decoded items"),
    "decode, batch": ("ours decoded batch", "their decoded batch"),
}


@dataclass(frozen=True)
class ForeignBenchmark:
    """Options of benchmark.py foreign."""

    codecs: tuple[str, ...] = tuple(CONFIGS)
    """Which ones."""
    scale: int = 4
    """How many times narrower than the well-known weights all layers are: 1, 2, 4 or 8."""
    clips: int = 60
    """Clips, of lengths spread evenly from --shortest to --longest."""
    shortest: float = 0.3
    """Seconds."""
    longest: float = 3.0
    """Seconds."""
    turns: int = 10
    """Timed turns; 10 or more for numbers that go elsewhere."""
    warm_up: int = 2
    """Turns before them that do not count."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    output: Path | None = None
    """Folder for benchmark-foreign.json."""

    def __post_init__(self) -> None:
        known = f"expected of {', '.join(CONFIGS)}"
        require(bool(self.codecs) and set(self.codecs) <= set(CONFIGS), f"codecs are {self.codecs}, {known}")
        require(self.scale in (1, 2, 4, 8), f"scale is {self.scale}, expected 1, 2, 4 or 8")
        require(
            0.1 <= self.shortest <= self.longest <= 60,
            f"shortest is {self.shortest} and longest {self.longest}, expected 0.1 to 60, the shortest first",
        )
        at_least(self, 1, "clips", "turns")
        at_least(self, 0, "warm_up")


def clips_of(codec: Codec, options: ForeignBenchmark, device: torch.device) -> list[Tensor]:
    """Noise of whole frames, (1, 1, T) each, in no order of length: of these the library's padded batch has
    the codes that each has alone."""
    rate, stride = codec.tok.sample_rate, codec.tok.stride
    generator = keyed_generator(0, "clips")
    seconds = torch.linspace(options.shortest, options.longest, options.clips)
    frames = (seconds * rate / stride).round().long().clamp(min=1)
    counts: list[int] = frames[torch.randperm(options.clips, generator=generator)].tolist()
    return [(0.1 * torch.randn(1, 1, n * stride, generator=generator)).to(device) for n in counts]


@torch.inference_mode()
def compare(codec: Codec, options: ForeignBenchmark, device: torch.device) -> dict[str, Any]:
    """Ratios of ours to the library's, turn by turn, in float32, and at how many positions codes differ."""
    clips, tok = clips_of(codec, options, device), codec.tok
    lengths = [clip.shape[2] for clip in clips]
    x = torch.cat([F.pad(clip, (0, max(lengths) - clip.shape[2])) for clip in clips])
    codes = tok.encode(x, lengths, CODEBOOKS)
    items = [row[None, :, : n // tok.stride] for row, n in zip(codes, lengths, strict=True)]
    differing = sum(int((codec.encode(c) != i).sum()) for c, i in zip(clips, items, strict=True))
    jobs: dict[str, Callable[[], object]] = {
        "ours encode": lambda: tok.encode(x, lengths, CODEBOOKS),
        "their items": lambda: [codec.encode(clip) for clip in clips],
        "ours decoded items": lambda: [tok.decode(item) for item in items],
        "their decoded items": lambda: [codec.decode(item) for item in items],
        "ours decoded batch": lambda: tok.decode(codes),
        "their decoded batch": lambda: codec.decode(codes),
    }
    if codec.batched:
        jobs["their batch"] = lambda: codec.encode(x)
    seconds = in_turns(jobs, options.turns, options.warm_up, synchronizer(device))
    found = {k: ratios(seconds[a], seconds[b]) for k, (a, b) in PAIRS.items() if b in seconds}
    return {
        "ratios": found,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "positions_that_differ": differing,
        "positions": sum(item.numel() for item in items),
    }


@benchmark(
    "foreign",
    ForeignBenchmark,
    "Clips of unequal lengths through tokenizers of another library, as ours and by its own calls "
    f"({install_extra('foreign')}).",
)
def measure_foreign(options: ForeignBenchmark) -> dict[str, Any]:
    """Compare every codec."""
    device = chosen_device(options.device)
    where = machine(device, "transformers")
    found = {name: compare(codec_of(name, options.scale, device), options, device) for name in options.codecs}
    rows: list[list[object]] = [["", *found]]
    for pair in PAIRS:
        cells: list[Spread | str] = [values["ratios"].get(pair, "-") for values in found.values()]
        rows.append([pair, *cells])
    rows.append(
        ["codes that differ", *(f"{v['positions_that_differ']} of {v['positions']}" for v in found.values())]
    )
    print_table(
        f"{where['device']}, {where['threads']} threads; {options.clips} clips of {options.shortest:g} to "
        f"{options.longest:g} s, widths / {options.scale}\n"
        "Time of ours / the library's, below 1 is faster: median over turns (least..greatest)",
        rows,
    )
    print("  ".join(f"{k} {v}" for k, v in where["versions"].items()))
    print(f"{where['command']}\n")
    sizes = {"scale": options.scale, "clips": options.clips, "turns": options.turns}
    return {**where, **sizes, "codecs": plain(found)}
