"""Command lines: presets, --config and flags merged in that order, and mistakes reported without a
traceback. Options as plain values, flat by their names, and the flags that set them.

Left out: the options themselves (`training/options.py`, or the script that has them).
"""

import contextlib
import dataclasses
import errno
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import tyro

from pipelines.run.environment import keep_freed_memory
from pipelines.run.signals import Stopped, end_with_launcher
from tokenizer.hub.files import read_json
from tokenizer.hub.model import library_version
from tokenizer.variants import config_from_dict, config_to_dict


def in_words(error: ValueError | OSError) -> str:
    """What went wrong, and for what a disk refuses also what to do."""
    if not isinstance(error, OSError):
        return str(error) or type(error).__name__
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}there is no room on the disk; make some, or choose another --output"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{where}{error.strerror}; change that, or choose another place"
    return f"{where}{error.strerror}" if error.strerror else str(error)


def print_whole(text: str) -> None:
    """Print a line on stderr in one write, which those of other processes do not cut in two.

    print writes the end of a line by itself if streams are not buffered (PYTHONUNBUFFERED).
    """
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one level of dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def flag_of(name: str) -> str:
    """`data.valid_fraction` as a user gives it."""
    return "--" + name.replace("_", "-")


O = TypeVar("O")

# For an option of several values that has none by default, of which --help would show an empty default.
NOTHING = tyro.conf.arg(help_behavior_hint="(default: none)")

VERSION_HELP = "--version prints the versions of tokenloom and torch."


@dataclass(frozen=True)
class Preset:
    """A named set of options; `about` says what it is and what it takes, for --help. `timed`: of a prior,
    whether it is for tokens with an axis of time."""

    build: Callable[[], Any]
    about: str
    timed: bool = False


def parse(
    cls: type[O],
    description: str,
    argv: Sequence[str] | None = None,
    presets: Mapping[str, Preset] | None = None,
    default_preset: str = "",
    default: O | None = None,
) -> O:
    """Options from a command line: defaults (of the class, or `default`) < preset (its first word) <
    `--config FILE` < flags.

    With `--resume` the run's own run.json, if it is there, stands in for a missing `--config`. Raises
    `ValueError` for an unknown preset, flag or value, for a config file that does not fit, and for a resume
    where no run is and no word says which one to begin. `--version` anywhere prints versions and exits 0, as
    `--help` does its text.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "--version" in words:
        print_version()
        sys.exit(0)
    presets = presets or {}
    name = default_preset
    named = bool(presets and words and not words[0].startswith("-"))
    if named:
        name = words.pop(0)
        if name not in presets:
            raise ValueError(f"unknown preset {name!r}; known: {', '.join(presets)}")
    base: Any = presets[name].build() if name else default or cls()
    config = _take(words, "--config")
    if config is None and _peek(words, "--resume"):
        config = _config_of_run(words, str(base.output), named)
    if config is not None:
        base = _merge(cls, base, read_json(Path(config)), config)
    text = description.strip() + _preset_help(presets, default_preset)
    program = sys.argv[0] + (" [PRESET]" if presets else "")
    usage = io.StringIO()
    if {"-h", "--help"} & set(words):
        _join_lines(base)
    try:
        with contextlib.redirect_stderr(usage):
            options: O = tyro.cli(
                cls,
                prog=program,
                default=base,
                args=words,
                description=text,
                config=(tyro.conf.AvoidSubcommands,),
            )
            return options
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(f"the command line does not fit\n{usage.getvalue().rstrip()}") from None


def is_given(flags: Sequence[str], argv: Sequence[str] | None = None) -> bool:
    """Whether one of the flags is on a command line."""
    words = sys.argv[1:] if argv is None else argv
    return any(word.split("=", 1)[0] in flags for word in words)


def print_version() -> None:
    """The distribution and torch, each with its version, in a line; once, if there are several processes."""
    if os.environ.get("RANK", "0") == "0":
        print(f"tokenloom {library_version()} (torch {torch.__version__})")


def chosen_preset(default_preset: str, argv: Sequence[str] | None = None) -> str:
    """The preset that the options of a command line which `parse` took begin with; "" where a file gives
    them: with --config, and on a resume."""
    words = list(sys.argv[1:] if argv is None else argv)
    if any(_peek(words, flag) for flag in ("--config", "--resume")):
        return ""
    return words[0] if words and not words[0].startswith("-") else default_preset


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


def _config_of_run(words: Sequence[str], output: str, named: bool) -> str | None:
    """The run.json of the run that is resumed. None if there is none yet and the words, among them a preset
    if it is `named`, describe the run to begin, as schedulers do that have one command for all starts."""
    beside = Path(_peek(words, "--output") or output) / "run.json"
    if beside.exists():
        return str(beside)
    others = list(words)
    for flag in ("--resume", "--output"):
        _take(others, flag)
    if not (named or others):
        raise ValueError(
            f"{beside.parent} holds no run that could be resumed; correct --output, or give the preset or "
            "other options of a run to begin there"
        )
    return None


def _peek(words: Sequence[str], flag: str) -> str | None:
    with contextlib.suppress(ValueError):
        return _take(list(words), flag)
    return None


def _merge(cls: type[O], default: O, values: Mapping[str, Any], where: str) -> O:
    """`default` with the values of a (perhaps partial) run.json laid over it."""

    return config_from_dict(cls, _overlay(config_to_dict(default), values), where)


def _overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        old = merged.get(name)
        # A variant of another kind replaces the old one whole: their fields have nothing in common.
        merged[name] = value
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            together = value.get("kind", old.get("kind")) == old.get("kind")
            if together:
                merged[name] = _overlay(old, value)
    return merged


def _join_lines(options: Any) -> None:
    """Give tyro the docs of all options as paragraphs: what it reads itself breaks where the source does."""
    import docstring_parser  # of tyro's; only --help needs it

    docs: dict[str, str] = {}
    for cls in filter(dataclasses.is_dataclass, reversed(type(options).__mro__)):
        docs |= {p.arg_name: p.description or "" for p in docstring_parser.parse_from_object(cls).params}
    for option in dataclasses.fields(options):
        if option.name in docs and "help" not in option.metadata:
            text = " ".join(docs[option.name].split())
            option.metadata = MappingProxyType({**option.metadata, "help": text})
        if dataclasses.is_dataclass(getattr(options, option.name)):
            _join_lines(getattr(options, option.name))


def _preset_help(presets: Mapping[str, Preset], default_preset: str) -> str:
    if not presets:
        return f"\n\n--config FILE reads options from a JSON file (under the flags). {VERSION_HELP}"
    lines = [
        f"  {name}{' (default)' if name == default_preset else ''}: {p.about}" for name, p in presets.items()
    ]
    return (
        "\n\nThe first word chooses a preset:\n"
        + "\n".join(lines)
        + "\n\n--config FILE reads options from a run.json (over the preset, under the flags). "
        + VERSION_HELP
    )


def run(main: Callable[[], None]) -> None:
    """Run a script's main. A user's mistake prints `Error: …` on stderr and exits 2, without a traceback.

    TOKENLOOM_DEBUG=1 in the environment shows the traceback.
    """
    rank = os.environ.get("RANK", "0")
    keep_freed_memory()
    end_with_launcher()
    try:
        main()
    except BrokenPipeError:  # who read the output, such as `head`, has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (ValueError, OSError) as error:
        if os.environ.get("TOKENLOOM_DEBUG"):
            raise
        where = "" if rank == "0" else f" (process {rank})"
        print_whole(f"Error{where}: {in_words(error)}")
        sys.exit(2)
    except Stopped as stopped:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # once on every machine
            print_whole(str(stopped))
        sys.exit(stopped.code)
    except KeyboardInterrupt:
        text = (
            "Interrupted. A training run continues with --resume latest, an encoding with the same command."
        )
        print_whole(text)
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
