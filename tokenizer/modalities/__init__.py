"""The contract of modalities, what the data are (pictures, sound), and the registry that finds them.

Left out: the modalities themselves. Each is one file beside this one; a new file is found without touching
others.
"""

from collections.abc import Set
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tokenizer.checks import Size, checked_list
from tokenizer.variants import Variant, require


class CardWords(NamedTuple):
    """What a card says of a modality: `what` the data are, with "it" or "them" for them, a `file` that could
    be read, and a `result` line of Python that takes apart what `postprocess` gives."""

    what: str
    them: str
    file: str
    result: str


class Modality:
    """Knows one kind of data x (B, channels, *size): its networks, and its way from files and back."""

    name: ClassVar[str]
    pipeline_tag: ClassVar[str | None] = None
    # How sizes are called in messages, e.g. "height × width"; its length is the number of axes.
    axes: ClassVar[tuple[str, ...]]
    channels: int
    # The size that training data are brought to, one number per axis.
    size: tuple[int, ...]
    stride: int
    # Whether data are signals over time, of any length: their networks are `tokenizer.layers_1d.Network`s,
    # which know padded batches and chunks.
    timed: ClassVar[bool] = False
    # Samples per second; 0 for what has no rate.
    sample_rate: int = 0
    # Whether a padded batch goes through the network at once, each item with the codes it has alone, and
    # whether long data go through in parts, in bounded memory, with the codes of the whole.
    batch_exact: bool = True
    chunk_exact: bool = True

    @property
    def drawn_size(self) -> tuple[int, ...] | None:
        """The size that new data are cropped to; None where they are as long as their codes."""
        return None if self.timed else self.size

    def build_encoder(self, out_channels: int) -> nn.Module:
        """A network (B, channels, *size) → (B, out_channels, *grid), each size a multiple of the stride."""
        raise TypeError(f"{type(self).__name__} does not define build_encoder")

    def build_decoder(self, in_channels: int) -> nn.Module:
        """A network (B, in_channels, *grid) → (B, channels, *grid · stride)."""
        raise TypeError(f"{type(self).__name__} does not define build_decoder")

    def pad(self, x: Tensor) -> Tensor:
        """x (B, channels, *size) extended at its end to multiples of the stride."""
        raise TypeError(f"{type(self).__name__} does not define pad")

    def fit(self, item: Any) -> NDArray[np.uint8]:
        """An opened item (a PIL image) as the array (channels, *size) that data sets keep in memory."""
        raise TypeError(f"{type(self).__name__} does not define fit")

    def preprocess(self, source: Any, size: Size = None) -> Tensor:
        """A file or object, or a list of them, as x (B, channels, *size) in [-1, 1]; `size` left out is the
        training's, or, of signals of any length, their own, as with "keep"."""
        raise TypeError(f"{type(self).__name__} does not define preprocess")

    def preprocess_batch(self, sources: list[Any], size: Size = None) -> tuple[Tensor, Tensor | None]:
        """A list as x (B, channels, *size) in [-1, 1], and the lengths (B,) int64 that are no padding; None
        where nothing is ever padded."""
        return self.preprocess(checked_list(sources), size), None

    def postprocess(self, x_hat: Tensor) -> list[Any]:
        """x_hat (B, channels, *size) as one object per item that a person can look at or listen to."""
        raise TypeError(f"{type(self).__name__} does not define postprocess")

    def card_words(self) -> CardWords:
        """What the card of a model says of its data."""
        raise TypeError(f"{type(self).__name__} does not define card_words")

    def preprocessor_config(self) -> dict[str, Any]:
        """What `preprocess` does, for preprocessor_config.json."""
        raise TypeError(f"{type(self).__name__} does not define preprocessor_config")


@dataclass(frozen=True)
class ModalityConfig(Variant):
    """Base of the modalities' configs; `--model.modality.*` sets the fields of the preset's choice."""

    home: ClassVar[str] = __name__

    def check_losses(self, used: Set[str]) -> None:
        """`ValueError` for losses, by name, that these networks or data cannot have."""

    def with_networks(self, **changes: Any) -> Self:
        """This config with other networks; `ValueError` for fields that it has not."""
        if unknown := sorted(changes.keys() - {f.name for f in fields(self)}):
            raise ValueError(f"{unknown[0]} is no option of the networks for {self.kind}; leave it out")
        return replace(self, **changes)

    def build(self) -> Modality:
        """The modality that this config describes."""
        raise TypeError(f"{type(self).__name__} does not define build")


def check_levels(strides: tuple[int, ...], widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    """`ValueError` for levels of convolutional networks that cannot be, whatever their strides."""
    levels = len(strides)
    require(1 <= levels <= 12, f"strides has {levels} levels, expected 1 to 12")
    require(
        len(widths) == len(blocks) == levels,
        f"strides, widths and blocks need one value per level, got {levels}, {len(widths)} and {len(blocks)}",
    )
    require(all(1 <= w <= 8192 for w in widths), f"widths are {widths}, expected 1 to 8192 each")
    require(all(0 <= n <= 64 for n in blocks), f"blocks are {blocks}, expected 0 to 64 each")
