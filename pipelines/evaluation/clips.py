"""Measures of tokenizers on held-out clips, at every number of codebooks.

Left out: the measures themselves, which differ from kind to kind (`sounds.py`).
"""

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from torch import Tensor

from pipelines.data.clips import Clips
from pipelines.evaluation.speech import SpeechScores
from pipelines.evaluation.tokenizers import Means, Measured
from pipelines.run.progress import progress
from tokenizer import Tokenizer
from tokenizer.metrics import CodeUsage
from tokenizer.sound_metrics import bitrate


@torch.no_grad()
def evaluate_clips(
    tok: Tokenizer,
    clips: Clips,
    accelerator: Accelerator,
    measure: Callable[[Means, Tensor, Tensor, int], None],
    scores: SpeechScores | None = None,
    thorough: bool = False,
) -> Measured:
    """Means over `clips` by number of codebooks, each clip counted once over all processes: what `measure`
    and `scores` take of x_hat and x (1, C, T) in [-1, 1]. Without `thorough`, or where the first codebooks do
    not decode alone, only for all codebooks. The number of a VAE is 0. Without clips there are none.

    Of `scores`, those that take long are taken for all codebooks alone. With codes also the bitrate (bits per
    second) and, for all codebooks, usage and perplexity, of all and of each, and, if `thorough`, encode_speed
    and decode_speed (seconds of the clip per second; on a CPU, with one thread). A clip is left out from
    where it can no longer be read, and named in the log. Leaves the tokenizer in eval mode.
    """
    tok.eval()
    most, rate = tok.bottleneck.num_codebooks, tok.modality.sample_rate
    usage = CodeUsage(most, tok.codebook_size, device=accelerator.device) if most else None
    means = {k: Means() for k in measured_codebooks(tok, thorough)}
    mine = range(accelerator.process_index, len(clips), accelerator.num_processes)
    bar = progress(len(mine), "measure", 0, accelerator.is_main_process and thorough)
    with one_thread(thorough), scores or contextlib.nullcontext(), bar:
        for i in mine:
            for piece in clips.pieces(i):
                x = piece[None].to(accelerator.device)
                for k, x_hat in rebuilt(tok, x, means, usage):
                    x_hat = x_hat.float().clamp(-1, 1)
                    measure(means[k], x_hat, x, rate)
                    if scores is not None:
                        scores.measure(means[k].add, x_hat, x, slow=k == most)
            bar.update()
    rows = {k: mean.over_processes(accelerator) for k, mean in means.items()}
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
    counts = None if usage is None else usage.counts.cpu()
    return Measured(rows[most], {k: row for k, row in rows.items() if row}, counts)


def measured_codebooks(tok: Tokenizer, thorough: bool) -> list[int]:
    """The numbers of codebooks that are measured, all of them last."""
    most = tok.bottleneck.num_codebooks
    return list(range(1, most + 1)) if most and thorough and tok.bottleneck.prefix_decodes else [most]


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
