"""Measures of tokenizers of sound on held-out clips, at every number of codebooks.

Left out: pictures (`tokenizers.py`), and the measures themselves (`tokenizer.sound_metrics`).
"""

import contextlib
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from pipelines.data.sounds import Clips
from pipelines.evaluation.speech import SpeechScores, helper_count
from pipelines.run.progress import progress
from tokenizer import Tokenizer
from tokenizer.metrics import CodeUsage
from tokenizer.sound_metrics import available, bitrate, is_silent, si_sdr
from tokenizer.spectral import mel_distance, stft_distance

logger = logging.getLogger(__name__)

# Longer clips are measured in equal pieces of at most so many seconds, each of which counts as a clip.
PIECE_SECONDS = 30

# {number of codebooks: {measure: mean}}
Rates = dict[int, dict[str, float]]


class Measured(NamedTuple):
    """Means by number of codebooks, and how often each code occurred, (K, N); None for a VAE."""

    rates: Rates
    counts: Tensor | None


class Means:
    """Sums of measures, and how many items each was taken of."""

    def __init__(self) -> None:
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.counts: defaultdict[str, float] = defaultdict(float)

    def add(self, name: str, total: float, count: float) -> None:
        """Take in `count` items whose values add up to `total`."""
        self.sums[name] += total
        self.counts[name] += count

    def over_processes(self) -> dict[str, float]:
        """The means of what all processes took in; without those that nothing could be measured of."""
        # accelerate gathers the items of an object, so each process gives a list of one.
        parts = gather_object([(dict(self.sums), dict(self.counts))])
        names = list(dict.fromkeys(name for sums, _ in parts for name in sums))
        totals = {
            n: (sum(s.get(n, 0.0) for s, _ in parts), sum(c.get(n, 0.0) for _, c in parts)) for n in names
        }
        return {name: total / count for name, (total, count) in totals.items() if count > 0}


@torch.no_grad()
def evaluate_sound(
    tok: Tokenizer, clips: Clips, accelerator: Accelerator, thorough: bool = False
) -> Measured:
    """Means over `clips` by number of codebooks, each clip counted once over all processes. Without
    `thorough`, or where the first codebooks do not decode alone, only for all codebooks. The number of a VAE
    is 0. Without clips there are none.

    Means are bitrate (bits per second), l1, mel_distance, stft_distance and si_sdr (dB, of what is not
    silent); with `thorough` also stoi and pesq where their packages are installed; for all codebooks also
    usage and perplexity, of all and of each, and, if `thorough`, encode_speed and decode_speed (seconds of
    sound per second; on a CPU, with one thread). A clip is left out from where it can no longer be read, and
    named in the log. Leaves the tokenizer in eval mode.
    """
    tok.eval()
    most, rate = tok.bottleneck.num_codebooks, tok.modality.sample_rate
    usage = CodeUsage(most, tok.codebook_size, device=accelerator.device) if most else None
    each = thorough and tok.bottleneck.prefix_decodes
    means = {k: Means() for k in (range(1, most + 1) if each else [most])}
    mine = range(accelerator.process_index, len(clips), accelerator.num_processes)
    seconds = len(means) * sum(map(clips.samples, mine)) / rate
    helpers = helper_count(seconds, int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)))
    speech = SpeechScores(available() if thorough else (), rate, helpers)
    bar = progress(len(mine), "measure", 0, accelerator.is_main_process and thorough)
    with one_thread(thorough), speech, bar:
        for i in mine:
            for block in readable_blocks(clips, i):
                x = block[None].to(accelerator.device)
                for k, x_hat in rebuilt(tok, x, means, usage):
                    x_hat = x_hat.float().clamp(-1, 1)
                    measure(means[k], x_hat, x, rate)
                    speech.measure(means[k].add, x_hat, x)
            bar.update()
    rows = {k: mean.over_processes() for k, mean in means.items()}
    for name in ("encode", "decode"):
        pace = rows[most].pop(f"{name}_pace", 0.0)
        if thorough and pace:
            rows[most][f"{name}_speed"] = 1 / pace
    if usage is not None and rows[most]:
        usage.reduce()
        rows[most] |= usage_values(usage)
        rows = {
            k: {"bitrate": bitrate(k, tok.bits_per_code, tok.stride, rate), **row} for k, row in rows.items()
        }
    return Measured({k: row for k, row in rows.items() if row}, None if usage is None else usage.counts.cpu())


def headline(measured: Measured) -> dict[str, float]:
    """The measures for all codebooks, less those of the machine; {} if there are none."""
    best = measured.rates[max(measured.rates)] if measured.rates else {}
    return {k: v for k, v in best.items() if not k.endswith("_speed")}


def readable_blocks(clips: Clips, i: int) -> Iterator[Tensor]:
    """Clip i in equal pieces (C, T) of at most `PIECE_SECONDS`; none from where it cannot be read, and a
    line in the log."""
    samples = clips.samples(i)
    pieces = math.ceil(samples / (PIECE_SECONDS * clips.sample_rate))
    try:
        yield from clips.blocks(i, math.ceil(samples / pieces))
    except (ValueError, OSError) as error:
        logger.warning("left out a sound that can no longer be read: %s", error)


def rebuilt(
    tok: Tokenizer, x: Tensor, means: dict[int, Means], usage: CodeUsage | None
) -> Iterator[tuple[int, Tensor]]:
    """x (1, C, T) rebuilt from each number of codebooks in `means`. Codes are counted; for all codebooks,
    the seconds that a second of sound takes are, too."""
    if usage is None:
        yield 0, tok.decode_latents(tok.posterior(x).mode(), x.shape[2])
        return
    most = max(means)
    with timed(means[most], "encode_pace", x, tok.modality.sample_rate):
        codes = tok.encode(x)
    usage.update(codes)
    for k in means:
        with timed(means[most] if k == most else Means(), "decode_pace", x, tok.modality.sample_rate):
            x_hat = tok.decode(codes[:, :k], size=x.shape[2])
        yield k, x_hat


@contextlib.contextmanager
def timed(mean: Means, name: str, x: Tensor, sample_rate: int) -> Iterator[None]:
    """Add the seconds that the `with` block takes, of as many as x (1, C, T) lasts."""
    start = time.perf_counter()
    yield
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    mean.add(name, time.perf_counter() - start, x.shape[2] / sample_rate)


def measure(mean: Means, x_hat: Tensor, x: Tensor, sample_rate: int) -> None:
    """Take the measures of x_hat against x, (B, C, T) both, but for those of speech, into `mean`."""
    everyone = torch.ones(len(x), device=x.device)
    scores = {
        "l1": ((x_hat - x).abs().flatten(1).mean(1), everyone),
        "mel_distance": (mel_distance(x_hat, x, sample_rate), everyone),
        "stft_distance": (stft_distance(x_hat, x), everyone),
        "si_sdr": (si_sdr(x_hat, x), ~is_silent(x)),
    }
    for name, (values, measured) in scores.items():
        mean.add(name, float(values.double().sum()), float(measured.sum()))


@contextlib.contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Within the context, where `wanted`, torch uses one thread of the CPU: the steps over one clip are so
    short that on a busy machine threads wait for each other several times as long as they work."""
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if wanted:
            torch.set_num_threads(before)


def usage_values(usage: CodeUsage) -> dict[str, float]:
    """Usage and perplexity: the means over the codebooks, and of each."""
    named = {"usage": usage.usage(), "perplexity": usage.perplexity()}
    values = {name: float(v.mean()) for name, v in named.items()}
    several = len(named["usage"]) > 1
    each = {f"{n}_{k}": float(u) for n, v in named.items() for k, u in enumerate(v, 1) if several}
    return values | each
