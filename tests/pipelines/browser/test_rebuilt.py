"""What a page says of a rebuilt picture or sound: measures, patches, moments, differences, tables.

Left out: reading files (test_uploads.py).
"""

import numpy as np
import torch

from pipelines.browser.files import Given
from pipelines.browser.rebuilt import decoded, difference, measures, moment, patch, rebuild, table, variable
from tests.helpers.tiny import codec, pictures, sounds, tokenizer
from tokenizer.metrics import psnr
from tokenizer.sound_metrics import stoi


def test_a_picture_is_rebuilt_and_measured() -> None:
    tok = tokenizer("vq")
    x = pictures(1, 3, 18, 13)
    done = rebuild(tok, Given("it.png", x, 150))
    assert torch.equal(done.codes, tok.encode(x)) and done.x_hat.shape == x.shape
    found = measures(tok, done)
    bits = done.codes.numel() * tok.bits_per_code
    assert found["bits of the codes"] == f"{bits:,.0f}"
    assert (
        found["bits of the file"].startswith("1,200 ")
        and f"{1200 / bits:.1f} times" in found["bits of the file"]
    )
    assert found["PSNR"] == f"{float(psnr(done.x_hat, x)):.2f} dB" and "SSIM" in found


def test_fewer_codebooks_are_fewer_bits_and_another_sound() -> None:
    tok = codec("rvq")
    given = Given("it.wav", sounds(1, 1, 16000), 0)
    whole, half = rebuild(tok, given), rebuild(tok, given, 1)
    assert variable(tok) and not variable(tokenizer("vq"))
    assert torch.equal(whole.codes, half.codes) and not torch.equal(whole.x_hat, half.x_hat)
    assert torch.equal(decoded(tok, given, whole.codes, 1).x_hat, half.x_hat)
    rates = [float(measures(tok, done)["rate"].split()[0]) for done in (whole, half)]
    assert abs(rates[0] - 2 * rates[1]) < 0.02 and "bits of the file" not in measures(tok, whole)
    value = stoi(whole.x_hat, given.x, tok.sample_rate).mean()
    assert value is not None and measures(tok, whole)["STOI"] == f"{value:.3f}"


def test_silence_and_short_sounds_are_not_measured_and_say_so() -> None:
    tok = codec("rvq")
    for x, word in ((torch.zeros(1, 1, 16000), "silent"), (sounds(1, 1, 2000), "loud")):
        found = measures(tok, rebuild(tok, Given("it.wav", x, 9)))
        assert "not measured" in found["STOI"] and word in " ".join(found.values())


def test_a_patch_shows_original_and_rebuilt_with_their_surroundings() -> None:
    tok = tokenizer("vq")
    x = -torch.ones(1, 3, 16, 16)
    x[:, :, 4:8, 8:12] = 1  # row 1, column 2
    done = rebuild(tok, Given("it.png", x, 9))
    both = np.asarray(patch(tok, done, (0, 1, 2)))
    side = both.shape[0]
    assert both.shape[1] == 2 * side + 12
    assert (both[side // 2, side // 2] == 255).all() and (both[side // 6, side // 6] == 0).all()
    corner = np.asarray(patch(tok, done, (0, 0, 0)))
    assert (corner[side // 6, side // 6] == 255).all()  # beyond the picture


def test_a_moment_is_the_codes_own_and_a_little_round_it() -> None:
    tok = codec("rvq")
    done = rebuild(tok, Given("it.wav", sounds(1, 1, 32000), 9))
    x, first, last = moment(tok, done, (0, 150))
    start, end = round(first * 16000), round(last * 16000)
    assert start <= 150 * 60 < 151 * 60 <= end and last - first < 0.6
    assert torch.equal(x[:, :, : end - start], done.given.x[:, :, start:end])
    assert torch.equal(x[:, :, start - end :], done.x_hat[:, :, start:end])
    assert moment(tok, done, (0, 0))[1] == 0.0


def test_differences_are_red_where_brighter_and_blue_where_darker() -> None:
    x = torch.zeros(1, 3, 2, 2)
    x_hat = x.clone()
    x_hat[..., 0, 0], x_hat[..., 1, 1] = 0.9, -0.9
    shown = np.asarray(difference(x_hat, x))
    half = shown.shape[0] // 2
    assert shown[0, 0].tolist() == [255, 0, 0] and shown[-1, -1].tolist() == [0, 0, 255]
    assert shown[0, half].tolist() == [255, 255, 255]


def test_a_table_holds_plain_text_whatever_a_file_is_called() -> None:
    text = table(("name", "value"), [("<b>|x|\n*y*</b>", "1")])
    lines = text.splitlines()
    assert len(lines) == 3 and all(line.count("|") == 3 for line in lines)
    assert "<b>" not in text and "*y*" not in text and "&lt;b&gt;&#124;x&#124; &#42;y&#42;" in text
