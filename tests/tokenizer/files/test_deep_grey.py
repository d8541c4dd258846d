"""Grey of 9 to 32 bits: white stays white, whatever a file calls white."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenizer.modalities.files.pictures import open_picture

RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
EXPECTED = np.round(RAMP / 257).astype(np.uint8)
MOST, LEAST_SIGNED, MOST_SIGNED = 281, 340, 341


def of_bits(bits: int) -> np.ndarray:
    return np.round(RAMP / 65535 * (2**bits - 1)).astype(int)


def tiff(
    bits: int, data: bytes, sample: int = 1, photometric: int = 1, **extra: tuple[int, int, int]
) -> bytes:
    """An 8 × 8 TIFF of one channel; `extra`: tag, type and value of more tags."""
    tags = [(256, 4, 8), (257, 4, 8), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 0)]
    tags += [(277, 3, 1), (278, 4, 8), (279, 4, len(data)), (339, 3, sample), *extra.values()]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = (struct.pack("<HHIi", t, k, 1, start if t == 273 else v) for t, k, v in sorted(tags))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4) + data


def packed_12() -> bytes:
    pairs = of_bits(12).reshape(8, 4, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    three = [first >> 4, (first & 15) << 4 | second >> 8, second & 255]
    return np.stack(three, -1).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("content", "tolerance"),
    [
        (tiff(16, RAMP.tobytes()), 0),
        (tiff(12, packed_12()), 0),
        (tiff(16, of_bits(12).astype("<u2").tobytes(), most=(MOST, 3, 4095)), 0),
        (tiff(16, (RAMP // 20).astype("<u2").tobytes(), most=(MOST, 3, 3276)), 1),
        (tiff(16, RAMP.tobytes(), most=(MOST, 3, 200)), 0),  # contradicted by the values
        (tiff(16, (65535 - RAMP).tobytes(), photometric=0), 0),  # white is zero
        (tiff(16, of_bits(15).astype("<i2").tobytes(), sample=2), 0),
        (
            tiff(
                *(16, (RAMP.astype(int) - 32768).astype("<i2").tobytes(), 2),
                least=(LEAST_SIGNED, 9, -32768),
                most=(MOST_SIGNED, 9, 32767),
            ),
            0,
        ),
        (tiff(32, RAMP.astype("<i4").tobytes(), sample=2), 0),
        (tiff(32, (EXPECTED.astype("<i4")).tobytes(), sample=2, most=(MOST_SIGNED, 9, 255)), 0),
        (tiff(32, (RAMP / np.float32(65535)).tobytes(), sample=3), 0),
        (b"P5 8 8 1023\n" + of_bits(10).astype(">u2").tobytes(), 0),
        (b"P5 8 8 4095\n" + of_bits(12).astype(">u2").tobytes(), 0),
    ],
)
def test_white_is_white(content: bytes, tolerance: int) -> None:
    grey = np.asarray(open_picture(content)).astype(int)
    assert grey.shape == (8, 8) and grey.min() == 0 and grey.max() == 255
    assert np.abs(grey - EXPECTED).max() <= tolerance


def test_turned_pictures_keep_their_levels() -> None:
    content = tiff(16, of_bits(12).astype("<u2").tobytes(), most=(MOST, 3, 4095), turned=(274, 3, 6))
    np.testing.assert_array_equal(np.asarray(open_picture(content)), np.rot90(EXPECTED, -1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            tiff(32, EXPECTED.astype("<i4").tobytes(), sample=2),
            "32 bits .*0..255.*8 bits.*MaxSampleValue",
        ),
        (tiff(16, (RAMP.astype(int) - 32768).astype("<i2").tobytes(), sample=2), "0..32767.*rescale"),
        (tiff(32, RAMP.astype("<f4").tobytes(), sample=3), r"\[0, 1\].*65535.*rescale"),
    ],
)
def test_what_says_not_what_is_white_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^row 1: .*{message}"):
        open_picture(content, "row 1")


def test_dark_colours_of_16_bits_are_refused(tmp_path: Path) -> None:
    """Pillow reads the upper 8 bits of these, of which a camera of 12 bits leaves 4."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.tif", tiffinfo={MOST: 4095})
    assert open_picture(tmp_path / "a.tif").mode == "RGB"
    content = (tmp_path / "a.tif").read_bytes()
    with Image.open(tmp_path / "a.tif") as image:
        at = content.index(struct.pack("<HHI", 258, 3, 3)) + 8
        (where,) = struct.unpack_from("<I", content, at)
        assert image.tag_v2[258] == (8, 8, 8)
    deep = content[:where] + struct.pack("<3H", 16, 16, 16) + content[where + 6 :] + bytes(48)
    counts = content.index(struct.pack("<HHI", 279, 4, 1)) + 8
    deep = deep[:counts] + struct.pack("<I", 96) + deep[counts + 4 :]
    with pytest.raises(ValueError, match=r"MaxSampleValue 4095 .*16 bits.*8 bits"):
        open_picture(deep)
