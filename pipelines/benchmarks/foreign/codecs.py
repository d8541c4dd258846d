"""Codecs of transformers with random weights, and how that library itself encodes and decodes with them.

Left out: measuring them (`speed.py`).
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizer import Tokenizer
from tokenizer.foreign.library import import_library, quietly

# Of every codec, so that all do as much: 6 kbit/s of EnCodec, 1.1 of Mimi, 4 of DAC at 16 kHz.
CODEBOOKS = 8


@dataclass(frozen=True)
class Codec:
    """A model of a library, itself and as ours. `encode` takes x (B, 1, T), `decode` codes (B, K, t).
    `batched`: whether a padded batch of whole frames has the codes there that its items have alone."""

    tok: Tokenizer
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    batched: bool


def _encodec(scale: int, config: Any) -> Any:
    return config(num_filters=32 // scale, hidden_size=128 // scale)


def _dac(scale: int, config: Any) -> Any:
    """descript/dac_16khz."""
    sizes = {"encoder_hidden_size": 64 // scale, "decoder_hidden_size": 1536 // scale}
    return config(**sizes, downsampling_ratios=[2, 4, 5, 8], n_codebooks=12, sampling_rate=16000)


def _mimi(scale: int, config: Any) -> Any:
    width, half = 512 // scale, 256 // scale
    return config(
        num_filters=64 // scale,
        hidden_size=width,
        intermediate_size=2048 // scale,
        upsample_groups=width,
        codebook_dim=half,
        vector_quantization_hidden_dimension=half,
        head_dim=64 // scale,
    )


# The names of the library's classes begin so.
CONFIGS: dict[str, Callable[[int, Any], Any]] = {"Encodec": _encodec, "Dac": _dac, "Mimi": _mimi}


@torch.no_grad()
def codec_of(name: str, scale: int, device: torch.device) -> Codec:
    """A codec with its layers `scale` times narrower, and random codebooks. `ValueError` where transformers
    is missing or too old."""
    library = import_library("transformers")
    torch.manual_seed(0)
    config = CONFIGS[name](scale, getattr(library, f"{name}Config"))
    model = getattr(library, f"{name}Model")(config).eval()
    for key, value in model.state_dict().items():
        if key.endswith((".embed", ".embed_sum")):  # zeros as made
            value.normal_()
    with tempfile.TemporaryDirectory() as folder, quietly(library):
        model.save_pretrained(folder)
        tok = Tokenizer.from_pretrained(Path(folder), device=device)
    model = model.to(device)
    if name == "Encodec":
        return Codec(
            tok,
            lambda x: model.encode(x, bandwidth=6.0).audio_codes[0],
            lambda codes: model.decode(codes[None], [None]).audio_values,
            batched=True,
        )
    if name == "Dac":
        return Codec(
            tok,
            lambda x: model.encode(x, n_quantizers=CODEBOOKS).audio_codes,
            lambda codes: model.decode(audio_codes=codes).audio_values[:, None],
            batched=False,
        )
    encode = partial(model.encode, num_quantizers=CODEBOOKS)
    return Codec(
        tok, lambda x: encode(x).audio_codes, lambda codes: model.decode(codes).audio_values, batched=True
    )
