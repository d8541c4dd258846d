"""The benchmark `audio`: speed of encoding and decoding sound beside EnCodec's, and memory for long sound.

Left out: quality (`evaluate.py`), and training; the weights are random unless a tokenizer is given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pipelines.benchmarks.audio.codecs import DEFAULT_PRESET, Codec, encodec, load_tokenizer, ours
from pipelines.benchmarks.audio.memory import encoding_memory
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
from tokenizer.distributed import keyed_generator
from tokenizer.installation import install_extra
from tokenizer.variants import at_least, require

SIDES = ("encode", "decode", "both")


@dataclass(frozen=True)
class AudioBenchmark:
    """Options of benchmark.py audio."""

    preset: str = ""
    """Ours: the model of a preset of train_tokenizer.py, with random weights; left out, audio-16k."""
    tokenizer: str = ""
    """Ours: folder or Hub id of a tokenizer of sound, in place of a preset."""
    seconds: float = 10.0
    """Length of the sound, the same for both; each at its own rate."""
    batch_size: int = 1
    """Sounds at once."""
    turns: int = 12
    """Timed turns; 10 or more for numbers that go elsewhere."""
    warm_up: int = 2
    """Turns before them that do not count."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    memory: bool = False
    """Also measure the memory that encoding a long sound takes, on the CPU, in processes of their own."""
    memory_seconds: float = 3600.0
    """Length of that sound."""
    output: Path | None = None
    """Folder for benchmark-audio.json."""

    def __post_init__(self) -> None:
        require(not (self.preset and self.tokenizer), "--preset and --tokenizer are both given; choose one")
        require(0 < self.seconds <= 600, f"seconds is {self.seconds}, expected more than 0 and at most 600")
        require(self.memory_seconds > 0, f"memory_seconds is {self.memory_seconds}, expected more than 0")
        at_least(self, 1, "batch_size", "turns")
        at_least(self, 0, "warm_up")


@torch.inference_mode()
def compare(mine: Codec, peer: Codec, options: AudioBenchmark, device: torch.device) -> dict[str, Any]:
    """Real-time factors of both, and ratios of ours to the peer's; float32, inference mode."""
    jobs: dict[str, Callable[[], object]] = {}
    for who, codec in (("ours", mine), ("peer", peer)):
        shape = (options.batch_size, codec.channels, max(1, round(options.seconds * codec.sample_rate)))
        x = 0.1 * torch.randn(shape, generator=keyed_generator(0, who)).to(device)
        encoded = codec.encode(x)
        jobs[f"{who} encode"] = lambda codec=codec, x=x: codec.encode(x)  # type: ignore[misc]
        jobs[f"{who} decode"] = lambda codec=codec, e=encoded: codec.decode(e)  # type: ignore[misc]
    seconds = in_turns(jobs, options.turns, options.warm_up, synchronizer(device))
    for who in ("ours", "peer"):
        both = zip(seconds[f"{who} encode"], seconds[f"{who} decode"], strict=True)
        seconds[f"{who} both"] = [a + b for a, b in both]
    sound = options.seconds * options.batch_size
    result: dict[str, Any] = {"real_time_factor": {}, "time_ratio": {}, "time_per_parameter_ratio": {}}
    for side in SIDES:
        a, b = seconds[f"ours {side}"], seconds[f"peer {side}"]
        result["real_time_factor"][side] = {
            "ours": spread([sound / t for t in a]),
            "peer": spread([sound / t for t in b]),
        }
        result["time_ratio"][side] = ratios(a, b)
        scale = peer.parameters(side) / mine.parameters(side)
        result["time_per_parameter_ratio"][side] = ratios(a, b, scale)
    return result


def show(mine: Codec, peer: Codec, result: dict[str, Any], where: dict[str, Any]) -> None:
    """The tables of a comparison on stdout."""
    print_table(
        f"{where['device']}, {where['threads']} threads",
        [
            ("", "rate", "kbit/s", "encoder", "decoder"),
            *(
                (
                    codec.name,
                    f"{codec.sample_rate} Hz",
                    f"{codec.kbits_per_second:.3g}",
                    *(f"{codec.parameters(side) / 1e6:.2f} M parameters" for side in SIDES[:2]),
                )
                for codec in (mine, peer)
            ),
        ],
    )
    factors = result["real_time_factor"]
    print_table(
        "Seconds of sound per second: median over turns (least..greatest)",
        [
            ("", mine.name, peer.name),
            *((side, factors[side]["ours"], factors[side]["peer"]) for side in SIDES),
        ],
    )
    print_table(
        f"{mine.name} / {peer.name}, below 1 is faster; A: time per second of sound,\n"
        "B: the same / parameters of the network (encoder, decoder, both; codebooks not counted)",
        [
            ("", "A", "B"),
            *((s, result["time_ratio"][s], result["time_per_parameter_ratio"][s]) for s in SIDES),
        ],
    )
    print("  ".join(f"{k} {v}" for k, v in where["versions"].items()))
    print(f"{where['command']}\n")


def show_memory(rows: dict[str, dict[str, float]], seconds: float) -> None:
    """The table of memory on stdout."""
    columns = ("additional_mib", "waveform_mib", "codes_mib", "before_mib")
    print_table(
        f"Encoding {seconds:g} s: peak resident memory above that before, MiB",
        [
            ("", "additional", "(waveform)", "(codes)", "(before, with model and waveform)"),
            *((way, *(f"{row[c]:.1f}" for c in columns)) for way, row in rows.items()),
        ],
    )


@benchmark(
    "audio",
    AudioBenchmark,
    f"Speed of encoding and decoding sound, beside EnCodec of transformers ({install_extra('bench')}); "
    "--memory: memory for long sound.",
)
def measure_audio(options: AudioBenchmark) -> dict[str, Any]:
    """Compare, and measure memory if asked to."""
    device = chosen_device(options.device)
    name = options.tokenizer or options.preset or DEFAULT_PRESET
    mine = ours(load_tokenizer(options.preset, options.tokenizer), name, device)
    peer = encodec(device)
    where = machine(device, "transformers")
    result = compare(mine, peer, options, device)
    show(mine, peer, result, where)
    values: dict[str, Any] = {**where, "ours": mine.described(), "peer": peer.described()}
    values |= {"seconds": options.seconds, "batch_size": options.batch_size, "turns": options.turns}
    values |= plain(result)
    if options.memory:
        values["memory"] = encoding_memory(options.preset, options.tokenizer, options.memory_seconds)
        show_memory(values["memory"], options.memory_seconds)
    return values
