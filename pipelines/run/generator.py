"""New pictures and sound in Python: a prior and the tokenizer whose codes it knows, loaded as a pair.

Left out: files of samples, and what a VAE draws without a prior (`sample.py`).
"""

import math
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
import torch
from torch import Tensor

from pipelines.run.models import load_models
from prior import Prior
from prior.checks import UNCONDITIONAL
from prior.sampling.choice import SamplingOptions
from prior.sampling.weights import Weights
from tokenizer import Tokenizer
from tokenizer.distributed import keyed_generator


class Generator:
    """Draws codes from `prior` and decodes them by `tokenizer`: `generator(label="flags", num=8)`."""

    def __init__(self, prior: Prior, tokenizer: Tokenizer) -> None:
        """`ValueError` if the prior knows codes of another tokenizer."""
        prior.check_tokenizer(tokenizer.fingerprint())
        self.prior, self.tokenizer = prior, tokenizer

    @classmethod
    def from_pretrained(
        cls,
        prior: str | Path,
        tokenizer: str | Path | None = None,
        device: torch.device | str | int | None = None,
        weights: Weights = "full",
        compile: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """Load both from folders or Hub ids; the tokenizer left out is the one that the prior names.

        `device` and `local_files_only` are those of `Prior.from_pretrained`, `weights` and `compile` those of
        `Prior.for_sampling`. For a revision or subfolder, load the two and give them to `Generator`. Raises
        `ValueError` if one cannot be loaded, or they do not belong together.
        """
        if not str(prior):
            raise ValueError(f"prior: expected a folder or Hub id of a prior, got {str(prior)!r}")
        named = "" if tokenizer is None else str(tokenizer)
        loaded, tok = load_models(str(prior), named, device, local_files_only)
        assert loaded is not None
        return cls(loaded.for_sampling(weights, compile), tok)

    def __call__(
        self,
        label: int | str | None = None,
        num: int = 1,
        seconds: float | None = None,
        prefix: Any = None,
        seed: int | None = None,
        batch_size: int = 64,
        **options: Unpack[SamplingOptions],
    ) -> list[Any]:
        """`num` PIL images, or (waveform (C, T) float32, sample_rate), as `Tokenizer.postprocess` gives them.

        Arguments and errors are those of `draw`.
        """
        drawn = self.draw(label, num, seconds, prefix, seed, batch_size, **options)
        return [item for codes in drawn for item in self.tokenizer.postprocess(self.decode(codes))]

    def draw(
        self,
        label: int | str | None = None,
        num: int = 1,
        seconds: float | None = None,
        prefix: Any = None,
        seed: int | None = None,
        batch_size: int = 64,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Tensor]:
        """Codes of `num` samples in parts (b, K, *grid) int64, b at most `batch_size`.

        `label`: a class, by name or number, or None for no class. Sound: `seconds` to draw, of any length
        (left out: the prior's window), after `prefix`, which is a sound as `Tokenizer.preprocess` takes it,
        or its codes (1, K, t). `seed` decides all chance, and gives what `sample.py --seed` draws, whatever
        the batch size; left out, torch's own generator does. `options` (temperature, top_k, top_p, min_p,
        cfg_scale, cfg_schedule, steps, order, choice_temperature) are those of `Prior.sample`. Raises
        `ValueError` for an argument out of range, and for `seconds` and `prefix` of pictures.
        """
        for name, value in (("num", num), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        if not self.tokenizer.modality.timed and not (seconds is None and prefix is None):
            raise ValueError("seconds and prefix are for sound; this tokenizer is for pictures")
        if seconds is not None and not 0 < seconds < math.inf:
            raise ValueError(f"seconds: expected above 0, got {seconds}")
        index = UNCONDITIONAL if label is None else self.prior.label_index(label)
        seed = int(torch.randint(1 << 62, ())) if seed is None else operator.index(seed)
        # One stream per label, so that a sample depends neither on other labels nor on the batch size.
        stream = keyed_generator(seed, index)
        counts = [min(batch_size, num - start) for start in range(0, num, batch_size)]
        if not self.tokenizer.modality.timed:
            return (self.prior.sample(n, index, generator=stream, **options) for n in counts)
        begin = None if prefix is None else self._codes_of(prefix)
        frames = self.prior.config.grid[0]
        if seconds is not None:
            frames = max(1, round(seconds * self.tokenizer.frame_rate))
        frames += 0 if begin is None else begin.shape[2]
        return (self.prior.sample_long(n, frames, index, begin, generator=stream, **options) for n in counts)

    def decode(self, codes: Tensor) -> Tensor:
        """codes (B, K, *grid) → x_hat (B, C, *size): pictures of training's size, sound of any length."""
        tok = self.tokenizer
        return tok.decode(codes.to(tok.device), tok.modality.drawn_size)

    def _codes_of(self, prefix: Any) -> Tensor:
        """A sound, or its codes, as codes (1, K, t)."""
        tok = self.tokenizer
        if not isinstance(prefix, Tensor | np.ndarray):
            prefix = tok.encode(tok.preprocess(prefix))
        codes = tok.check_codes(prefix)
        if len(codes) != 1:
            raise ValueError(f"prefix: expected one sound, which all samples continue, got {len(codes)}")
        return codes
