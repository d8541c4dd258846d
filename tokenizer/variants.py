"""Configs as frozen dataclasses: the registry of their variants, and their strict JSON form.

Left out: the configs of single bottlenecks and modalities; each stands in its own file and registers
itself.
"""

import dataclasses
import importlib
import pkgutil
import reprlib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

C = TypeVar("C")


class Variant:
    """Base of config families whose members are chosen by name, such as the bottlenecks.

    A family is a direct subclass; a member is a dataclass declared with `kind="name"`, which enters it in
    the family's `variants`. In JSON a member is its fields and its `kind`. `home` is the package in whose
    modules members stand, if they do; a new module there is found without touching others.
    """

    kind: ClassVar[str] = ""
    home: ClassVar[str] = ""
    variants: ClassVar[dict[str, type["Variant"]]]

    def __init_subclass__(cls, kind: str | None = None) -> None:
        super().__init_subclass__()
        if kind is None:
            cls.variants = {}
            return
        if kind in cls.variants:
            raise ValueError(f"{cls.__name__}: there is already a variant named {kind!r}")
        cls.kind = kind
        cls.variants[kind] = cls

    @classmethod
    def members(cls) -> dict[str, type["Variant"]]:
        """The family's `variants`, those in the modules of its `home` included."""
        if cls.home:
            import_modules(cls.home)
        return cls.variants


def import_modules(package: str) -> None:
    """Import all modules of a package, at whose import they enter what they define into its registry."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(module.name)


def require(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` unless `condition` holds; for the `__post_init__` of configs."""
    if not condition:
        raise ValueError(message)


def at_least(config: Any, least: int, *names: str) -> None:
    """`ValueError` unless these numbers of a config are `least` or more, and below 2^63."""
    for name in names:
        value = getattr(config, name)
        require(least <= value < 2**63, f"{name} is {value}, expected {least} or more")


def training_only(default: Any) -> Any:
    """A field with a default that only training reads: of two models that differ in it alone, codes mean the
    same."""
    return dataclasses.field(default=default, metadata={"training_only": True})


def config_to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values (dict, list, str, also for paths, numbers, bool, None)."""
    values = {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    return {"kind": config.kind, **values} if isinstance(config, Variant) else values


def changed_fields(config: Any) -> dict[str, Any]:
    """`config_to_dict` without the fields that have their defaults, so that a field that is added later does
    not change what is there, and without those of `training_only`."""
    values: dict[str, Any] = {"kind": config.kind} if isinstance(config, Variant) else {}
    for f in dataclasses.fields(config):
        if f.metadata.get("training_only"):
            continue
        value = getattr(config, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if value != default:
            values[f.name] = changed_fields(value) if dataclasses.is_dataclass(value) else _plain(value)
    return values


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return config_to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def config_from_dict(cls: type[C], values: object, where: str = "config") -> C:
    """The inverse of `config_to_dict`, strict: an unknown key or a value of the wrong type is a
    `ValueError` that names its place. Missing keys take their defaults, so that older files stay readable.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected an object, got {shortened(values)}")
    values = dict(values)
    if issubclass(cls, Variant):
        kind = values.pop("kind", None)
        if not isinstance(kind, str) or kind not in (members := cls.members()):
            known = ", ".join(sorted(cls.members()))
            raise ValueError(f"{where}.kind: unknown {shortened(kind)}; known: {known}")
        cls = cast(type[C], members[kind])
    hints = get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cast(Any, cls)) if f.init}
    if unknown := sorted(set(values) - names):
        raise ValueError(f"{where}: unknown key {shortened(unknown[0])}; known: {', '.join(sorted(names))}")
    needed = {f.name for f in dataclasses.fields(cast(Any, cls)) if f.init and _has_no_default(f)}
    if missing := sorted(needed - set(values)):
        raise ValueError(f"{where}: key {missing[0]!r} is missing; expected: {', '.join(sorted(needed))}")
    typed = {k: _typed(hints[k], v, f"{where}.{k}") for k, v in values.items()}
    try:
        return cls(**typed)
    except ValueError as error:  # of its own checks, which do not know where the values are from
        raise ValueError(f"{where}: {error!s:.500}") from error


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def shortened(value: object) -> str:
    """`repr` of a value that may be huge, for messages."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` read as the type `hint`: lists become tuples, whole numbers floats, strings paths, where
    asked."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in args:
            return None
        return _typed(next(a for a in args if a is not NoneType), value, where)
    if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or issubclass(hint, Variant)):
        return config_from_dict(hint, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) == len(value):
            return tuple(
                _typed(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True))
            )
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return {_typed(args[0], k, where): _typed(args[1], v, f"{where}.{k}") for k, v in value.items()}
    elif origin is Literal and value in args:
        return value
    elif hint is float and (type(value) is float or (type(value) is int and abs(value) <= 2**53)):
        return float(value)
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif hint is int and type(value) is int:
        # More fits into no tensor, and far more into no float either.
        if -(2**63) <= value < 2**63:
            return value
    elif isinstance(hint, type) and type(value) is hint:
        return value
    wanted = hint.__name__ if isinstance(hint, type) and not args else str(hint).replace("typing.", "")
    raise ValueError(f"{where}: expected {wanted}, got {shortened(value)}")
