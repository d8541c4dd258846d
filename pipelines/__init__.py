"""The scripts, and what only they need; `Generator` draws in Python what sample.py draws.

Left out: whatever the libraries `tokenizer` and `prior` do by themselves.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.run.generator import Generator

__all__ = ["Generator"]


def __getattr__(name: str) -> Any:
    """`Generator`, imported at its first use: scripts set variables before anything imports torch."""
    if name != "Generator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipelines.run.generator import Generator

    return Generator
