"""What watches over broken inputs sees every bad end: each is brought about here by a subject of its own.

Left out: the inputs (test_fuzz_*.py), and how they are broken but for what holds of all ways.
"""

import ctypes
import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save
from torch import zeros

from tests.helpers.broken_media import broken_png, broken_wav
from tests.helpers.broken_safetensors import broken_safetensors
from tests.helpers.fuzzing import ERROR, LIMIT, RESULT, Make, Subject, fuzz
from tests.helpers.mutators import broken_bytes, broken_json
from tests.robustness.test_fuzz_media import pngs, wavs


def at_two(act: Callable[[Path], object]) -> Callable[[Path], Subject]:
    def subject(folder: Path) -> Subject:
        number = iter(range(9))
        return Subject(lambda rng: act(folder) if next(number) == 2 else None, ("named",))

    return subject


def wait() -> None:
    with open(os.devnull):
        while True:
            time.sleep(0.01)


def refuse(message: str) -> None:
    raise ValueError(message)


def crashing(folder: Path) -> Subject:
    return at_two(lambda _: ctypes.string_at(0))(folder)


def hanging(folder: Path) -> Subject:
    return at_two(lambda _: wait())(folder)


def greedy(folder: Path) -> Subject:
    return at_two(lambda _: bytearray(8 << 30))(folder)


def greedy_and_quiet(folder: Path) -> Subject:
    """As a library does that takes all for an error of the file."""

    def read(_: Path) -> None:
        try:
            bytearray(8 << 30)
        except MemoryError as error:
            raise ValueError("named: cannot be read (MemoryError)") from error

    return at_two(read)(folder)


def large(folder: Path) -> Subject:
    return at_two(lambda _: bytearray(b"\1") * (5 << 29))(folder)


def writing_elsewhere(folder: Path) -> Subject:
    return at_two(lambda _: (folder.parent / "x").write_text("x"))(folder)


def moving_elsewhere(folder: Path) -> Subject:
    (folder / "a").touch()
    return at_two(lambda _: (folder / "a").rename(folder.parent / "b"))(folder)


def running(folder: Path) -> Subject:
    return at_two(lambda _: subprocess.run(["true"], check=True))(folder)


def unnamed(folder: Path) -> Subject:
    return at_two(lambda _: refuse("something is wrong"))(folder)


def talkative(folder: Path) -> Subject:
    return at_two(lambda _: refuse("named" * 1000))(folder)


def of_another_kind(folder: Path) -> Subject:
    return at_two(lambda _: {}["key"])(folder)


def wrong(folder: Path) -> Subject:
    def read(_: Path) -> None:
        assert sum((1, 1)) == 3

    return at_two(read)(folder)


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (crashing, "input 102: the process ended\n(.|\n)*Segmentation fault"),
        (hanging, "input 102: the process ended\n(.|\n)*Timeout"),
        (greedy, "input 102: (.|\n)*MemoryError"),
        (greedy_and_quiet, "input 102: memory ran out"),
        (large, "an input took 2[0-9]{3} MiB of memory"),
        (writing_elsewhere, "input 102: open .*/x'"),
        (moving_elsewhere, "input 102: os.rename .*/b'"),
        (running, "input 102: subprocess.Popen .*true"),
        (unnamed, "input 102: the message names none of .*: something is wrong"),
        (talkative, "input 102: the message has 5000 characters"),
        (of_another_kind, "input 102: (.|\n)*KeyError: 'key'"),
        (wrong, "input 102: (.|\n)*AssertionError"),
    ],
)
def test_every_bad_end_is_seen(make: Make, seen: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=seen):
        fuzz(make, range(100, 105), tmp_path, limit=1 if make is hanging else LIMIT)


def well(folder: Path) -> Subject:
    def read(_: Path) -> None:
        (folder / "x").write_text("x")
        refuse("named /a/b/c: 7 is wrong")

    return at_two(read)(folder)


def test_refusals_and_results_are_counted(tmp_path: Path) -> None:
    report = fuzz(well, range(5), tmp_path)
    assert report.ends == {ERROR: 1, RESULT: 4} and dict(report.refusals) == {"named _ _ is wrong": 1}


TENSORS = save({"a": zeros(3, 4), "b": zeros(2)})
CONFIG = {"kind": "vq", "size": [3, 4], "names": {"a": 0.5, "b": None}, "on": True, "text": "abc"}
WAYS: dict[str, Callable[[random.Random], bytes]] = {
    "bytes": lambda rng: broken_bytes(bytes(range(200)), rng),
    "json": lambda rng: broken_json(CONFIG, rng).encode("utf-8", "surrogatepass"),
    "safetensors": lambda rng: broken_safetensors(TENSORS, rng),
    "png": lambda rng: broken_png(pngs()[2], rng),
    "wav": lambda rng: broken_wav(wavs()[0], rng),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_number_makes_the_same_input_again(way: str) -> None:
    made = [WAYS[way](random.Random(i)) for i in range(40)]
    assert made == [WAYS[way](random.Random(i)) for i in range(40)]
    assert len(set(made)) > 30


def test_most_broken_json_is_json() -> None:
    texts = [broken_json(CONFIG, random.Random(i)) for i in range(300)]
    values = []
    for text in texts:
        try:
            values.append(json.loads(text))
        except (ValueError, RecursionError):
            continue
    assert 150 < len(values) < 300 and sum(v != CONFIG for v in values) > 150
