"""Measures of tokenizers of sound on held-out clips.

Left out: the measures themselves (`tokenizer.sound_metrics`, `tokenizer.spectral`).
"""

import os

import torch
from accelerate import Accelerator
from torch import Tensor

from pipelines.data.clips import Clips
from pipelines.evaluation.clips import evaluate_clips, measured_codebooks
from pipelines.evaluation.speech import DNSMOS_SECONDS, SpeechScores, helper_count
from pipelines.evaluation.tokenizers import MEASURES, Means, Measured
from tokenizer import Tokenizer
from tokenizer.sound_metrics import available, is_silent, si_sdr
from tokenizer.spectral import mel_distance, stft_distance


@MEASURES.enter("audio")
def evaluate_sound(
    tok: Tokenizer, clips: Clips, accelerator: Accelerator, batch_size: int, thorough: bool
) -> Measured:
    """`evaluate_clips` of l1, mel_distance, stft_distance and si_sdr (dB, of what is not silent); with
    `thorough` also stoi and pesq, and, for all codebooks, dnsmos and that of the data, dnsmos_original, where
    their packages are installed; those that are not are named in the log. `batch_size` has no effect: clips
    go one by one."""
    rate = tok.modality.sample_rate
    mine = range(accelerator.process_index, len(clips), accelerator.num_processes)
    seconds = len(measured_codebooks(tok, thorough)) * sum(map(clips.samples, mine)) / rate
    names = available() if thorough else ()
    if "dnsmos" in names:
        seconds += DNSMOS_SECONDS * len(mine)
    helpers = helper_count(seconds, int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)))
    speech = SpeechScores(names, rate, helpers)
    return evaluate_clips(tok, clips, accelerator, measure_sounds, speech, thorough)


def measure_sounds(mean: Means, x_hat: Tensor, x: Tensor, sample_rate: int) -> None:
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
