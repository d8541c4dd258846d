"""The tokenizer: encoder, bottleneck and decoder as one model, for any modality and bottleneck.

Left out: training loops and files of data (`pipelines/`), saving and loading (`tokenizer.hub.model`).
"""

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from tokenizer.bottlenecks import Bottleneck, BottleneckConfig
from tokenizer.bottlenecks.gaussian import Gaussian, Posterior
from tokenizer.bottlenecks.gaussian_quant import quantizing
from tokenizer.card import describe
from tokenizer.checks import (
    Array,
    Size,
    as_integers,
    checked_lengths,
    checked_size,
    warn_of_range,
)
from tokenizer.config import TokenizerConfig
from tokenizer.distributed import Step
from tokenizer.foreign import Family, family_of, is_foreign, own_files, read_family
from tokenizer.hub.files import CONFIG, PREPROCESSOR, read_json, write_atomically, write_json
from tokenizer.hub.meta import outline_of
from tokenizer.hub.model import HubModel
from tokenizer.layers_1d import zero_after
from tokenizer.losses import reconstruction_losses
from tokenizer.network import TokenizerNetwork
from tokenizer.precision import full_precision
from tokenizer.streaming import DecodeStream, EncodeStream, run_stream
from tokenizer.variants import changed_fields, config_from_dict, config_to_dict, shortened


def fingerprint(described: dict[str, Any], encoder: nn.Module, bottleneck: Bottleneck) -> str:
    """16 hex digits of a config as plain JSON values, the encoder's weights and the bottleneck's coding
    state."""
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    skipped = bottleneck.not_coding
    state |= {f"bottleneck.{k}": v for k, v in bottleneck.state_dict().items() if k not in skipped}
    for name in sorted(state):
        values = state[name].detach().to("cpu").float().contiguous()
        digest.update(name.encode() + str(tuple(values.shape)).encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]


class _Finite(torch.autograd.Function):
    """x with zeros where it is not finite. The gradient passes as it is, in its own order in memory: in
    another one sums over it would round otherwise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, finite: Tensor) -> Tensor:
        return torch.where(finite, x, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


# Samples, over all examples of a batch, that go through a network at once: about 20 MB for each of its widest
# activations. More go through some examples at a time, and a longer example in chunks.
CHUNK = 1 << 18


class TokenizerOutput(NamedTuple):
    """What a forward pass gives. `codes` is None for a VAE. The sum of `losses` is the training objective;
    `stats` are detached, unweighted values for people. All losses and stats are scalars."""

    x_hat: Tensor
    codes: Tensor | None
    z_e: Tensor
    z_q: Tensor
    losses: dict[str, Tensor]
    stats: dict[str, Tensor]


class Tokenizer(TokenizerNetwork, HubModel):
    """Turns data x (B, C, *size) in [-1, 1] into codes (B, K, *grid) int64 and back; or into a posterior
    (VAE)."""

    model_type: ClassVar[str] = "tokenloom-tokenizer"
    config_class: ClassVar[type] = TokenizerConfig
    config: TokenizerConfig

    def forward(self, x: Tensor, step: Step | None = None) -> TokenizerOutput:
        """x: (B, C, *size). In training `step` keys the noise and tells when statistics are updated.

        `NotFinite` if z_e is not finite; in training, if the step is `optional`, losses that are NaN instead.
        """
        z_e = self._latents(self.prepared(x))
        # Other processes wait for this one in the bottleneck and in the backward pass, so it goes on without
        # these values, and NaN reaches all processes with the gradient.
        optional = self.training and step is not None and step.optional
        if optional:
            finite = torch.isfinite(z_e)
            z_e = _Finite.apply(z_e, finite)
        z_q, codes, losses, stats = self.bottleneck(z_e, step)
        x_hat = self._crop(self._decoded(z_q), x.shape[2:])
        # Reconstruction losses are means over the elements of x; sums over an example are brought to that
        # unit.
        per_element = 1 / math.prod(x.shape[1:])
        losses = {k: v * per_element if k in self.bottleneck.summed_losses else v for k, v in losses.items()}
        terms = reconstruction_losses(x_hat, x, self.config.losses, self.modality.sample_rate)
        losses |= {k: self.config.losses[k] * v for k, v in terms.items()}
        stats |= {k: v.detach() for k, v in terms.items()}
        if optional:
            # Without a look at the values, for which a GPU would stand still: as they are, or NaN.
            losses = {k: v * torch.where(finite.all(), 1.0, torch.nan) for k, v in losses.items()}
        return TokenizerOutput(x_hat, codes, z_e, z_q, losses, stats)

    @torch.no_grad()
    def encode(
        self, x: Array, lengths: Array | Sequence[int] | None = None, num_codebooks: int | None = None
    ) -> Tensor:
        """x: (B, C, *size) float in [-1, 1] → codes: (B, K, *grid) int64, grid = ceil(size / stride). Arrays
        of numpy are taken as tensors are; x far out of its range is named in the log, once.

        Sound: `lengths` (B,) integers are the samples of each example of a padded batch. Each then gets the
        codes that it has alone in its first `code_lengths(lengths)` frames, and zeros after them; what
        stands in the padding does not matter (`preprocess_batch` gives both). Long sound is taken in chunks
        (`encode_stream`), so memory stays bounded. `num_codebooks`: only the first so many
        codes of each position.

        On a GPU this is without TF32, with which codes would depend on the batch, unless `self.tf32` is set.

        `TypeError` for a VAE (use `posterior`, or `quantized`), and for x that is no array; `ValueError` for
        x of a wrong shape or type, for `lengths` of pictures or out of range, and for more codebooks than
        there are.
        """
        self._require_codes("encode")
        k = self.checked_num_codebooks(num_codebooks)
        x = self.prepared(x)
        warn_of_range(x)
        if lengths is not None:
            if not self.modality.timed:
                raise ValueError(f"lengths are for padded batches of sound, not of {self.modality.name}s")
            lengths = checked_lengths(lengths, x).to(x.device)
        with full_precision(not self.tf32):
            return encode_prepared(self, x, k) if lengths is None else encode_padded(self, x, lengths, k)

    @torch.no_grad()
    def decode(self, codes: Array, size: int | tuple[int, ...] | None = None) -> Tensor:
        """codes: (B, K, *grid) integers → x_hat: (B, C, *size). `size`: (H, W), or T for sound, to crop to,
        at most grid · stride. Codes of the first codebooks only (K less than the model's) decode more
        coarsely.

        `TypeError` for a VAE; `ValueError` for codes of a wrong shape, type or range, and for a size that
        does not fit the grid.
        """
        self._require_codes("decode")
        codes = self.check_codes(codes)
        if is_long(self, codes.shape, self.stride):
            if rows := rows_at_once(codes.shape[2] * self.stride):
                return torch.cat([self.decode(part, size) for part in codes.split(rows)])
            parts = torch.split(codes, chunk_size(self, len(codes)) // self.stride, dim=2)
            size = checked_size(size, codes.shape[2:], self.stride)
            return self._crop(torch.cat(list(self.decode_stream(parts)), dim=2), size)
        return self.decode_latents(self.bottleneck.decode(codes), size)

    def code_lengths(self, lengths: Array | Sequence[int]) -> Tensor:
        """lengths: (B,) samples → (B,) frames of codes, ceil(lengths / stride)."""
        if isinstance(lengths, Sequence):
            lengths = torch.tensor(lengths)
        lengths = as_integers(lengths, "lengths", "give one number of samples for each example")
        return (lengths + self.stride - 1) // self.stride

    def encode_stream(self, chunks: Iterable[Tensor], num_codebooks: int | None = None) -> Iterator[Tensor]:
        """Chunks (B, C, T_i) of one sound, of any lengths → its codes in parts (B, K, t_i), in bounded
        memory; together those of `encode`. `EncodeStream` is the same with chunks pushed one by one.
        `ValueError` for pictures, and as `encode` does."""
        self._require_codes("encode_stream")
        return run_stream(EncodeStream(self, num_codebooks), chunks)

    def decode_stream(self, codes: Iterable[Tensor]) -> Iterator[Tensor]:
        """Codes in parts (B, K, t_i) → the sound in parts (B, C, T_i), in bounded memory; together that of
        `decode`. `DecodeStream` is the same with parts pushed one by one."""
        self._require_codes("decode_stream")
        return run_stream(DecodeStream(self), codes)

    def decode_latents(self, z: Tensor, size: int | tuple[int, ...] | None = None) -> Tensor:
        """z: (B, out_dim, *grid), a quantized z_q or a VAE's z, → x_hat: (B, C, *size). Differentiable."""
        wanted = self.bottleneck.out_dim
        if z.ndim != 2 + len(self.modality.axes) or z.shape[1] != wanted:
            raise ValueError(f"expected z (B, {wanted}, *grid), got {tuple(z.shape)}")
        return self._crop(self._decoded(z), checked_size(size, z.shape[2:], self.stride))

    def posterior(self, x: Array) -> Posterior:
        """x: (B, C, *size) → the VAE's q(z | x) over (B, dim, *grid). `TypeError` for a tokenizer with
        codes. x far out of its range is named in the log, once."""
        if not isinstance(self.bottleneck, Gaussian):
            raise TypeError(
                "posterior is for a VAE (bottleneck gaussian); this tokenizer has codes: use encode"
            )
        x = self.prepared(x)
        warn_of_range(x)
        return self.bottleneck.posterior(self._latents(x))

    def quantized(self, codebook_size: int, group_dim: int = 1, seed: int = 0) -> "Tokenizer":
        """A tokenizer with codes made of this VAE without training: its weights and the bottleneck
        `gaussian_quant`, in eval mode. Each `group_dim` channels of z get one code of log2(codebook_size)
        bits; little is lost where that is above their KL in bits (`pipelines/quantize_vae.py` measures it).

        `TypeError` for a tokenizer that has codes already; `ValueError` for sizes that do not fit.
        """
        bottleneck = quantizing(self.config.bottleneck, codebook_size, group_dim, seed)
        tok = Tokenizer(dataclasses.replace(self.config, bottleneck=bottleneck))
        tok.to(self.device, next(self.parameters()).dtype)
        tok.load_state_dict(tok.state_dict() | self.state_dict())
        tok.license = self.license
        return tok.eval()

    def preprocess(self, source: Any, size: Size = None) -> Tensor:
        """A file or object (or a list of them) as x (B, C, *size) in [-1, 1], on the model's device.

        `size`: pictures are resized to cover it and cropped in the middle, (H, W) in pixels or one number
        for a square, left out the size of training; sound is cut, or padded at its end, to T samples at
        `sample_rate`, left out its own length. "keep" is the size that the source has by itself. `ValueError`
        for what cannot be read, for an impossible size, and for a list whose items differ in size.
        """
        return self.modality.preprocess(source, size).to(self.device)

    def preprocess_batch(self, sources: list[Any], size: Size = None) -> tuple[Tensor, Tensor | None]:
        """A list of B files or objects as what `encode` takes: `tok.encode(*tok.preprocess_batch(sources))`.

        Sound: x (B, C, T), padded at the end to the longest (or cut and padded to the `size` T), and lengths
        (B,) int64, the samples that are an example's own. Pictures: x (B, C, H, W) of one size, which is
        that of training unless `size` is given, and None, as nothing is padded. `size` and errors are those
        of `preprocess`; `TypeError` for what is no list.
        """
        x, lengths = self.modality.preprocess_batch(sources, size)
        return x.to(self.device), None if lengths is None else lengths.to(self.device)

    def postprocess(self, x_hat: Tensor) -> list[Any]:
        """x_hat (B, C, *size) as a list of PIL images, or of (waveform, sample_rate)."""
        return self.modality.postprocess(x_hat)

    def fingerprint(self) -> str:
        """A hash (16 hex digits) of all that decides what a code means: config, encoder and codebooks.

        Equal after saving and loading and after a change of the decoder's weights or of the losses. Of a
        tokenizer of another library: of the weights that decide codes, and of its adapter here.
        """
        if (family := self.family) is not None:
            return family.fingerprint(self.encoder, self.bottleneck, self.config.bottleneck)
        described = {
            "modality": changed_fields(self.config.modality),
            "bottleneck": changed_fields(self.config.bottleneck),
        }
        return fingerprint(described, self.encoder, self.bottleneck)

    @property
    def family(self) -> Family | None:
        """The family of a tokenizer of another library; None for one of ours."""
        return family_of(self.config)

    @classmethod
    def _read_config(cls, directory: Path) -> tuple[dict[str, Any], TokenizerConfig]:
        """Of another library's config.json the config of its family; of ours that holds one, with a
        bottleneck of ours."""
        path = directory / CONFIG
        raw = read_json(path) if path.exists() else {}
        if is_foreign(raw):
            return raw, read_family(raw, path).config()
        if raw.get("model_type") == cls.model_type and isinstance(theirs := raw.get("foreign"), dict):
            config = read_family(theirs, path).config()
            bottleneck = config_from_dict(BottleneckConfig, raw.get("config"), f"{path}: config")
            return raw, dataclasses.replace(config, bottleneck=bottleneck)
        return super()._read_config(directory)

    @classmethod
    def _filled(cls, directory: Path, config: TokenizerConfig) -> tuple[Self, torch.dtype | None]:
        if (family := own_files(config)) is None:
            return super()._filled(directory, config)
        # Sizes are compared with the file before anything is allocated.
        tok = outline_of(lambda: cls(config))
        tok.take(family, family.load(directory, tok))
        return tok, next(tok.parameters()).dtype

    def write_model(self, directory: Path) -> None:
        """Of a tokenizer of another library its own files, which that library loads too."""
        if (family := own_files(self.config)) is None:
            return super().write_model(directory)
        whole = family.join(outline_of(family.whole), (self.encoder, self.bottleneck, self.decoder))
        dtype = next(self.parameters()).dtype
        write_json(directory / CONFIG, family.saved_config(dtype), allow_nan=False)
        write_atomically(directory / family.weights, partial(family.save, whole))
        before = None if self._loaded_from is None else self._loaded_from / PREPROCESSOR
        if before is None or not before.exists():
            write_json(directory / PREPROCESSOR, family.preprocessor(), allow_nan=False)
        elif before.resolve() != (directory / PREPROCESSOR).resolve():
            write_atomically(directory / PREPROCESSOR, partial(shutil.copyfile, before))

    def _is_as_in(self, directory: Path) -> bool:
        if own_files(self.config) is None:
            return super()._is_as_in(directory)
        try:
            other = type(self).from_pretrained(directory)
        except ValueError:  # the folder was changed or went away
            return False
        held = other.state_dict()
        return all(torch.equal(v.to("cpu", held[k].dtype), held[k]) for k, v in self.state_dict().items())

    def extra_config(self) -> dict[str, Any]:
        theirs = {} if self.family is None else {"foreign": dict(self.family.raw)}
        return {"fingerprint": self.fingerprint(), **theirs}

    def plain_config(self) -> dict[str, Any]:
        return super().plain_config() if self.family is None else config_to_dict(self.config.bottleneck)

    def check_extra_config(self, extra: Mapping[str, Any]) -> None:
        if own_files(self.config) is None and extra.get("fingerprint") != self.fingerprint():
            raise ValueError(
                f"config.json gives fingerprint {shortened(extra.get('fingerprint'))}, but config and "
                f"weights make {self.fingerprint()!r}: the files do not belong together; download or save "
                "the model again"
            )

    def preprocessor_config(self) -> dict[str, Any]:
        return self.modality.preprocessor_config()

    def card_fields(self) -> dict[str, Any]:
        codes = (self.num_codebooks, self.bits_per_code) if self.bottleneck.num_codebooks else None
        kind = self.config.bottleneck.kind
        return describe(self.modality, self.stride, kind, codes, self.bottleneck.out_dim)


def is_long(tok: Tokenizer, shape: Sequence[int], stride: int = 1) -> bool:
    """Whether data (B, any, T / stride) are sound beyond one chunk, to be taken in several."""
    return tok.modality.timed and shape[0] * shape[2] * stride > CHUNK


def rows_at_once(samples: int) -> int:
    """Examples of so many samples that go through a network whole at once, which costs less than chunks of
    all of them, as these overlap; 0 if not even one does."""
    return CHUNK // samples


def chunk_size(tok: Tokenizer, batch_size: int) -> int:
    """Samples per example of one chunk: a multiple of the stride."""
    return max(1, CHUNK // batch_size // tok.stride) * tok.stride


def encode_prepared(tok: Tokenizer, x: Tensor, num_codebooks: int) -> Tensor:
    """x (B, C, *size), as `prepared` gives it → codes (B, K, *grid)."""
    if not is_long(tok, x.shape):
        return tok.bottleneck.encode_first(tok._latents(x), num_codebooks)
    if rows := rows_at_once(x.shape[2]):
        return torch.cat([encode_prepared(tok, part, num_codebooks) for part in x.split(rows)])
    stream = EncodeStream(tok, num_codebooks)
    parts = [stream.push_prepared(chunk) for chunk in torch.split(x, chunk_size(tok, len(x)), dim=2)]
    return torch.cat([*parts, stream.finish()], dim=2)


def encode_padded(tok: Tokenizer, x: Tensor, lengths: Tensor, num_codebooks: int) -> Tensor:
    """x (B, C, T) of which each example has `lengths` (B,) samples → codes (B, K, t), 0 beyond an
    example's frames."""
    frames = tok.code_lengths(lengths)
    x = tok.modality.pad(zero_after(x, lengths))
    if is_long(tok, x.shape):
        codes = x.new_zeros(len(x), num_codebooks, x.shape[2] // tok.stride, dtype=torch.int64)
        # The longest first, beside as many of those next to it as go through at once.
        left = lengths.argsort(descending=True, stable=True)
        while len(left):
            longest, most = int(lengths[left[0]]), int(frames[left[0]])
            rows = rows_at_once(most * tok.stride)
            group, left = left[: max(1, rows)], left[max(1, rows) :]
            if rows:
                part = encode_padded(tok, x[group, :, : most * tok.stride], lengths[group], num_codebooks)
            else:
                part = encode_prepared(tok, x[group, :, :longest], num_codebooks)
            codes[group, :, :most] = part
        return codes
    z_e = tok.encoder(x, frames * tok.stride)
    return zero_after(tok.bottleneck.encode_first(z_e, num_codebooks), frames)
