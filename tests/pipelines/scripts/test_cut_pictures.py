"""cut_pictures.py: pieces of large pictures, held out by picture, at random scales.

Left out: finding and splitting pictures (pipelines/data/).
"""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.cut_pictures import CutOptions, pieces_of
from pipelines.data.config import DataConfig
from tests.helpers.pictures_on_disk import load
from tests.helpers.running import Script, assert_refused
from tokenizer.distributed import keyed_generator

CUT = ("--size", 8, 8, "--number", 5, "--data.valid-fraction", 0.4)


def planes(folder: Path, names: list[str], size: tuple[int, int] = (24, 40)) -> Path:
    """Pictures of one colour each, by which their pieces are known again."""
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (k, 0, 100)).save(folder / name)
    return folder


def colours(folder: Path) -> list[int]:
    """Of every piece of a split, the number of the picture that it is of."""
    found = []
    for path in sorted(folder.glob("*.png")):
        pixels = np.asarray(Image.open(path))
        assert pixels.shape == (8, 8, 3) and (pixels == pixels[0, 0]).all()
        found.append(int(pixels[0, 0, 0]))
    return found


def test_whole_pictures_are_held_out(script: Script, tmp_path: Path) -> None:
    root = planes(tmp_path / "large", [f"{k}.png" for k in range(8)])
    script("cut_pictures", "--data.path", root, "--output", tmp_path / "pieces", *CUT)
    train, test = colours(tmp_path / "pieces" / "train"), colours(tmp_path / "pieces" / "test")
    assert sorted(train + test) == [k for k in range(8) for _ in range(5)]
    assert train and test and not set(train) & set(test)
    splits = load(tmp_path / "pieces")
    assert (len(splits.train), len(splits.held_out)) == (len(train), len(test))
    assert splits.class_names == ()
    assert {p.name for p in tmp_path.iterdir()} == {"large", "pieces"}


def test_classes_come_along(script: Script, tmp_path: Path) -> None:
    root = planes(tmp_path / "large", [f"{c}/{k}.png" for c in ("cat", "a, b") for k in range(4)])
    script("cut_pictures", "--data.path", root, "--output", tmp_path / "pieces", *CUT)
    splits = load(tmp_path / "pieces")
    assert splits.class_names == ("a, b", "cat")
    with (tmp_path / "pieces" / "train" / "metadata.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            colour = Image.open(tmp_path / "pieces" / "train" / row["file_name"]).getpixel((0, 0))
            assert row["label"] == ("cat" if colour[0] < 4 else "a, b")  # type: ignore[index]


def test_a_pictures_pieces_depend_on_its_content_and_the_seed_alone(script: Script, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    found = []
    for folder, others, seed in (("a", 0, 0), ("b", 2, 0), ("c", 0, 1)):
        root = planes(tmp_path / folder, [f"{k}.png" for k in range(others)]) / "my picture.png"
        root.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root)
        words = ("--data.path", root.parent, "--output", tmp_path / f"{folder}-pieces", "--seed", seed)
        script("cut_pictures", *words, "--size", 8, 8, "--number", 5, "--data.valid-fraction", 0)
        pieces = sorted((tmp_path / f"{folder}-pieces" / "train").glob("*my_picture*"))
        assert len(pieces) == 5 and not (tmp_path / f"{folder}-pieces" / "test").exists()
        found.append([np.asarray(Image.open(p)) for p in pieces])
    a, b, c = map(np.stack, found)
    assert (a == b).all() and (a != c).any()


def test_pieces_lie_in_the_picture_at_all_scales() -> None:
    """A ramp tells the place and the size of what a piece shows."""
    ramp = np.broadcast_to(np.arange(200, dtype=np.float32), (100, 200))
    options = CutOptions(DataConfig("x"), size=(10, 10), number=400, smallest=0.2)
    spans, places = [], []
    for piece in pieces_of(Image.fromarray(ramp.copy()), options, keyed_generator(0)):
        row = np.asarray(piece)[5]
        spans.append((row[-2] - row[1]) / 7 * 10)  # the outermost see the edge
        places.append(row[1:-1].mean())
    spans_, places_ = np.array(spans), np.array(places)
    assert 20 * 0.97 < spans_.min() < 22 and 90 < spans_.max() < 100 * 1.03
    # Every factor is as likely: half of them lie below the geometric mean.
    assert abs(np.mean(spans_ < np.sqrt(20 * 100)) - 0.5) < 0.08
    assert places_.min() < 25 and places_.max() > 175


def test_nothing_is_enlarged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 20, 3), dtype=np.uint8)
    options = CutOptions(DataConfig("x"), size=(8, 20), number=2, smallest=0.01)
    for piece in pieces_of(Image.fromarray(pixels), options, torch.Generator()):
        assert (np.asarray(piece) == pixels).all()


def test_small_pictures_are_left_out_and_named(script: Script, tmp_path: Path) -> None:
    root = planes(tmp_path / "large", ["a.png", "b.png"])
    Image.new("RGB", (40, 7)).save(root / "flat.png")
    words = ("--data.path", root, "--output", tmp_path / "pieces", *CUT[:5], "--data.valid-fraction", 0)
    done = script("cut_pictures", *words)
    assert "flat.png: has 7 × 40 pixels" in done.err
    assert len(colours(tmp_path / "pieces" / "train")) == 10
    words = ("--data.path", root, "--output", tmp_path / "none", "--size", 64, 64)
    assert_refused(script("cut_pictures", *words, code=2), root, "64 × 64", "--size")
    assert {p.name for p in tmp_path.iterdir()} == {"large", "pieces"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--size", 0, 64), "size"),
        (("--number", 0), "number"),
        (("--smallest", 0), "smallest"),
        (("--smallest", 1.5), "smallest"),
    ],
)
def test_impossible_options_are_refused(words: tuple[object, ...], named: str, script: Script) -> None:
    assert_refused(script("cut_pictures", *words, code=2), named)


def test_a_folder_with_files_is_not_written_to(script: Script, tmp_path: Path) -> None:
    root = planes(tmp_path / "large", ["a.png"])
    assert_refused(
        script("cut_pictures", "--data.path", root, "--output", root, *CUT, code=2), root, "--output"
    )
