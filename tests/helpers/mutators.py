"""Ways to break bytes and JSON: at random, and by what parsers are known to trip over.

Left out: single formats of files (broken_*.py), and running what reads the results (fuzzing.py).
"""

import json
import random
import struct
from typing import Any

# Values of fields in headers: borders of types, and sizes that nothing has.
BORDERS = (0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
WIDE = (*BORDERS, 2**32, 2**48, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def broken_bytes(data: bytes, rng: random.Random, first: int = 0) -> bytes:
    """`data` with one to three changes at random places from `first` on."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = data[:first] + rng.choice(CHANGES)(data[first:], rng)
    return data


def flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(max(1, len(data)))
    return data[:at] + bytes(b ^ 1 << rng.randrange(8) for b in data[at : at + 1]) + data[at + 1 :]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    at, length = _run(data, rng)
    new = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))
    return data[:at] + new + data[at + length :]


def insert(data: bytes, rng: random.Random) -> bytes:
    at, length = _run(data, rng)
    return data[:at] + rng.randbytes(length) + data[at:]


def delete(data: bytes, rng: random.Random) -> bytes:
    at, length = _run(data, rng)
    return data[:at] + data[at + length :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    at, length = _run(data, rng)
    return data[:at] + data[at : at + length] * rng.choice((2, 2, 3, 50)) + data[at + length :]


def move(data: bytes, rng: random.Random) -> bytes:
    at, length = _run(data, rng)
    rest = data[:at] + data[at + length :]
    to = rng.randrange(len(rest) + 1)
    return rest[:to] + data[at : at + length] + rest[to:]


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def put_number(data: bytes, rng: random.Random) -> bytes:
    """An integer of 2, 4 or 8 bytes over what stands at a random place."""
    kind = rng.choice("HIQ")
    size = struct.calcsize(kind)
    number = rng.choice(WIDE) % (1 << 8 * size)
    at = rng.randrange(max(1, len(data) - size + 1))
    return data[:at] + struct.pack(rng.choice("<>") + kind, number) + data[at + size :]


CHANGES = (flip, flip, flip, overwrite, insert, delete, repeat, move, cut, put_number, put_number)


def _run(data: bytes, rng: random.Random) -> tuple[int, int]:
    at = rng.randrange(len(data) + 1)
    return at, min(len(data) - at, rng.choice((1, 1, 2, 4, 8, 16, 64)))


class Text(str):
    """JSON as it is to be written, such as a number that Python has none for."""


NUMBERS = (
    *("0", "1", "-1", "2", "3", "5", "16", "64", "255", "65535", "65536", "16777216", "16777217"),
    *("2147483648", "9007199254740993", "9223372036854775807", "9223372036854775808", "-9223372036854775809"),
    *("0.5", "-0.0", "1.0", "2.5", "1e-320", "1e16", "1e308", "-1e308", "1e999", "NaN", "Infinity"),
    *("-Infinity", "1" + "0" * 30, "1" + "0" * 400, "9" * 5000),
)
STRINGS = (
    *('""', '"../../x"', '"/etc/passwd"', '"~/x"', '"user/name"', '"file:///etc/passwd"', '"con"', '"."'),
    *('"\\ud800"', '"\\u0000"', '"\x1b[2J"', '"__class__"', '"os.system"', '"0"', '"true"', '"%s{0}"'),
    *(f'"{"x" * 100_000}"', f'"{"../" * 2000}"', '"\U0001f4a5"', '"image"', '"audio"', '"vq"', '"rvq"'),
    *('"fsq"', '"lfq"', '"bsq"', '"gaussian"', '"gaussian_quant"', '"grouped"', '"delay"', '"depth"'),
    *('"tokenloom-prior"', '"tokenloom-tokenizer"', '"F16"', '"F64"', '"I64"', '"BOOL"', '"U8"', '"F8_E4M3"'),
)
OTHERS = (
    *("null", "true", "false", "[]", "{}", "[[]]", "[0]", "[1, 1]", "[null]", '{"kind": "vq"}', "{", "]"),
    *("[" + "2, " * 30_000 + "2]", '{"a": {"b": {"c": []}}}', "undefined", "1 2", "// x", "'a'", "0x10"),
    *("[" * n + "]" * n for n in (60, 900, 960, 980, 5000)),
    *('{"a":' * n + "0" + "}" * n for n in (60, 940, 5000)),
)


class Members(list[list[Any]]):
    """An object as [key, value] pairs, of which two may have one key."""


def broken_json(value: Any, rng: random.Random) -> str:
    """The text of a JSON `value` with one to three of its values or keys changed; at times broken as text."""
    tree = _tree(value)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        if places := list(_places(tree)):
            parent, i = rng.choice(places)
            rng.choice(JSON_CHANGES)(parent, i, rng)
    text = _text(tree)
    if rng.random() < 0.1:
        text = broken_bytes(text.encode("utf-8", "surrogatepass"), rng).decode("latin-1")
    return text


def _other_value(parent: list[Any], i: int, rng: random.Random) -> None:
    _set(parent, i, Text(rng.choice(rng.choice((NUMBERS, NUMBERS, STRINGS, OTHERS)))))


def _near_value(parent: list[Any], i: int, rng: random.Random) -> None:
    """A value of the same type, so that it gets past the first checks."""
    old = _get(parent, i)
    if isinstance(old, bool):
        _set(parent, i, not old)
    elif isinstance(old, int | float):
        new: Any = rng.choice((old + 1, old - 1, old * 2, -old, old // 2, old * 0.5, old + rng.random()))
        _set(parent, i, int(new) if isinstance(old, int) else float(new))
    elif isinstance(old, str) and not isinstance(old, Text):
        _set(parent, i, rng.choice((old + "x", old[1:], old.upper(), old * 2)))
    elif isinstance(old, list) and old:
        new = rng.choice((old[1:], old[:-1], old + old[:1], old[::-1], old * 2))
        _set(parent, i, type(old)(new))
    else:
        _other_value(parent, i, rng)


def _delete(parent: list[Any], i: int, rng: random.Random) -> None:
    del parent[i]


def _double(parent: list[Any], i: int, rng: random.Random) -> None:
    """The same member twice, with another value the second time."""
    if isinstance(parent, Members):
        parent.append([parent[i][0], Text(rng.choice(NUMBERS))])
    else:
        parent.insert(i, parent[i])


def _rename(parent: list[Any], i: int, rng: random.Random) -> None:
    if isinstance(parent, Members):
        parent[i][0] = rng.choice((parent[i][0] + "s", "kind", "", "../x", "__class__", "x" * 50_000))
    else:
        rng.shuffle(parent)


def _add(parent: list[Any], i: int, rng: random.Random) -> None:
    new = Text(rng.choice(NUMBERS))
    parent.insert(i, [rng.choice(("more", "kind", "__init__", "self")), new] if _named(parent) else new)


JSON_CHANGES = (*((_other_value,) * 4), *((_near_value,) * 6), _delete, _double, _rename, _add)


def _named(parent: list[Any]) -> bool:
    return isinstance(parent, Members)


def _get(parent: list[Any], i: int) -> Any:
    return parent[i][1] if _named(parent) else parent[i]


def _set(parent: list[Any], i: int, value: Any) -> None:
    if _named(parent):
        parent[i][1] = value
    else:
        parent[i] = value


def _tree(value: Any) -> Any:
    if isinstance(value, dict):
        return Members([k, _tree(v)] for k, v in value.items())
    return [_tree(v) for v in value] if isinstance(value, list | tuple) else value


def _places(tree: Any) -> Any:
    """Every (container, index) in the tree."""
    for i in range(len(tree)) if isinstance(tree, list) else ():
        yield tree, i
        yield from _places(_get(tree, i))


def _text(tree: Any) -> str:
    if isinstance(tree, Members):
        return "{" + ", ".join(f"{json.dumps(k)}: {_text(v)}" for k, v in tree) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(_text, tree)) + "]"
    return str(tree) if isinstance(tree, Text) else json.dumps(tree)
