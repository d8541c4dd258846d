"""Pictures by number, from memory or decoded on access; and a look at all of them before training: what
cannot be decoded is left out, what fits into memory kept decoded.

Left out: where they come from (tokenizer/variants.py, tables.py), and their order and batches (batches.py).
"""

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import PIL
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines.data.augment import NO_VIEWS, Augment
from pipelines.data.cache import NO_KEY, Decoded, Verdicts, keys_of, verdicts_of
from pipelines.data.config import DataConfig, Source
from pipelines.data.kinds import Encoded, Kind, Layout, Skip, enter, to_float
from pipelines.data.scan import digest, listed, look_at_all, reason
from tokenizer import Tokenizer
from tokenizer.modalities import Modality
from tokenizer.modalities.files.pictures import (
    PICTURE_SUFFIXES,
    PICTURE_UNREADABLE,
    READER,
    open_picture,
)

logger = logging.getLogger(__name__)

Fit: TypeAlias = Callable[[Image.Image], NDArray[np.uint8]]
# From the bytes or the path of a picture, and its name.
Open: TypeAlias = Callable[[bytes | str, str], Image.Image]


class Examples:
    """A `Split` of pictures by number: `x(i)` (C, H, W) uint8, `labels` (len,) int64 (-1: unlabelled) or
    None, `id(i)`, and the `digests` (len,) uint64 of their bytes.

    `skipped` names what was left out and why: found before training, or, where pictures are decoded while
    training, by this process since.
    """

    def __init__(
        self,
        source: Source,
        fit: Fit,
        rows: NDArray[np.int64],
        digests: NDArray[np.uint64],
        shape: tuple[int, ...],
        cache: Tensor | None,
        skipped: tuple[Skip, ...],
        open_picture: Open = open_picture,
    ) -> None:
        self.kind, self.shape, self.digests = PICTURES, shape, digests
        self.labels = None if source.labels is None else source.labels[rows]
        self._source, self._fit, self._rows, self._cache = source, fit, rows, cache
        self._skipped, self._open = dict(skipped), open_picture

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def skipped(self) -> tuple[Skip, ...]:
        return tuple(self._skipped.items())

    def id(self, i: int) -> str:
        """The file's path below its folder, or the split and number of its row."""
        return self._source.id(int(self._rows[i]))

    def raw(self, i: int) -> bytes | str:
        """Example i, encoded, or the path of its file."""
        return self._source.raw(int(self._rows[i]))

    def x(self, i: int) -> Tensor:
        """Example i, uint8 (C, H, W). Raises `ValueError` or `OSError` that names it if it can no longer be
        read."""
        if self._cache is not None:
            return self._cache[int(self._rows[i])]
        name = self.id(i)
        return torch.from_numpy(fitted(self._fit, self._open(self.raw(i), name), self.shape, name))

    def training(self, augment: Augment = NO_VIEWS) -> "Views":
        """What is trained on: the pictures in views of `augment`."""
        return Views(self, augment)

    def inputs(
        self, batch_size: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """This rank's share of the pictures in batches: x (b, C, H, W) in [-1, 1], b at most `batch_size`,
        and their numbers (b,). One that can no longer be read is left out, and named in the log."""
        if batch_size < 1:
            raise ValueError(f"batch size must be at least 1, got {batch_size}")
        mine = np.arange(len(self) * rank // world, len(self) * (rank + 1) // world)
        for start in range(0, len(mine), batch_size):
            x, _, index = self.take_readable(mine[start : start + batch_size])
            if len(x):
                yield to_float(x), index.numpy()

    def ranges(self, size: int) -> Iterator[range]:
        """All pictures in ranges of `size`."""
        edges = [0, *range(size, len(self), size), len(self)]
        yield from map(range, edges[:-1], edges[1:])

    def layout(self, tok: Tokenizer) -> Layout:
        """One grid for all, that of pictures of this shape."""
        any_picture = torch.zeros((1, *self.shape), dtype=torch.uint8, device=tok.device)
        return Layout(tuple(tok.encode(to_float(any_picture)).shape[2:]), self.shape)

    def codes(
        self,
        tok: Tokenizer,
        which: range,
        batch_size: int,
        views: int = 1,
        augment: Augment = NO_VIEWS,
        seed: int = 0,
    ) -> Iterator[Encoded]:
        """Codes of batches of pictures, the views of a picture one after the other, the plain one first. One
        that can no longer be read is left out, and named in the log."""
        for start in range(which.start, which.stop, batch_size):
            wanted = np.arange(start, min(start + batch_size, which.stop))
            x, label, index = self.take_readable(wanted)
            if not len(x):
                yield Encoded([], [], [], len(wanted))
                continue
            seen = []
            for view in range(views):
                y = augment.fixed_view(x, index.numpy(), view, len(self), seed)
                seen.append(tok.encode(to_float(y.to(tok.device))).cpu())
            codes = rearrange(seen, "v b ... -> (b v) ...")
            yield Encoded([codes], label.tolist(), [self.id(i) for i in index.tolist()], len(wanted))

    def take(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """A batch to train on: examples (b, C, H, W) uint8, their labels (b,) int64 (-1 if none), and their
        numbers (b,) int64.

        The next readable example stands in for one that can no longer be read: its pixels, its label and its
        number. A batch keeps its size so, which steps and processes count on.
        """
        if self._cache is not None:
            return self._batch(self._cache[torch.from_numpy(self._rows[indices])], indices)
        found = [self._readable(int(i)) for i in indices]
        return self._stacked(found)

    def take_readable(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """As `take`, but what can no longer be read is left out, and named in the log: for tokens and
        measures, in which no picture may count twice."""
        if self._cache is not None:
            return self.take(indices)
        read = ((self._tried(int(i)), int(i)) for i in indices)
        return self._stacked([(x, i) for x, i in read if x is not None])

    def _tried(self, i: int) -> Tensor | None:
        """Example i, or None, with a line in the log, if it can no longer be read."""
        try:
            return self.x(i)
        except (ValueError, OSError) as error:
            name = self.id(i)
            if name not in self._skipped:
                self._skipped[name] = reason(name, error)
                logger.warning("skipped a picture that cannot be read: %s: %s", name, self._skipped[name])
            return None

    def _readable(self, i: int) -> tuple[Tensor, int]:
        """Example i and its number; those of the next readable one if i can no longer be read."""
        for j in (k % len(self) for k in range(i, i + len(self))):
            if (x := self._tried(j)) is not None:
                return x, j
        raise ValueError(f"none of {len(self)} pictures can be read any more; is the disk still there?")

    def _stacked(self, found: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
        none = torch.empty((0, *self.shape), dtype=torch.uint8)
        x = torch.stack([x for x, _ in found]) if found else none
        return self._batch(x, np.array([i for _, i in found], dtype=np.int64))

    def _batch(self, x: Tensor, found: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        labels = np.full(len(found), -1, dtype=np.int64) if self.labels is None else self.labels[found]
        return x, torch.from_numpy(labels), torch.from_numpy(found)


@dataclass(frozen=True)
class Views:
    """Pictures to train on, in views of `augment`."""

    examples: Examples
    augment: Augment

    def __len__(self) -> int:
        return len(self.examples)

    def take(
        self, wanted: NDArray[np.int64], epochs: NDArray[np.int64], seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `Examples.take`, in the views of their `epochs` (b,)."""
        x, labels, index = self.examples.take(wanted)
        return self.augment.view(x, wanted, epochs, len(self), seed), labels, index


def fitted(fit: Fit, image: Image.Image, shape: tuple[int, ...], name: str) -> NDArray[np.uint8]:
    """The picture as `fit` gives it; `ValueError` if that has another shape than those before it."""
    pixels = fit(image)
    if pixels.shape != shape:
        raise ValueError(
            f"{name}: is {pixels.shape} (C, H, W), the pictures before it are {shape}; "
            "give all of them one size and number of channels"
        )
    return pixels


@dataclass(frozen=True)
class Scan:
    """A source looked through: its readable `rows` (n,), their `digests` (n,) uint64, and cached pixels."""

    source: Source
    fit: Fit
    shape: tuple[int, ...]
    cache: Tensor | None
    rows: NDArray[np.int64]
    digests: NDArray[np.uint64]
    skipped: tuple[Skip, ...]
    open: Open

    def examples(self, mask: NDArray[np.bool_] | None = None) -> Examples:
        """The readable examples, or those of them that `mask` (n,) picks."""
        every = slice(None) if mask is None else mask
        kept = (self.rows[every], self.digests[every])
        return Examples(self.source, self.fit, *kept, self.shape, self.cache, self.skipped, self.open)


def scan(
    source: Source,
    fit: Fit,
    cache_bytes: int,
    place: str = "",
    rules: str = "",
    max_megapixels: float | None = None,
) -> Scan:
    """Decode every example once, and keep all if they fit into `cache_bytes`: what can be decoded is
    readable, however large the set is.

    Nothing is decoded again at the next start: pixels (`cache.py`), or of a larger set what was found of it
    (`cache.py`), are kept by `place`, which says where the data lie, and `rules`, which say what `fit`
    does. max_megapixels: as `open_picture` takes it. Raises `ValueError` if not one example is readable, or
    if `fit` gives them different shapes.
    """
    open_ = partial(open_picture, max_megapixels=max_megapixels)
    # Pillow finds its formats on first use, and two threads that do so at once can miss some.
    Image.init()
    count = len(source)
    with named_warnings(open_) as open_named:
        shape = _first_shape(source, fit, open_named)
        reader = f"{READER} {PIL.__version__} {max_megapixels or Image.MAX_IMAGE_PIXELS}"
        keys = keys_of(source, "looking for pictures")
        cache: Tensor | None = None
        if count * int(np.prod(shape)) > cache_bytes:
            digests, reasons = _look_through(source, keys, open_named, verdicts_of(place, reader))
        else:
            cache, digests, reasons = _decoded(
                source, fit, open_named, shape, Decoded(place, f"{reader} {rules}", keys)
            )
    rows = np.delete(np.arange(count), list(reasons))
    skipped = tuple((source.id(i), reasons[i]) for i in sorted(reasons))
    if skipped:
        logger.warning("%s", listed(skipped, count, PICTURES))
    if not len(rows):
        raise ValueError(f"no picture can be read; {listed(skipped, count, PICTURES)}")
    return Scan(source, fit, shape, cache, rows, digests[rows], skipped, open_)


def _decoded(
    source: Source, fit: Fit, open_: Open, shape: tuple[int, ...], before: Decoded
) -> tuple[Tensor, NDArray[np.uint64], dict[int, str]]:
    """Pixels (n, C, H, W) uint8, digests (n,), and why rows were left out: as decoded before, or anew."""
    if (found := before.find()) is not None:
        tables, reasons = found
        return tables["x"], tables["digests"].numpy().view(np.uint64), reasons
    cache = torch.empty((len(source), *shape), dtype=torch.uint8)
    digests, reasons = _decode_all(source, fit, open_, cache)
    before.keep({"x": cache, "digests": torch.from_numpy(digests.view(np.int64))}, reasons)
    return cache, digests, reasons


def _decode_all(
    source: Source, fit: Fit, open_: Open, cache: Tensor
) -> tuple[NDArray[np.uint64], dict[int, str]]:
    """Fill the cache (n, C, H, W) uint8; digests (n,), and why rows were left out."""
    digests, reasons = np.zeros(len(source), np.uint64), dict[int, str]()

    def look(i: int) -> None:
        name = source.id(i)
        try:
            raw = _content(source.raw(i))
            digests[i] = digest(raw)
            image = open_(raw, name)
        except (ValueError, OSError) as error:
            reasons[i] = reason(name, error)
            return
        cache[i] = torch.from_numpy(fitted(fit, image, tuple(cache.shape[1:]), name))

    look_at_all(look, range(len(source)), "reading pictures")
    return digests, reasons


def _look_through(
    source: Source, keys: NDArray[np.uint64], open_: Open, verdicts: Verdicts
) -> tuple[NDArray[np.uint64], dict[int, str]]:
    """Decode each row of which nothing is known yet; digests (n,), and why rows were left out."""
    known, digests, reasons = verdicts.find(keys)
    if known.any():
        logger.info("%d of %d pictures were looked at before", known.sum(), len(source))
    found = np.zeros(len(source), bool)

    def look(i: int) -> None:
        name = source.id(i)
        try:
            raw = _content(source.raw(i))
            digests[i] = digest(raw)
            open_(raw, name)
        except (ValueError, OSError) as error:
            reasons[i] = reason(name, error)
            # What a disk or the memory says of a file may be otherwise tomorrow.
            found[i] = isinstance(error, ValueError) and not isinstance(error.__cause__, MemoryError)
            return
        found[i] = True

    try:
        look_at_all(look, np.flatnonzero(~known).tolist(), "reading pictures")
    finally:  # also what an interrupted look found
        new = np.flatnonzero(found & (keys != NO_KEY))
        bad = {int(keys[i]): reasons[i] for i in new.tolist() if i in reasons}
        verdicts.add(keys[new], digests[new], bad)
    return digests, reasons


def _content(raw: bytes | str) -> bytes:
    """An example's bytes, whether it came as these or as the path of a file."""
    if isinstance(raw, bytes):
        return raw
    with open(raw, "rb") as file:
        return file.read()


def _first_shape(source: Source, fit: Fit, open_: Open) -> tuple[int, ...]:
    """The shape that `fit` gives the first readable example."""
    reasons = []
    for i in range(len(source)):
        try:
            image = open_(source.raw(i), source.id(i))
        except (ValueError, OSError) as error:
            reasons.append((source.id(i), reason(source.id(i), error)))
            continue
        return fit(image).shape
    if not reasons:
        raise ValueError("the split has no examples; check --data.split and --data.path")
    raise ValueError(f"no picture can be read; {listed(reasons, len(source), PICTURES)}")


@contextmanager
def named_warnings(open_picture: Open) -> Iterator[Open]:
    """`open_picture`, for any number of threads; each warning of Pillow becomes a line in the log at the end,
    with how many pictures it is about and the first of them.

    Python would show it once, with a line of Pillow's code.
    """
    now, found = threading.local(), dict[str, dict[str, None]]()

    def opened(raw: bytes | str, name: str) -> Image.Image:
        now.name = name
        try:
            return open_picture(raw, name)
        finally:
            now.name = None

    # Here and not in the threads: it changes what the whole process does with warnings.
    with warnings.catch_warnings():
        warnings.filterwarnings("always", module=r"PIL\.")
        # What is too large is left out, and named, or was allowed.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        show = warnings.showwarning

        def keep(message: Any, *arguments: Any, **options: Any) -> None:
            if name := getattr(now, "name", None):
                found.setdefault(" ".join(str(message).split()), {})[name] = None
            else:
                show(message, *arguments, **options)

        warnings.showwarning = keep
        yield opened
    for message, names in found.items():
        first = min(names)
        logger.warning("%s%s: %s", first, f" and {len(names) - 1} more" if len(names) > 1 else "", message)


def scan_pictures(
    source: Source, modality: Modality, config: DataConfig, cache_bytes: int, place: str
) -> Scan:
    """`scan` by the rules of a modality."""
    rules = f"{type(modality).__qualname__} {modality.preprocessor_config()}"
    return scan(source, modality.fit, cache_bytes, place, rules, config.max_megapixels)


PICTURES = enter(
    "image",
    Kind(
        one="picture",
        many="pictures",
        suffixes=tuple(sorted(PICTURE_SUFFIXES)),
        unreadable=PICTURE_UNREADABLE,
        feature="Image",
        columns=("image", "img"),
        scan=scan_pictures,
        block=4096,
        augmented=True,
    ),
)
