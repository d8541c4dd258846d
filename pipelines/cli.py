"""Command lines: presets, --config and flags merged in that order, and mistakes reported without a
traceback.

Left out: the options themselves (`pipelines.options`, or the script that has them).
"""

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import tyro

from pipelines.heap import keep_freed_memory
from tokenizer.config import config_from_dict
from tokenizer.files import read_json

O = TypeVar("O")


@dataclass(frozen=True)
class Preset:
    """A named set of options; `cost` says what it takes, for --help."""

    build: Callable[[], Any]
    about: str
    cost: str


def parse(
    cls: type[O],
    description: str,
    argv: Sequence[str] | None = None,
    presets: Mapping[str, Preset] | None = None,
    default_preset: str = "",
) -> O:
    """Options from a command line: defaults < preset (its first word) < `--config FILE` < flags.

    With `--resume` the run's own run.json, if it is there, stands in for a missing `--config`. Raises
    `ValueError` for an unknown preset, flag or value, and for a config file that does not fit.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    presets = presets or {}
    name = default_preset
    if presets and words and not words[0].startswith("-"):
        name = words.pop(0)
        if name not in presets:
            raise ValueError(f"unknown preset {name!r}; known: {', '.join(presets)}")
    default: Any = presets[name].build() if name else cls()
    config = _take(words, "--config")
    if config is None and _peek(words, "--resume"):
        beside = Path(_peek(words, "--output") or str(default.output)) / "run.json"
        config = str(beside) if beside.exists() else None
    if config is not None:
        default = _merge(cls, default, read_json(Path(config)), config)
    text = description + _preset_help(presets, default_preset)
    usage = io.StringIO()
    try:
        with contextlib.redirect_stderr(usage):
            return tyro.cli(
                cls, default=default, args=words, description=text, config=(tyro.conf.AvoidSubcommands,)
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(f"the command line does not fit\n{usage.getvalue().rstrip()}") from None


def _take(words: list[str], flag: str) -> str | None:
    """Remove `flag VALUE` or `flag=VALUE` from the words and return the value."""
    for i, word in enumerate(words):
        if word.startswith(flag + "="):
            return words.pop(i).split("=", 1)[1]
        if word == flag:
            if i + 1 == len(words):
                raise ValueError(f"{flag} needs a value")
            words.pop(i)
            return words.pop(i)
    return None


def _peek(words: Sequence[str], flag: str) -> str | None:
    with contextlib.suppress(ValueError):
        return _take(list(words), flag)
    return None


def _merge(cls: type[O], default: O, values: Mapping[str, Any], where: str) -> O:
    """`default` with the values of a (perhaps partial) run.json laid over it."""
    from pipelines.run_folder import options_to_dict

    return config_from_dict(cls, _overlay(options_to_dict(default), values), where)


def _overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        old = merged.get(name)
        # A variant of another kind replaces the old one whole: their fields have nothing in common.
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        together = both and value.get("kind", old.get("kind")) == old.get("kind")
        merged[name] = _overlay(old, value) if together else value
    return merged


def _preset_help(presets: Mapping[str, Preset], default_preset: str) -> str:
    if not presets:
        return ""
    lines = [
        f"  {name}{' (default)' if name == default_preset else ''}: {p.about} {p.cost}"
        for name, p in presets.items()
    ]
    return (
        "\n\nThe first word chooses a preset:\n"
        + "\n".join(lines)
        + "\n\n--config FILE reads options from a run.json (over the preset, under the flags)."
    )


def run(main: Callable[[], None]) -> None:
    """Run a script's main. A user's mistake prints `Error: …` on stderr and exits 2, without a traceback.

    TOKENLOOM_DEBUG=1 in the environment shows the traceback.
    """
    rank = os.environ.get("RANK", "0")
    keep_freed_memory()
    try:
        main()
    except (ValueError, OSError) as error:
        if os.environ.get("TOKENLOOM_DEBUG"):
            raise
        where = "" if rank == "0" else f" (process {rank})"
        print(f"Error{where}: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        text = (
            "Interrupted. A training run continues with --resume latest, an encoding with the same command."
        )
        print(text, file=sys.stderr, flush=True)
        sys.exit(130)
    finally:
        leave_group()


def leave_group() -> None:
    """Take this process out of its group.

    A thread of gloo drops the tensors of the last collective a moment after it is done. It needs the
    interpreter for that, and aborts the process, with another exit code, if that is being closed by then: so
    it gets the moment.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(0.2)
