"""Files that people give the page and take from it: refusals in a sentence, limits, results, the folder.

Left out: formats of files (tokenizer/files).
"""

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors import safe_open

from pipelines.browser.files import (
    KEPT,
    MOST_PIXELS,
    MOST_SECONDS,
    Folder,
    beside,
    brought_to,
    picture_of,
    read_picture,
    read_sound,
    write_codes,
    write_png,
    write_sound,
)
from tests.helpers.running import noise
from tests.helpers.tiny import codec, pictures, sounds, tokenizer


def write(path: Path, width: int, height: int) -> str:
    Image.fromarray(noise(0, height, width, 3)).save(path)
    return str(path)


def test_a_picture_comes_at_the_size_of_training_or_its_own(tmp_path: Path) -> None:
    tok = tokenizer("vq")
    path = write(tmp_path / "it.png", 60, 40)
    given = read_picture(path, tok)
    assert given.x.shape == (1, 3, 16, 16) and given.name == "it.png"
    assert given.file_bytes == os.path.getsize(path)
    assert read_picture(path, tok, keep=True).x.shape == (1, 3, 40, 60)
    large = read_picture(write(tmp_path / "large.png", 4 * MOST_PIXELS, MOST_PIXELS), tok, keep=True)
    assert large.x.shape == (1, 3, MOST_PIXELS // 4, MOST_PIXELS)


def test_bad_pictures_are_told_by_their_own_name(tmp_path: Path) -> None:
    tok = tokenizer("vq")
    (tmp_path / "text.png").write_text("no picture")
    data = io.BytesIO()
    Image.new("1", (10000, 5000)).save(data, "png")
    (tmp_path / "huge.png").write_bytes(data.getvalue())
    for name, words in (("text.png", "text.png"), ("huge.png", "huge.png.*pixels")):
        with pytest.raises(ValueError, match=words) as told:
            read_picture(str(tmp_path / name), tok)
        assert str(tmp_path) not in str(told.value)
    for nothing in (None, ""):
        with pytest.raises(ValueError, match="no picture yet"):
            read_picture(nothing, tok)


def test_sound_comes_at_the_rate_of_the_model_and_not_for_ever(tmp_path: Path) -> None:
    tok = codec("rvq")
    soundfile.write(tmp_path / "it.wav", 0.1 * np.sin(np.arange(8000) / 10), 8000)
    given = read_sound(str(tmp_path / "it.wav"), tok)
    assert given.x.shape == (1, 1, 16000)
    soundfile.write(tmp_path / "long.flac", np.zeros(8000 * 600, np.int16), 8000)
    with pytest.raises(ValueError, match=f"long.flac: lasts 600 s.*{MOST_SECONDS} s"):
        read_sound(str(tmp_path / "long.flac"), tok)
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(ValueError, match=r"text\.wav"):
        read_sound(str(tmp_path / "text.wav"), tok)
    with pytest.raises(ValueError, match="no sound yet"):
        read_sound(None, tok)


def test_results_are_what_was_computed(tmp_path: Path) -> None:
    tok, sound_tok = tokenizer("vq"), codec("rvq")
    x, y = pictures(1, 3, 12, 10), sounds(1, 1, 4001)
    with Image.open(write_png(tmp_path / "it.png", x, tok)) as picture:
        assert picture.size == (10, 12)
        back = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 127.5 - 1
    assert (back - x[0].clamp(-1, 1)).abs().max() < 0.005
    samples, rate = soundfile.read(write_sound(tmp_path / "it.wav", y, sound_tok))
    assert (len(samples), rate) == (4001, 16000)
    codes = tok.encode(x)
    with safe_open(write_codes(tmp_path / "codes.safetensors", codes, tok), "pt") as file:
        assert torch.equal(file.get_tensor("codes"), codes)
        assert file.metadata() == {"tokenizer": tok.fingerprint()}


def test_the_folder_forgets_old_results_and_goes_away() -> None:
    folder = Folder()
    first = folder.new("it.png")
    first.write_text("x")
    assert first.is_relative_to(folder.path) and len(first.parent.name) == 32
    old = time.time() - KEPT - 10
    os.utime(first.parent, (old, old))
    second = folder.new("it.png")
    assert not first.exists() and second.parent.is_dir()
    folder.remove()
    assert not folder.path.exists()


def test_small_pictures_are_enlarged_by_whole_factors() -> None:
    tok = tokenizer("vq")
    assert picture_of(pictures(1, 3, 16, 12), tok, 100).size == (72, 96)
    assert picture_of(pictures(1, 3, 16, 12), tok, 10).size == (12, 16)
    assert beside([Image.new("RGB", (5, 4)), Image.new("RGB", (6, 4))], gap=2).size == (13, 4)


def test_other_data_are_brought_to_a_size() -> None:
    x = sounds(1, 1, 100)
    assert torch.equal(brought_to(x, (40,)), x[:, :, :40])
    assert brought_to(x, (130,))[0, 0, 100:].tolist() == 30 * [0.0]
    assert brought_to(pictures(1, 3, 8, 8), (5, 6)).shape == (1, 3, 5, 6)
