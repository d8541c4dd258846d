"""Codecs of sound that benchmarks compare: a tokenizer of ours, and EnCodec as a peer.

Left out: measuring them (`speed.py`).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.presets import TOKENIZERS
from tokenizer import Tokenizer
from tokenizer.installation import install_extra

DEFAULT_PRESET = "audio-16k"
BANDWIDTH = 6.0  # kbit/s of EnCodec: 8 codebooks of 10 bits, 75 frames per second


@dataclass(frozen=True)
class Codec:
    """One side of the comparison. `encode` takes x (B, channels, T) float32 in [-1, 1]; `decode` takes what
    `encode` gives. Parameters are those of the encoder's and of the decoder's network, without codebooks."""

    name: str
    sample_rate: int
    channels: int
    kbits_per_second: float
    encoder_parameters: int
    decoder_parameters: int
    encode: Callable[[Tensor], Any]
    decode: Callable[[Any], Any]

    def parameters(self, side: str) -> int:
        """Of the encoder, the decoder, or both."""
        encoder, decoder = self.encoder_parameters, self.decoder_parameters
        return {"encode": encoder, "decode": decoder, "both": encoder + decoder}[side]

    def described(self) -> dict[str, Any]:
        """The fields that are values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: v for k, v in values.items() if not callable(v)}


def load_tokenizer(preset: str, tokenizer: str) -> Tokenizer:
    """A tokenizer of sound with codes, in eval mode: from a folder or the Hub, else of a preset with seeded
    random weights. `ValueError` for another kind of tokenizer and an unknown preset."""
    if tokenizer:
        tok = Tokenizer.from_pretrained(tokenizer)
    else:
        name = preset or DEFAULT_PRESET
        models = {k: p.build().model for k, p in TOKENIZERS.items()}
        sounds = [k for k, model in models.items() if model.modality.kind == "audio"]
        if name not in sounds:
            got = "is of pictures" if name in models else "is unknown"
            raise ValueError(f"--preset {name} {got}; presets of sound: {', '.join(sounds)}")
        torch.manual_seed(0)
        tok = Tokenizer(models[name])
    if tok.modality.name != "audio" or not tok.bottleneck.num_codebooks:
        of = "of sound has no codes (a VAE)"
        kind = of if tok.modality.name == "audio" else f"is of {tok.modality.card_words().what}"
        raise ValueError(
            f"--tokenizer {tokenizer} {kind}, and this benchmark needs codes of sound; give another, or "
            "leave it out for that of --preset"
        )
    return tok.eval()


def ours(tok: Tokenizer, name: str, device: torch.device) -> Codec:
    """A tokenizer of sound as one side."""
    tok = tok.to(device)
    rate = tok.modality.sample_rate
    return Codec(
        name=name,
        sample_rate=rate,
        channels=tok.modality.channels,
        kbits_per_second=rate / tok.stride * tok.num_codebooks * tok.bits_per_code / 1000,
        encoder_parameters=_count(tok.encoder),
        decoder_parameters=_count(tok.decoder),
        encode=tok.encode,
        decode=tok.decode,
    )


def encodec(device: torch.device) -> Codec:
    """EnCodec (Défossez et al. 2022, arXiv 2210.13438) as transformers has it: 24 kHz mono, random weights.
    `ValueError` if transformers is not installed."""
    try:
        from transformers import EncodecConfig, EncodecModel
    except ImportError as error:
        raise ValueError(
            f"the peer, EnCodec, needs transformers ({error}); {install_extra('bench')}"
        ) from error
    torch.manual_seed(0)
    config = EncodecConfig()
    model = EncodecModel(config).eval().to(device)
    for module in list(model.modules()):
        if nn.utils.parametrize.is_parametrized(module):  # weight norm, which ours would not compute either
            nn.utils.parametrize.remove_parametrizations(module, "weight")
    return Codec(
        name="EnCodec",
        sample_rate=config.sampling_rate,
        channels=config.audio_channels,
        kbits_per_second=BANDWIDTH,
        encoder_parameters=_count(model.encoder),
        decoder_parameters=_count(model.decoder),
        encode=lambda x: model.encode(x, bandwidth=BANDWIDTH),
        decode=lambda out: model.decode(out.audio_codes, out.audio_scales),
    )


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
