"""PNG files with parts that Pillow refuses: the pixels are read if these parts do not decide them."""

import logging
import zlib

import numpy as np
import pytest

from tests.helpers.broken_media import PNG, png_chunk, png_chunks
from tests.helpers.pictures_on_disk import png
from tests.tokenizer.files.test_colour_profiles import P3, profile, srgb_of
from tokenizer import checks
from tokenizer.modalities.files.pictures import open_picture

MIB = 1 << 20
WHOLE = png(0, (8, 8))
PIXELS = np.asarray(open_picture(WHOLE))


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_said", set())


def with_chunks(*chunks: bytes, last: bool = False) -> bytes:
    """The picture with more chunks, before its pixels or after them."""
    parts = [png_chunk(*part) for part in png_chunks(WHOLE)]
    at = -1 if last else 1
    return PNG + b"".join([*parts[:at], *chunks, *parts[at:]])


def wrong(kind: bytes, data: bytes) -> bytes:
    return png_chunk(kind, data)[:-4] + b"1234"


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "chunk",
    [
        wrong(b"tEXt", b"Comment\0hello"),
        wrong(b"tIME", bytes(7)),
        png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 * MIB))),
        png_chunk(b"iTXt", b"XML\0\1\0\0\0" + zlib.compress(bytes(2 * MIB))),
        b"".join([png_chunk(b"tEXt", b"Comment\0" + b"x" * (MIB - 8))] * 65),
    ],
)
def test_texts_do_not_decide_whether_pixels_are_read(chunk: bytes, last: bool) -> None:
    np.testing.assert_array_equal(np.asarray(open_picture(with_chunks(chunk, last=last))), PIXELS)


def test_a_profile_above_pillows_limit_is_applied(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    icc = profile(b"RGB ", 1.0)
    # As many bytes more behind its tags as make it too large.
    large = (len(icc) + 2 * MIB).to_bytes(4, "big") + icc[4:] + bytes(2 * MIB)
    content = with_chunks(png_chunk(b"iCCP", b"mine\0\0" + zlib.compress(large)))
    for _ in range(2):
        found = np.asarray(open_picture(content, "a")).astype(float)
    assert np.abs(found - srgb_of(PIXELS, 1.0, P3)).max() <= 2
    assert [m for m in caplog.messages if "read without" in m] == [
        "a: read without iCCP (larger than Pillow reads); said once"
    ]


@pytest.mark.parametrize("kind", [b"IHDR", b"tRNS"])
def test_what_pixels_depend_on_must_be_whole(kind: bytes) -> None:
    parts = [
        wrong(*p) if p[0] == kind else png_chunk(*p)
        for p in png_chunks(with_chunks(png_chunk(b"tRNS", bytes(6))))
    ]
    with pytest.raises(ValueError, match=r"^a: .*(checksum|not a picture)"):
        open_picture(PNG + b"".join(parts), "a")
