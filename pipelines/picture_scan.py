"""A look at all pictures before training: what cannot be decoded is skipped, what fits into memory kept so.

Left out: what is done with pictures afterwards (examples.py).
"""

import logging
from dataclasses import dataclass
from functools import partial

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines.decoded import Decoded, keys_of
from pipelines.examples import Examples, Fit, Open, fitted
from pipelines.named_warnings import named_warnings
from pipelines.scanning import Skip, digest, listed, look_at_all, reason
from pipelines.sources import PICTURES, Source
from pipelines.verdicts import NO_KEY, Verdicts, verdicts_of
from tokenizer.modalities.files.pictures import READER, open_picture

logger = logging.getLogger(__name__)


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

    Nothing is decoded again at the next start: pixels (`decoded.py`), or of a larger set what was found of it
    (`verdicts.py`), are kept by `place`, which says where the data lie, and `rules`, which say what `fit`
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
