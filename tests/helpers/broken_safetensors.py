"""Files of safetensors that are broken below their first checks: taken apart, changed and put together again.

Left out: what breaks any bytes and any JSON (mutators.py).
"""

import json
import random
import struct
from typing import Any

import torch
from safetensors.torch import load, save

from tests.helpers.mutators import WIDE, broken_bytes, broken_json

DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "U32", "BOOL", "F8_E4M3", "C64", "F4")
ODD_FLOATS = (float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-45, 0.0)


def broken_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with a change of its bytes, its header, or the numbers in it."""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    way = rng.randrange(12)
    if way == 0:
        return broken_bytes(data, rng)
    if way > 9:
        return with_another_tensor(data, rng)
    if way == 1:
        return struct.pack("<Q", rng.choice((*WIDE, size + 1, size - 1)) % 2**64) + data[8:]
    if way == 2:
        return joined(broken_json(header, rng).encode("utf-8", "surrogatepass"), body)
    if way == 3:
        return joined(json.dumps(header).encode(), broken_bytes(body, rng))
    if way < 7:
        _change_numbers(header, body := bytearray(body), rng)
    else:
        for _ in range(rng.choice((1, 1, 2))):
            rng.choice(HEADER_CHANGES)(header, rng)
    padding = b" " * rng.choice((0, 0, 0, 8, 4096))
    return joined(json.dumps(header).encode() + padding, bytes(body))


def with_another_tensor(data: bytes, rng: random.Random) -> bytes:
    """A whole file in which a tensor has another shape or type, and the numbers for it."""
    tensors = load(data)
    name = rng.choice(sorted(tensors))
    old = torch.atleast_1d(tensors[name])
    shapes = (old.flatten(), old[:1], old[..., :1], old[None], old[:0], old[0], old.movedim(0, -1))
    types = (old.double(), old.half(), old.bfloat16(), old.long(), old.bool(), old.double() * 1e39)
    new = rng.choice((*shapes, *types, torch.cat([old, old])))
    tensors[rng.choice((name, name, name, name + "x"))] = new.contiguous().clone()
    return save(tensors)


def joined(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def _change_numbers(header: dict[str, Any], body: bytearray, rng: random.Random) -> None:
    """Other values in one tensor: some not finite, some huge."""
    entry = header[rng.choice([k for k in header if k != "__metadata__"])]
    first, stop = entry["data_offsets"]
    if first == stop:
        return
    if entry["dtype"] == "F32":
        at = rng.randrange(first, stop, 4)
        struct.pack_into("<f", body, at, rng.choice((*ODD_FLOATS, rng.gauss(0, 1))))
    else:
        body[rng.randrange(first, stop)] = rng.choice((0, 1, 2, 255))


def _entry(header: dict[str, Any], rng: random.Random) -> tuple[str, dict[str, Any]]:
    names = [k for k in header if isinstance(header[k], dict) and "shape" in header[k]]
    name = rng.choice(names)
    return name, header[name]


def _other_shape(header: dict[str, Any], rng: random.Random) -> None:
    shape = _entry(header, rng)[1]["shape"]
    change = rng.randrange(5)
    if change == 0 and shape:
        shape[rng.randrange(len(shape))] = rng.choice((*WIDE, -1, -3, 1.5, 3.0, "3", None, True))
    elif change == 1:
        shape.insert(0, rng.choice((0, 1, -1, 2**32)))
    elif change == 2:
        shape.reverse()
    elif change == 3:
        shape[:] = [2**32, 2**32, 4]
    else:
        shape[:] = [1] * rng.choice((0, 5, 70, 5000))


def _other_offsets(header: dict[str, Any], rng: random.Random) -> None:
    entry, other = _entry(header, rng)[1], _entry(header, rng)[1]
    offsets = entry["data_offsets"]
    change = rng.randrange(4)
    if change == 0:
        entry["data_offsets"] = list(other["data_offsets"])  # two tensors in one place
    elif change == 1:
        offsets[rng.randrange(len(offsets))] = rng.choice((*WIDE, -1, 4.0, "0", None))
    elif change == 2:
        entry["data_offsets"], other["data_offsets"] = other["data_offsets"], offsets
    else:
        offsets[:] = [v + rng.choice((-4, 4)) for v in offsets]


def _other_dtype(header: dict[str, Any], rng: random.Random) -> None:
    _entry(header, rng)[1]["dtype"] = rng.choice(DTYPES)


def _halved(header: dict[str, Any], rng: random.Random) -> None:
    """A type of half the width and a shape that fills the same bytes."""
    entry = _entry(header, rng)[1]
    entry["dtype"] = rng.choice(("F16", "BF16", "I16"))
    entry["shape"] = [*entry["shape"][:-1], 2 * entry["shape"][-1]] if entry["shape"] else [2]


def _other_name(header: dict[str, Any], rng: random.Random) -> None:
    name, entry = _entry(header, rng)
    del header[name]
    header[rng.choice((name + "x", "../" + name, "", name[1:], "__metadata__"))] = entry


def _one_more(header: dict[str, Any], rng: random.Random) -> None:
    end = max(v["data_offsets"][1] for v in header.values() if isinstance(v, dict) and "shape" in v)
    header["more"] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}


def _one_less(header: dict[str, Any], rng: random.Random) -> None:
    if len(header) > 2:
        del header[_entry(header, rng)[0]]


def _swapped(header: dict[str, Any], rng: random.Random) -> None:
    """Two tensors under each other's names, which only their shapes can tell."""
    a, b = _entry(header, rng)[0], _entry(header, rng)[0]
    header[a], header[b] = header[b], header[a]


def _metadata(header: dict[str, Any], rng: random.Random) -> None:
    header["__metadata__"] = rng.choice(({"a": "b" * 10_000}, {"a": 1}, [], "x", None, {"format": "np"}))


HEADER_CHANGES = (
    *(_other_shape, _other_offsets, _other_dtype, _halved, _other_name),
    *(_one_more, _one_less, _swapped, _swapped, _metadata),
)
