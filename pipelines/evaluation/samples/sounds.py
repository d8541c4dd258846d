"""Measures of drawn sound: how good speech sounds to a network (DNSMOS), how much is silent, and how far
short windows lie from those of held-out sound.

Every set is heard in windows of the samples' length, clips joined end to end as the prior learnt them. DNSMOS
was made for speech: of other sound it says how much that network takes it for clean speech.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from pipelines.data.batches import Splits
from pipelines.data.clips import Clips
from pipelines.evaluation.samples.codes import measure_codes
from pipelines.evaluation.samples.frechet import SECONDS, frechet_distance, gaussian_of, mel_windows
from pipelines.evaluation.samples.kinds import LEAST, MEASURES, Draw, Figures, decoded, rebuilt
from pipelines.run.generator import Generator
from pipelines.run.progress import progress
from pipelines.tokens.items import TokenRows
from tokenizer.distributed import keyed_generator
from tokenizer.sound_metrics import INSTALL, available, dnsmos

# A frame of 20 ms is silent if its RMS, less its mean, is more than 50 dB below full scale.
FRAME_SECONDS, SILENT = 0.02, 10 ** (-50 / 20)


@MEASURES.enter("audio")
class SoundSamples:
    """dnsmos, silence, frechet, repeats and copies (cards/samples.md says what they are)."""

    def __init__(self, generator: Generator, splits: Splits, count: int, batch_size: int) -> None:
        self.generator, self.count, self.batch_size = generator, count, batch_size
        tok = generator.tokenizer
        self.rate, self.size = tok.modality.sample_rate, generator.prior.config.grid[0] * tok.stride
        if "dnsmos" not in available():
            raise ValueError(f"--samples of sound needs the packages of DNSMOS; {INSTALL}")
        if self.size < round(SECONDS * self.rate):
            raise ValueError(
                f"--samples compares windows of {SECONDS} s, and this prior's are "
                f"{self.size / self.rate:.2g} s; train one with --seconds 1 or more"
            )
        assert isinstance(splits.held_out, Clips) and isinstance(splits.train, Clips)
        self.held_out, self.train = splits.held_out, splits.train
        windows = sum(map(self.held_out.samples, range(len(self.held_out)))) // self.size
        if windows < LEAST:
            raise ValueError(
                f"--samples needs {LEAST} windows of {self.size / self.rate:.3g} s of held-out sound, there "
                f"are {windows}; give more, or raise --data.valid-fraction"
            )

    def measure(self, draws: Sequence[Draw], items: TokenRows | None) -> Figures:
        figures, tok = Figures(), self.generator.tokenizer
        real = joined_windows(self.held_out, self.size, self.count, 0)
        again, codes = zip(
            *(rebuilt(tok, x.to(tok.device)) for x in real.split(self.batch_size)), strict=True
        )
        sets = [("held_out", real), ("reconstructions", torch.cat(again).cpu())]
        for seed, draw in enumerate(draws):
            drawn = [x.cpu() for x, _ in decoded(self.generator, draw, self.batch_size)]
            known = joined_windows(self.train, self.size, self.count, seed)
            sets += [("samples", torch.cat(drawn)), ("training", known)]
        features = [(of, mel_windows(x, self.rate)) for of, x in sets]
        # As many of each set: of fewer windows the distance is larger.
        most = min(len(values) for _, values in features)
        gaussians = [(of, gaussian_of(spread(values, most))) for of, values in features]
        for of, found in gaussians[1:]:
            figures.add("frechet", of, frechet_distance(found, gaussians[0][1]))
        for of, x in sets:
            figures.add("silence", of, silent_share(x, self.rate))
        for of, x in sets:
            if of != "training" and (score := self._dnsmos(x)) is not None:
                figures.add("dnsmos", of, score)
        measure_codes(figures, draws, torch.cat(codes), items)
        return figures

    def _dnsmos(self, x: Tensor) -> float | None:
        """The mean over windows (n, C, T) that are not silent; None if all are."""
        total, count = 0.0, 0
        with progress(len(x), "DNSMOS") as bar:
            for one in x.split(1):
                scores = dnsmos(one, one, self.rate)
                total, count = total + float(scores.values.sum()), count + int(scores.measured.sum())
                bar.update()
        return total / count if count else None


def joined_windows(clips: Clips, size: int, most: int, seed: int) -> Tensor:
    """Clips in an order of the seed, joined end to end and cut into windows (n, C, size), `most` at most."""
    order = torch.randperm(len(clips), generator=keyed_generator(seed, "windows of sound")).tolist()
    parts, samples = list[Tensor](), 0
    for i in order:
        for piece in clips.pieces(i):
            parts.append(piece)
            samples += piece.shape[1]
        if samples >= most * size:
            break
    count = min(most, samples // size)
    if count < 1:
        raise ValueError("no clip can be read any more; is the disk still there?")
    return rearrange(torch.cat(parts, dim=1)[:, : count * size], "c (n t) -> n c t", n=count)


def spread(values: Tensor, some: int) -> Tensor:
    """`some` of the rows of values (n, ...), spread evenly."""
    return values[torch.linspace(0, len(values) - 1, some).round().long()]


def silent_share(x: Tensor, sample_rate: int) -> float:
    """The share of whole frames of x (n, C, T) that are silent."""
    size = round(FRAME_SECONDS * sample_rate)
    frames = x[:, :, : x.shape[2] // size * size].unflatten(2, (-1, size))
    power = (frames - frames.mean(3, keepdim=True)).square().mean((1, 3))
    return float((power.sqrt() < SILENT).double().mean())
