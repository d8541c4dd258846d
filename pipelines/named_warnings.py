"""Warnings of Pillow with the names of the pictures that they are about.

Left out: pictures that are read one by one while training; what is wrong with them was said before it.
"""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from pipelines.examples import Open

logger = logging.getLogger(__name__)


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
