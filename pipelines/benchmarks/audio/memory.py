"""The memory that encoding a long sound takes: its peak in a fresh process, above model and waveform.

Left out: memory of GPUs, and of training.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pipelines.benchmarks.audio.codecs import load_tokenizer
from pipelines.benchmarks.process_memory import MIB, peak
from pipelines.run.own_process import in_own_process
from tokenizer import Tokenizer

# encode: the waveform is in memory and goes to `encode`, which takes it in chunks; encode_stream: chunks of
# a second are made on the fly, and nothing is there as a whole but the codes.
WAYS = ("encode", "encode_stream")


def encoding_memory(preset: str, tokenizer: str, seconds: float) -> dict[str, dict[str, float]]:
    """`peak_of_encoding` by way, each in a process of its own, with as many threads as here: a peak never
    falls again."""
    threads, of = torch.get_num_threads(), (preset, tokenizer, seconds)
    return {way: in_own_process(peak_of_encoding, *of, way, threads=threads) for way in WAYS}


def peak_of_encoding(preset: str, tokenizer: str, seconds: float, way: str) -> dict[str, float]:
    """MiB: the peak's growth while a sound is encoded one of the `WAYS`, and what is not in it (the waveform)
    or is (the codes)."""
    tok = load_tokenizer(preset, tokenizer)
    samples = max(1, round(seconds * tok.modality.sample_rate))
    x = noise(tok, samples) if way == "encode" else torch.empty(0)
    before = peak()
    codes = tok.encode(x) if way == "encode" else torch.cat(list(tok.encode_stream(chunks(tok, samples))), 2)
    return {
        "additional_mib": (peak() - before) / MIB,
        "waveform_mib": x.nbytes / MIB,
        "codes_mib": codes.nbytes / MIB,
        "before_mib": before / MIB,
        "frames": float(codes.shape[2]),
    }


def noise(tok: Tokenizer, samples: int) -> Tensor:
    """Quiet noise x (1, C, samples), made in its own memory."""
    return torch.empty(1, tok.modality.channels, samples).uniform_(-0.1, 0.1)


def chunks(tok: Tokenizer, samples: int) -> Iterator[Tensor]:
    """The same in chunks of a second."""
    for start in range(0, samples, tok.modality.sample_rate):
        yield noise(tok, min(tok.modality.sample_rate, samples - start))
