"""Files to what the tokenizer takes: sizes that are asked for, batches with their lengths, and what is known
of the codes.

Left out: kinds of files (files/), the size of training (test_pictures.py), and what padding does to codes
(test_streaming.py).
"""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.tiny import codec, pictures, sounds, tokenizer


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def waves(*lengths: int) -> list[tuple[Any, int]]:
    """Sounds of so many samples, at the codec's own rate."""
    return [(sounds(1, 1, n, seed=n)[0].numpy(), 16000) for n in lengths]


# Sizes


def test_a_picture_is_brought_to_the_size_asked_for() -> None:
    tok, source = tokenizer(), picture(20, 30)
    assert tok.preprocess(source).shape == (1, 3, 16, 16)
    assert tok.preprocess(source, 24).shape == tok.preprocess(source, size=(24, 24)).shape == (1, 3, 24, 24)
    assert tok.preprocess([source, picture(9, 9)], size=[8, 12]).shape == (2, 3, 8, 12)
    # What is cut off lies at the sides: the middle square of a picture that need not be scaled.
    square = torch.from_numpy(np.asarray(source)[:, 5:25].copy()).permute(2, 0, 1)[None] / 127.5 - 1
    torch.testing.assert_close(tok.preprocess(source, np.int64(20)), square)


def test_a_picture_keeps_its_own_size() -> None:
    tok, source = tokenizer(), picture(21, 30)
    x = tok.preprocess(source, size="keep")
    torch.testing.assert_close(
        x[0].permute(1, 2, 0), torch.from_numpy(np.asarray(source) / 127.5 - 1).float()
    )
    codes = tok.encode(x)
    assert codes.shape == (1, 1, 6, 8) and tok.decode(codes, size=(21, 30)).shape == x.shape
    assert tok.preprocess([source, picture(21, 30, seed=1)], size="keep").shape == (2, 3, 21, 30)
    with pytest.raises(
        ValueError, match=r"2 sizes \(H, W\), \(21, 30\) to \(30, 21\), .* give the size=\(H, W\)"
    ):
        tok.preprocess([source, picture(30, 21)], size="keep")


def test_a_sound_is_cut_or_padded_to_the_samples_asked_for() -> None:
    tok, (source,) = codec(), waves(500)
    whole = tok.preprocess(source)
    assert whole.shape == (1, 1, 500) and torch.equal(whole[0], torch.from_numpy(source[0]))
    assert torch.equal(tok.preprocess(source, size="keep"), whole)
    assert torch.equal(tok.preprocess(source, size=480), whole[:, :, :480])
    assert torch.equal(tok.preprocess(source, (480,)), whole[:, :, :480])
    longer = tok.preprocess(source, size=620)
    assert torch.equal(longer[:, :, :500], whole) and longer[:, :, 500:].eq(0).all()
    assert longer.shape == (1, 1, 620)
    assert torch.equal(tok.preprocess([source, *waves(620)], size=500)[:1], whole)
    # Of another rate: samples of the tokenizer's.
    assert tok.preprocess((source[0], 8000), size=700).shape == (1, 1, 700)
    assert tok.preprocess((source[0], 8000)).shape == (1, 1, 1000)


@pytest.mark.parametrize(
    "size", [0, -1, 16385, 8.5, True, (8,), (8, 8, 8), (8, 0), (8, True), "large", "", None]
)
def test_sizes_that_no_picture_can_have_are_refused(size: Any) -> None:
    tok = tokenizer()
    if size is None:  # that of training
        assert tok.preprocess(picture(4, 4), None).shape[2:] == (16, 16)
        return
    for call in (
        lambda: tok.preprocess(picture(4, 4), size),
        lambda: tok.preprocess_batch([picture(4, 4)], size),
    ):
        with pytest.raises(
            ValueError, match=r"expected \(H, W\) or one number, .* 1 to 16384, or 'keep'"
        ) as caught:
            call()
        assert repr(size) in str(caught.value)


@pytest.mark.parametrize("size", [0, -5, 1 << 31, 0.5, (8, 8), "whole"])
def test_lengths_that_no_sound_can_have_are_refused(size: Any) -> None:
    tok = codec()
    for call in (lambda: tok.preprocess(waves(90)[0], size), lambda: tok.preprocess_batch(waves(90), size)):
        with pytest.raises(
            ValueError, match="expected a number T, whole numbers from 1 to 1073741824, or 'keep'"
        ):
            call()


# Batches


def test_a_batch_of_sounds_has_their_lengths() -> None:
    tok, items = codec(), waves(500, 60, 333)
    x, lengths = tok.preprocess_batch(items)
    assert lengths is not None and lengths.dtype == torch.int64 and lengths.tolist() == [500, 60, 333]
    assert x.shape == (3, 1, 500) and x.dtype == torch.float32
    codes = tok.encode(x, lengths)
    for i, item in enumerate(items):
        n, alone = len(item[0][0]), tok.preprocess(item)
        assert torch.equal(x[i : i + 1, :, :n], alone) and x[i, :, n:].eq(0).all()
        frames = -(-n // 60)
        assert (
            torch.equal(codes[i : i + 1, :, :frames], tok.encode(alone)) and codes[i, :, frames:].eq(0).all()
        )
    cut, lengths = tok.preprocess_batch(items, size=400)
    assert lengths is not None and lengths.tolist() == [400, 60, 333]
    assert torch.equal(cut, x[:, :, :400])
    padded, lengths = tok.preprocess_batch(items, size=700)
    assert lengths is not None and lengths.tolist() == [500, 60, 333]
    assert padded.shape == (3, 1, 700) and torch.equal(padded[:, :, :500], x)
    with pytest.raises(ValueError, match="60 to 500 samples, expected one length; preprocess_batch"):
        tok.preprocess(items)


def test_a_batch_of_pictures_has_one_size() -> None:
    tok, items = tokenizer(), [picture(20, 30), picture(9, 9)]
    x, lengths = tok.preprocess_batch(items)
    assert lengths is None and torch.equal(x, tok.preprocess(items))
    assert torch.equal(tok.encode(x, lengths), tok.encode(tok.preprocess(items)))
    assert tok.preprocess_batch(items, 12)[0].shape == (2, 3, 12, 12)
    assert tok.preprocess_batch(items[:1], "keep")[0].shape == (1, 3, 20, 30)


@pytest.mark.parametrize("tok", [tokenizer(), codec()], ids=["pictures", "sound"])
def test_a_batch_is_a_list_with_something_in_it(tok: Any) -> None:
    with pytest.raises(ValueError, match=r"preprocess .*empty list.*one source"):
        tok.preprocess_batch([])
    for one in ("a.png", (np.zeros(5), 16000)):
        with pytest.raises(
            TypeError, match=r"expected a list of sources, got (str|tuple); .* give \[source\]"
        ):
            tok.preprocess_batch(one)


# What is known of the codes


def test_rates_of_sound_and_none_of_pictures() -> None:
    assert (codec().sample_rate, codec().frame_rate) == (16000, 16000 / 60)
    assert codec(sample_rate=24000).frame_rate == 400.0
    tok = tokenizer()
    assert tok.sample_rate == 0 and tok.frame_rate == 0.0 and isinstance(tok.frame_rate, float)
    assert tok.encode(pictures(1, 3, 8, 8)).shape == (1, 1, 2, 2)


def test_a_vae_is_not_discrete() -> None:
    assert tokenizer().is_discrete is True and codec().is_discrete is True
    assert tokenizer("gaussian").is_discrete is False and tokenizer("gaussian_quant").is_discrete is True
