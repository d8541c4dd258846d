"""What a tokenizer of sound makes of some clips: WAV files, spectrograms, a page to listen to, and plots.

Left out: drawing and writing them (`listening.py`), and measuring (`pipelines.evaluation`).
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pipelines.data.clips import Clips
from pipelines.evaluation.tokenizers import Measured
from pipelines.reports.kinds import REPORTS, Drawn, Report, numbered, spread_out
from pipelines.reports.listening import listening_page, write_wav, write_wavs
from pipelines.reports.plots import codebook_plot
from pipelines.reports.rate_distortion import (
    rate_distortion_plot,
    rate_distortion_rows,
    rate_distortion_table,
)
from pipelines.reports.spectrograms import Row, mel_sheet
from tokenizer import Tokenizer
from tokenizer.hub.files import remove_unfinished, write_json
from tokenizer.sound_metrics import INSTALL, available

logger = logging.getLogger(__name__)

# Clips that are shown, and how much of each.
SHOWN, SHOWN_SECONDS = 9, 6
# The folder of their WAV files.
SOUNDS = "reconstructions"
# Samples on the page and the sheet, and seconds of each; all are written whole as files.
HEARD, HEARD_SECONDS = 24, 20

# Names of clips, with them and their reconstructions by name, (C, T) on the CPU.
Reconstructions = list[tuple[str, dict[str, Tensor]]]


@REPORTS.enter("audio")
class SoundReport(Report):
    """Pages to listen to, spectrograms, and every sample as a WAV file."""

    each, pairs = 3, HEARD // 2

    def reconstructions(
        self, tok: Tokenizer, examples: Clips, measured: Measured, folder: Path, name: str, sample: bool
    ) -> None:
        """reconstructions.html, .png and reconstructions/*.wav of some clips, and, of what was `measured` of
        codes, codebook.png and rate_distortion.json and .png."""
        remove_unfinished(folder / SOUNDS)
        _, rates, counts = measured
        rate, most = tok.modality.sample_rate, tok.bottleneck.num_codebooks
        rows = reconstructions(tok, examples)
        pairs = [(clip, {k: x[k] for k in ("original", "rebuilt")}) for clip, x in rows]
        mel_sheet(pairs, rate, folder / "reconstructions.png")
        write_wavs(folder / SOUNDS, rows, rate)
        notes = [f"{len(rows)} of {len(examples)} clips, the first {SHOWN_SECONDS} s of each."]
        if most > 1 and tok.bottleneck.prefix_decodes:
            notes.append(f"Rebuilt from all {most} codebooks, and from the first {most // 2} alone.")
        title = f"Reconstructions of {name}"
        listening_page(rows, rate, folder / "reconstructions.html", title, notes, rates.get(most))
        if counts is not None and rates:
            vectors = tok.bottleneck.codebook_vectors()
            codebook_plot(counts, folder / "codebook.png", vectors, outputs(tok, rows))
            write_json(folder / "rate_distortion.json", rate_distortion_rows(rates))
            curves = {k: curve(row) for k, row in rates.items()}
            rate_distortion_plot(curves, folder / "rate_distortion.png")
        if sample:
            write_card_pair(tok, pairs[0], folder)

    def samples(self, tok: Tokenizer, rows: list[Drawn], folder: Path) -> Path:
        """Every sample as a WAV file; samples.html to listen to the first ones, and samples.png, their
        spectrograms."""
        rate = tok.modality.sample_rate
        clips = [(f"{name} {i + 1}", {"": x[i].clamp(-1, 1)}) for name, x, *_ in rows for i in range(len(x))]
        write_wavs(folder, clips, rate)
        each = max(1, HEARD // len(rows))  # as many of every class
        given = rows[0].given / rate  # the same for all
        label = f"new after {given:.2f} s" if given else ""
        heard = [
            (numbered(name, i), {label: x[i, :, : HEARD_SECONDS * rate].clamp(-1, 1)})
            for name, x, *_ in rows
            for i in range(min(each, len(x)))
        ][:HEARD]
        notes = [
            f"{len(heard)} of {len(clips)} samples, at most {HEARD_SECONDS} s of each; all are files here."
        ]
        if given:
            notes.append(f"The prefix ends at {given:.2f} s, the line in the pictures; all after it is new.")
        listening_page(heard, rate, folder / "samples.html", "Samples from the prior", notes, mark=given)
        mel_sheet(heard, rate, folder / "samples.png", mark=given)
        return folder / "samples.html"

    def card_sample(self, tok: Tokenizer, rows: list[tuple[str, Tensor]], folder: Path) -> None:
        """sample.png, spectrograms, and sample.wav, the first sound of each class."""
        rate = tok.modality.sample_rate
        clips = [
            (numbered(name, i), {"": x.clamp(-1, 1)}) for name, sounds in rows for i, x in enumerate(sounds)
        ]
        mel_sheet(clips, rate, folder / "sample.png")
        write_wav(folder / "sample.wav", torch.cat([x[0].clamp(-1, 1) for _, x in rows], dim=1), rate)

    def neighbours(
        self, tok: Tokenizer, names: list[str], samples: Tensor, nearest: Tensor, folder: Path
    ) -> Path:
        """neighbours.html, pairs to listen to."""
        clips = [
            (name, {"sample": a.clamp(-1, 1), "nearest in training": b.clamp(-1, 1)})
            for name, a, b in zip(names, samples, nearest, strict=False)
        ]
        title = "Samples and the training items nearest to them"
        listening_page(clips, tok.modality.sample_rate, folder / "neighbours.html", title)
        return folder / "neighbours.html"

    def remarks(self, measured: Measured) -> str:
        """A table by number of codebooks, if there are several. The log names measures whose packages are not
        installed."""
        if missing := {"stoi", "pesq", "dnsmos"} - set(available()):
            which = "them" if len(missing) > 1 else "it"
            logger.info("not measured: %s; install %s with: %s", ", ".join(sorted(missing)), which, INSTALL)
        if len(measured.rates) < 2:
            return ""
        return rate_distortion_table({k: curve(row) for k, row in measured.rates.items()})


@torch.no_grad()
def outputs(tok: Tokenizer, rows: Reconstructions) -> Tensor | None:
    """What the encoder gives for some clips, as the codebooks see it: (K, M, D), or None."""
    seen = [tok.bottleneck.compared(tok(row["original"][None].to(tok.device)).z_e) for _, row in rows]
    known = [s for s in seen if s is not None]
    return torch.cat(known, dim=1) if known else None


def write_card_pair(tok: Tokenizer, pair: Row, folder: Path) -> None:
    """sample.png and sample.wav of a clip and what the tokenizer keeps of it, for the model's card."""
    rate, (_, clips) = tok.modality.sample_rate, pair
    mel_sheet([pair], rate, folder / "sample.png")
    pause = torch.zeros(tok.modality.channels, rate // 2)
    write_wav(folder / "sample.wav", torch.cat([clips["original"], pause, clips["rebuilt"]], dim=1), rate)


@torch.no_grad()
def reconstructions(tok: Tokenizer, clips: Clips) -> Reconstructions:
    """Names of some clips, the longer half preferred, with them and their reconstructions, (C, T) on the
    CPU."""
    tok.eval()
    by_length = sorted(range(len(clips)), key=clips.samples, reverse=True)
    longer = sorted(by_length[: max(SHOWN, len(clips) // 2)])
    rows = []
    for i in (longer[place] for place in spread_out(len(longer), SHOWN)):
        if (x := next(clips.pieces(i), None)) is not None:
            made = rebuilt_clips(tok, x[:, : SHOWN_SECONDS * tok.modality.sample_rate].to(tok.device))
            rows.append((clips.id(i), {k: v.clamp(-1, 1).cpu() for k, v in made.items()}))
    if not rows:
        raise ValueError("no clip can be read any more; is the disk still there?")
    return rows


def rebuilt_clips(tok: Tokenizer, x: Tensor) -> dict[str, Tensor]:
    """x (C, T) and its reconstructions by name."""
    most, samples = tok.bottleneck.num_codebooks, x.shape[1]
    if not most:
        return {"original": x, "rebuilt": tok.decode_latents(tok.posterior(x[None]).mode(), samples)[0]}
    codes = tok.encode(x[None])
    made = {"original": x, "rebuilt": tok.decode(codes, size=samples)[0]}
    if most > 1 and tok.bottleneck.prefix_decodes:
        half = most // 2
        made[f"{half} of {most} codebooks"] = tok.decode(codes[:, :half], size=samples)[0]
    return made


def curve(row: Mapping[str, float]) -> dict[str, float]:
    """What belongs on a plot over the bitrate: no measures of single codebooks, of use and of speed, and none
    that is taken for all codebooks alone."""
    others = ("usage", "perplexity", "encode_", "decode_", "dnsmos")
    return {k: v for k, v in row.items() if not k.startswith(others)}
