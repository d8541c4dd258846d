"""The registries of presets: named sets of options that the first word of a command line chooses.

Left out: the presets themselves, which enter themselves (the other files here).
"""

from collections.abc import Callable
from typing import TypeVar

from pipelines.run.command_line import Preset

TOKENIZERS: dict[str, Preset] = {}
PRIORS: dict[str, Preset] = {}
DECODERS: dict[str, Preset] = {}

T = TypeVar("T")


def preset(
    registry: dict[str, Preset], name: str, timed: bool = False
) -> Callable[[Callable[[], T]], Callable[[], T]]:
    """Enter a function that makes options into a registry under `name`; its docstring is shown by --help."""

    def add(build: Callable[[], T]) -> Callable[[], T]:
        registry[name] = Preset(build, " ".join((build.__doc__ or "").split()), timed)
        return build

    return add
