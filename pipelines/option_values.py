"""Options as plain values: nested as JSON has them, flat by their names, and the flags that set them.

Left out: the options themselves (`options.py`), and reading flags (`cli.py`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizer.config import config_to_dict


def options_to_dict(options: Any) -> dict[str, Any]:
    """`config_to_dict`, with paths as strings."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return {k: plain(v) for k, v in config_to_dict(options).items()}


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
