"""The contract of data of any modality: what a split gives to training, encoding and measuring, and the
registries of what a room has for each.

Left out: the kinds themselves. Each stands in a file beside this one, under the name of its modality; a new
file is found without touching others.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipelines.data.augment import NO_VIEWS, Augment
from pipelines.data.config import DataConfig, Source
from tokenizer import Tokenizer
from tokenizer.modalities import Modality
from tokenizer.variants import import_modules

T = TypeVar("T")

# The name of what was left out, and why.
Skip: TypeAlias = tuple[str, str]


class Encoded(NamedTuple):
    """Codes of some items that follow each other, their labels (-1: none) and ids; `items` were looked at.

    codes: of items of one size one tensor (items · views, K, *grid), of any length one (K, t) for each view.
    """

    codes: list[Tensor]
    labels: list[int]
    ids: list[str]
    items: int


class FixedViews(NamedTuple):
    """In how many views each example is encoded, the plain one first, which they are of a picture, and the
    seed of what is random in them."""

    number: int = 1
    augment: Augment = NO_VIEWS
    seed: int = 0


PLAIN = FixedViews()


class CodeLayout(NamedTuple):
    """How the codes of items lie, as tokens.json says it (`tokens.info.TokenInfo`)."""

    grid: tuple[int, ...]
    item_shape: tuple[int, ...]
    frame_rate: float = 0.0
    sample_rate: int = 0
    stride: int = 0


class Items(Protocol):
    """What is trained on: items of one shape, by number."""

    def __len__(self) -> int: ...

    def take(
        self, wanted: NDArray[np.int64], epochs: NDArray[np.int64], seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Items `wanted` (b,) in their `epochs` (b,): x (b, C, *size), labels (b,) int64 (-1: none), and
        which examples they are of (b,) int64. What is random in them is a function of (seed, epoch, item)
        alone.
        """
        ...


class Split(Protocol):
    """Examples by number; `labels` (len,) int64 (-1: unlabelled) or None, `digests` (len,) uint64 of their
    content, `skipped`: what was left out and why."""

    kind: "Kind"
    labels: NDArray[np.int64] | None
    digests: NDArray[np.uint64]

    @property
    def shape(self) -> tuple[int, ...]:
        """The axes that all of them share."""
        ...

    @property
    def skipped(self) -> tuple[Skip, ...]: ...

    @property
    def amount(self) -> str:
        """How much it is in all, in words, where the number of examples does not tell; else ""."""
        ...

    def __len__(self) -> int: ...

    def pick(self, mask: NDArray[np.bool_]) -> Self:
        """Those for which `mask` (len,) holds."""
        ...

    def id(self, i: int) -> str:
        """The file's path below its folder, or the split and number of its row."""
        ...

    def x(self, i: int) -> Tensor:
        """Example i, whole: (C, *size), as it is kept."""
        ...

    def training(self, augment: Augment = NO_VIEWS) -> Items:
        """What is trained on, in the views of `augment` where the kind has them."""
        ...

    def inputs(
        self, batch_size: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """This rank's share of the examples, in order, each once: x (b, C, *size) in [-1, 1], b at most
        `batch_size`, and their numbers (b,). Long ones come in pieces. What can no longer be read is left
        out, and named in the log."""
        ...

    def ranges(self, size: int) -> Iterator[range]:
        """The numbers of all examples in ranges of `size`, in the unit of the kind's `block`."""
        ...

    def layout(self, tok: Tokenizer) -> CodeLayout:
        """How the codes of these examples lie."""
        ...

    def codes(
        self, tok: Tokenizer, which: range, batch_size: int, views: FixedViews = PLAIN
    ) -> Iterator[Encoded]:
        """Codes of the examples `which`, in `views` of each; they depend on nothing but the example, the view
        and the seed. What can no longer be read is left out, and named in the log.
        """
        ...


# Looks at every example of a source before anything is learnt, and gives those that can be read: (source,
# modality, config, bytes that may be kept decoded, where the data lie, for what the next start finds again).
Looks = Callable[[Source, Any, DataConfig, int, str], Split]


@dataclass(eq=False)
class Kind:
    """What examples are: how messages call one and many of them, and how they are told in folders and tables.

    `unreadable` has the suffixes of what has to be converted first, with the way to do that; `feature` is
    their type in `datasets`; `columns` are names that columns of other writers have. `block` is how many of
    them, or how many seconds, a shard of tokens holds; `augmented`, whether views of `--augment.*` exist.
    """

    one: str
    many: str
    suffixes: tuple[str, ...]
    unreadable: Mapping[str, str]
    feature: str
    columns: tuple[str, ...]
    scan: Looks
    block: int
    augmented: bool = False


class ByModality(Generic[T]):
    """What a room has for each modality, which the files in it enter; `what` it is, in words."""

    def __init__(self, room: str, what: str) -> None:
        self.room, self.what, self.entered = room, what, dict[str, T]()

    def enter(self, modality: str) -> Callable[[T], T]:
        """Enter what is decorated under the name of a modality."""

        def add(entry: T) -> T:
            self.entered[modality] = entry
            return entry

        return add

    def all(self) -> dict[str, T]:
        """By the names of the modalities."""
        import_modules(self.room)
        return self.entered

    def of(self, modality: Modality) -> T:
        """Of one modality; `ValueError` if there is none."""
        known, name = self.all(), modality.name
        if name not in known:
            raise ValueError(f"there are no {self.what} for modality {name!r}; known: {', '.join(known)}")
        return known[name]


KINDS = ByModality[Kind]("pipelines.data", "data")


def wrong_kind(kind: Kind, other: Kind) -> str:
    """The end of a message on data of the `other` kind than that to be trained."""
    return (
        f"expected {kind.many}; choose a preset or tokenizer of {other.many} (the first word of "
        "train_tokenizer.py; --help lists them), or check --data.path"
    )


def to_float(x: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1]; what is floating-point is that already."""
    return x if x.is_floating_point() else x.float() / 127.5 - 1
