"""Colour profiles: pictures of other colours become sRGB, those of sRGB stay as they are, to the bit."""

import logging
import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from tokenizer import checks
from tokenizer.modalities.files.pictures import open_picture

# Primaries of Display P3 and of sRGB, adapted to D50: columns are the XYZ of red, green and blue.
P3 = np.array([[0.5151, 0.292, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])
SRGB = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
WHITE = (0.9642, 1.0, 0.8249)


def profile(space: bytes, gamma: float, primaries: np.ndarray = P3) -> bytes:
    """A profile of grey or RGB with one power as its curve."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    if space == b"GRAY":
        return packed(space, {b"kTRC": curve})
    tags = {}
    for name, column in zip((b"r", b"g", b"b"), primaries.T, strict=True):
        tags |= {name + b"XYZ": xyz(tuple(column)), name + b"TRC": curve}
    return packed(space, tags)


def black_alone() -> bytes:
    """A profile of CMYK whose lightness L* falls evenly with black ink, and whose other inks do nothing."""
    ramp = bytes(range(256))
    corners = b"".join(bytes([0 if i & 1 else 255, 128, 128]) for i in range(16))  # black varies fastest
    head = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])  # 4 inks, L* a* b*, 2 steps along each
    one = (struct.pack(">i", (i in (0, 4, 8)) << 16) for i in range(9))
    return packed(b"CMYK", {b"A2B0": head + b"".join(one) + ramp * 4 + corners + ramp * 3}, b"Lab ")


def xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))


def packed(space: bytes, own: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    """A profile of the ICC, version 2, with these tags and those that each must have."""
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"mine\0" + bytes(78)
    tags = {b"desc": text + bytes(-len(text) % 4), b"wtpt": xyz(WHITE), **own}
    place, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        table += name + struct.pack(">2I", place + len(data), len(value))
        data += value
    head = struct.pack(">I4sI4s4s4s", 0, b"lcms", 0x02100000, b"mntr", space, connection) + bytes(12)
    head += b"acsp" + bytes(28) + struct.pack(">3i", *(round(v * 65536) for v in WHITE))
    whole = head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data
    return struct.pack(">I", len(whole)) + whole[4:]


def srgb_of(values: np.ndarray, gamma: float, primaries: np.ndarray = P3) -> np.ndarray:
    """The same by the definition of sRGB (IEC 61966-2-1)."""
    linear = (values / 255.0) ** gamma
    if values.ndim == 3:
        linear = linear @ (np.linalg.inv(SRGB) @ primaries).T
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def saved(image: Image.Image, form: str, icc: bytes | None) -> bytes:
    file = BytesIO()
    image.save(file, form, icc_profile=icc)
    return file.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_said", set())


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_other_colours_become_srgb(form: str) -> None:
    rgb = noise(16, 16, 3)
    options = {"lossless": True} if form == "WEBP" else {}
    file = BytesIO()
    Image.fromarray(rgb).save(file, form, icc_profile=profile(b"RGB ", 2.2), **options)
    found = np.asarray(open_picture(file.getvalue())).astype(float)
    assert np.abs(found - srgb_of(rgb, 2.2)).max() <= 2 and np.abs(found - rgb).max() > 20
    once_more = open_picture(open_picture(file.getvalue()))
    np.testing.assert_array_equal(np.asarray(once_more), found)


def test_grey_stays_grey() -> None:
    grey = noise(16, 16)
    for space in (b"GRAY", b"RGB "):  # the curve of the one and of the other
        found = open_picture(saved(Image.fromarray(grey), "PNG", profile(space, 1.0)))
        assert found.mode == "L" and np.abs(np.asarray(found) - srgb_of(grey, 1.0)).max() <= 2
    np.testing.assert_array_equal(np.asarray(open_picture(found)), np.asarray(found))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(open_picture(saved(deep, "PNG", profile(b"GRAY", 1.0))), found)


def test_inks_become_srgb() -> None:
    inks = noise(16, 16, 4)
    found = np.asarray(open_picture(saved(Image.fromarray(inks, "CMYK"), "TIFF", black_alone())))
    lightness = 100 * (1 - inks[..., 3] / 255.0)
    linear = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness * 27 / 24389)  # CIE 1976
    assert found.shape == (16, 16, 3)
    assert np.abs(found - srgb_of(255 * linear, 1.0)[..., None]).max() <= 3


def test_transparency_is_kept() -> None:
    rgba = noise(8, 8, 4)
    rgba[..., 3] = np.where(rgba[..., 3] > 127, 255, 0)
    icc = profile(b"RGB ", 1.0)
    found = np.asarray(open_picture(saved(Image.fromarray(rgba), "PNG", icc))).astype(float)
    expected = np.where(rgba[..., 3:] == 255, srgb_of(rgba[..., :3], 1.0), 255)
    assert np.abs(found - expected).max() <= 2
    palette = Image.fromarray(noise(8, 8, 3)).quantize(8)
    plain = np.asarray(palette.convert("RGB"))
    found = np.asarray(open_picture(saved(palette, "PNG", icc))).astype(float)
    assert np.abs(found - srgb_of(plain, 1.0)).max() <= 2


def test_srgb_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rgb = noise(32, 32, 3)
    built_in = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for icc in (None, built_in):
        np.testing.assert_array_equal(np.asarray(open_picture(saved(Image.fromarray(rgb), "PNG", icc))), rgb)
    assert caplog.messages == []


@pytest.mark.parametrize("icc", [b"no profile", profile(b"GRAY", 1.0), profile(b"RGB ", 2.2)[:200]])
def test_profiles_that_cannot_be_used_are_ignored_and_named(
    icc: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    rgb = noise(4, 4, 3)
    for name in ("a", "b"):
        found = open_picture(saved(Image.fromarray(rgb), "PNG", icc), name)
        np.testing.assert_array_equal(np.asarray(found), rgb)
    (message,) = caplog.messages
    assert message.startswith("a: its colour profile is ignored")


def test_a_conversion_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for name in ("a", "b"):
        open_picture(saved(Image.fromarray(noise(4, 4, 3)), "PNG", profile(b"RGB ", 2.2)), name)
    (message,) = caplog.messages
    assert message.startswith("a: converted from its colour profile (mine) to sRGB")
