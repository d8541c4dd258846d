"""Progress of long work: a bar where a person looks on, whole lines in a log file."""

import sys
import time
from typing import Any, Self

from tqdm import tqdm


class PlainProgress:
    """Progress in whole lines on stderr, for log files: one per `interval` seconds at most, and a last."""

    def __init__(self, total: int, desc: str, initial: int = 0, interval: float = 10.0) -> None:
        self.total, self.desc, self.initial, self.n = total, desc, initial, initial
        self._interval, self._start, self._postfix = interval, time.monotonic(), ""
        self._printed_at, self._printed_n = self._start, initial

    def update(self, n: int = 1) -> None:
        """Advance by n."""
        self.n += n
        if time.monotonic() - self._printed_at >= self._interval:
            self._print()

    def set_postfix(self, **values: object) -> None:
        """Show these values at the end of the next lines."""
        texts = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
        self._postfix = ", ".join(texts)

    def close(self) -> None:
        """Print a last line, unless it was printed already."""
        if self.n != self._printed_n:
            self._print()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _print(self) -> None:
        self._printed_at, self._printed_n = time.monotonic(), self.n
        line = tqdm.format_meter(
            self.n,
            self.total,
            self._printed_at - self._start,
            ncols=0,
            prefix=self.desc,
            initial=self.initial,
            postfix=self._postfix,
        )
        print(line, file=sys.stderr, flush=True)


def progress(total: int, desc: str, initial: int = 0, enabled: bool = True) -> "tqdm[Any] | PlainProgress":
    """A bar on stderr with rate and time left: `update(n)`, `set_postfix(**values)`, `close()`, or `with`.

    `enabled=False` (on all processes but the main one) shows nothing. Where stderr is not a terminal, plain
    lines come instead, at most one every 10 s.
    """
    if enabled and not sys.stderr.isatty():
        return PlainProgress(total, desc, initial)
    return tqdm(
        total=total, desc=desc, initial=initial, disable=not enabled, dynamic_ncols=True, file=sys.stderr
    )
