"""Pictures from files to the tokenizer's input, and back from its output.

Left out: kinds of pictures (tokenizer/files/test_pictures.py), and what is encoded of them (test_model.py).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.tiny import pictures, tokenizer


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pictures_come_back_exactly(channels: int, mode: str, tmp_path: Path) -> None:
    tok = tokenizer(channels=channels)
    shape = (16, 16) if channels == 1 else (16, 16, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels.reshape(-1)[:256] = np.arange(256)
    picture = Image.fromarray(pixels)
    assert picture.mode == mode
    picture.save(tmp_path / "a.png")
    for source in (picture, tmp_path / "a.png", str(tmp_path / "a.png"), pixels, pixels / 255):
        x = tok.preprocess(source)
        assert x.shape == (1, channels, 16, 16) and x.dtype == torch.float32
        (again,) = tok.postprocess(x)
        assert again.mode == mode
        np.testing.assert_array_equal(np.asarray(again), pixels)
    assert x.min().item() == -1 and x.max().item() == 1
    several = tok.preprocess([picture, tmp_path / "a.png", pixels, Image.new("RGB", (40, 20))])
    assert several.shape == (4, channels, 16, 16)
    assert torch.equal(several[:3], x.expand(3, -1, -1, -1)) and (several[3] == -1).all()


def test_preprocess_brings_any_picture_to_size_and_channels() -> None:
    grey, colour = tokenizer(channels=1), tokenizer(size=(8, 12))
    red = Image.new("RGB", (50, 31), (255, 0, 0))
    x = colour.preprocess(red)
    assert x.shape == (1, 3, 8, 12)
    assert x[0, 0].unique().tolist() == [1] and x[0, 1:].unique().tolist() == [-1]
    assert grey.preprocess(red).shape == (1, 1, 16, 16)
    assert colour.preprocess(Image.new("L", (1, 1), 255)).unique().tolist() == [1]


def test_postprocess_clips_and_rounds() -> None:
    tok = tokenizer(channels=1)
    (picture,) = tok.postprocess(torch.tensor([[[[-3.0, -1, -0.998, 0, 0.999, 7]]]]))
    assert np.asarray(picture).tolist() == [[0, 0, 0, 128, 255, 255]]
    x_hat = tok(pictures(2, 1, 5, 7)).x_hat
    first, second = tok.postprocess(x_hat)
    assert first.size == second.size == (7, 5)
    assert tok.postprocess(x_hat.bfloat16())[0].size == (7, 5)
    for bad in (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4)):
        with pytest.raises(ValueError, match=r"expected \(B, 1, H, W\), got"):
            tok.postprocess(bad)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.png", "nowhere.png: .*path"),
        ([], "preprocess .*empty list.*one source"),
        (np.zeros((2, 2, 5)), r"\(2, 2, 5\): expected \(H, W\) or \(H, W, C\)"),
        (np.full((2, 2), 3.0), r"\[0, 1\], got 3..3; rescale"),
    ],
)
def test_what_is_no_picture_is_refused(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer().preprocess(source)
