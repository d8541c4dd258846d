"""Pictures as a kind of data, and a look at all of them before training: what cannot be decoded is left out,
what fits into memory kept decoded.

Left out: pictures by number (examples.py).
"""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines.data.cache import NO_KEY, Decoded, Verdicts, keys_of, verdicts_of
from pipelines.data.config import DataConfig, Source
from pipelines.data.examples import Examples, Fit, OpenPicture, fitted
from pipelines.data.kinds import KINDS, Kind
from pipelines.data.scan import digest, listed, look_at_all, reason
from tokenizer.modalities import Modality
from tokenizer.modalities.files.pictures import (
    PICTURE_SUFFIXES,
    PICTURE_UNREADABLE,
    READER,
    open_picture,
)

logger = logging.getLogger(__name__)


def scan_pictures(
    source: Source, modality: Modality, config: DataConfig, cache_bytes: int, place: str
) -> Examples:
    """Decode every picture once, and keep all if they fit into `cache_bytes`: what can be decoded is
    readable, however large the set is.

    Nothing is decoded again at the next start (`cache.py`): pixels, or of a larger set what was found of it,
    are kept by `place`, which says where the data lie, and by what the modality's `fit` does. Raises
    `ValueError` if not one picture is readable, or if `fit` gives them different shapes.
    """
    fit, max_megapixels = modality.fit, config.max_megapixels
    rules = f"{type(modality).__qualname__} {modality.preprocessor_config()}"
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
    return Examples(PICTURES, source, rows, digests[rows], skipped, open_, fit, shape, cache)


def _decoded(
    source: Source, fit: Fit, open_: OpenPicture, shape: tuple[int, ...], before: Decoded
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
    source: Source, fit: Fit, open_: OpenPicture, cache: Tensor
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
    source: Source, keys: NDArray[np.uint64], open_: OpenPicture, verdicts: Verdicts
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


def _first_shape(source: Source, fit: Fit, open_: OpenPicture) -> tuple[int, ...]:
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
def named_warnings(open_picture: OpenPicture) -> Iterator[OpenPicture]:
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


PICTURES = KINDS.enter("image")(
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
    )
)
