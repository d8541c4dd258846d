"""Pictures of every kind that Pillow and numpy hold become 8-bit arrays, or a message that helps."""

import re
import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.config import DataConfig
from pipelines.data.folders import find_sources
from pipelines.data.pictures import PICTURES
from tokenizer.modalities.files.pictures import (
    FORMATS,
    PICTURE_SUFFIXES,
    PICTURE_UNREADABLE,
    fit_picture,
    open_picture,
)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(open_picture(image))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_sources_of_one_picture_agree(tmp_path: Path) -> None:
    array = noise(5, 7, 3)
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    for source in (path, str(path), path.read_bytes(), Image.open(path), array):
        image = open_picture(source)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), array)
    assert open_picture(noise(4, 6)).mode == "L"
    assert open_picture(noise(4, 6, 1)).size == (6, 4)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "La", "RGBa", "PA"])
def test_transparency_is_composited_on_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (10, 10, 10, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    if mode == "La":
        image = image.convert("LA")
    out = np.asarray(open_picture(image.convert(mode))).reshape(2, -1)
    assert set(out[0]) == {10} and set(out[1]) == {255}
    assert open_picture(image.convert(mode)).mode == ("L" if mode in ("LA", "La") else "RGB")


def test_half_transparent_black_is_grey() -> None:
    out = np.asarray(open_picture(np.array([[[0, 0, 0, 128]]], dtype=np.uint8)))
    np.testing.assert_array_equal(out, [[[127, 127, 127]]])


def test_transparency_chunks_of_png(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=1)
    np.testing.assert_array_equal(np.asarray(open_picture(tmp_path / "p.png")), [[[255, 0, 0], [255] * 3]])
    Image.fromarray(np.array([[7, 9]], dtype=np.uint8)).save(tmp_path / "l.png", transparency=9)
    np.testing.assert_array_equal(np.asarray(open_picture(tmp_path / "l.png")), [[7, 255]])
    Image.fromarray(np.array([[257 * 7, 300]], dtype=np.uint16)).save(tmp_path / "i.png", transparency=300)
    np.testing.assert_array_equal(np.asarray(open_picture(tmp_path / "i.png")), [[7, 255]])


def test_bilevel_and_plain_palette() -> None:
    np.testing.assert_array_equal(pixels(Image.new("1", (2, 2), 1)), np.full((2, 2), 255))
    palette = Image.new("P", (1, 1))
    palette.putpalette([1, 2, 3])
    np.testing.assert_array_equal(pixels(palette), [[[1, 2, 3]]])


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "HSV"])
def test_other_colour_spaces_become_rgb(mode: str, tmp_path: Path) -> None:
    red = Image.new("RGB", (8, 8), (200, 30, 40))
    if mode == "LAB":  # L 44, a 64, b 42 is (200, 30, 40) in sRGB; Pillow holds 2.55 L, a + 128, b + 128
        converted = Image.new("LAB", (8, 8), (112, 64 + 128, 42 + 128))
    else:
        converted = red.convert(mode)
    out = open_picture(converted)
    assert out.mode == "RGB"
    assert np.abs(np.asarray(out).astype(int) - np.asarray(red)).max() <= 16
    if mode == "CMYK":
        converted.save(tmp_path / "a.jpg", quality=95)
        assert np.abs(np.asarray(open_picture(tmp_path / "a.jpg")).astype(int) - np.asarray(red)).max() <= 16


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    expected = [[0, 0, 1, 1, 128, 255]]
    np.testing.assert_array_equal(np.asarray(open_picture(values)), expected)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(open_picture(tmp_path / "a.png")), expected)
    Image.fromarray(values.astype(">u2")).save(tmp_path / "b.tif")
    np.testing.assert_array_equal(np.asarray(open_picture(tmp_path / "b.tif")), expected)
    np.testing.assert_array_equal(pixels(Image.fromarray(values.astype(np.int32))), expected)
    with pytest.raises(ValueError, match=r"picture: .*grey.*0\.\.65535.*got -1\.\.3; rescale"):
        open_picture(Image.fromarray(np.array([[-1, 3]], dtype=np.int32)))


def test_float_grey_is_read_as_zero_to_one() -> None:
    values = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    np.testing.assert_array_equal(pixels(Image.fromarray(values)), [[0, 128, 255]])
    np.testing.assert_array_equal(np.asarray(open_picture(values.astype(np.float64))), [[0, 128, 255]])
    for bad in (values * 255, -values, values * np.nan):
        with pytest.raises(ValueError, match=r"array .*float.*\[0, 1\], got .*rescale"):
            open_picture(bad)
    with pytest.raises(ValueError, match=r"\[0, 1\], got 0\.\.255; rescale"):
        open_picture(Image.fromarray(values * 255))


@pytest.mark.parametrize("shape", [(3,), (2, 3, 5, 5), (3, 8, 8), (8, 8, 2)])
def test_arrays_of_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(H, W\) or \(H, W, C\) with 1, 3 or 4 channels last"):
        open_picture(np.zeros(shape, dtype=np.uint8))
    with pytest.raises(ValueError, match=rf"^row 3: .*channels last, got {re.escape(str(shape))}$"):
        open_picture(np.zeros(shape, dtype=np.uint8), name="row 3")


def test_arrays_of_other_types() -> None:
    with pytest.raises(ValueError, match=r"expected uint8, uint16, or float in .*, got int64; convert"):
        open_picture(np.zeros((2, 2), dtype=np.int64))
    with pytest.raises(ValueError, match=r"\(0, 2\): .*no pixels; remove"):
        open_picture(np.zeros((0, 2), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"picture: .*0 x 5 .*no pixels; remove"):
        open_picture(Image.new("RGB", (0, 5)))
    with pytest.raises(TypeError, match=r"a path, bytes, a PIL.Image or a numpy array, got int"):
        open_picture(3)  # type: ignore[arg-type]


def test_orientation_is_applied_once(tmp_path: Path) -> None:
    array = noise(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to show
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    upright = open_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(upright), np.rot90(array, -1))
    np.testing.assert_array_equal(np.asarray(open_picture(upright)), np.rot90(array, -1))


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(np.asarray(open_picture(tmp_path / "a.gif"))[0, 0], [255, 0, 0])


def test_bad_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(whole, "PNG")
    jpeg = BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(jpeg, "JPEG")
    (tmp_path / "text.png").write_text("not a picture at all")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "half.png").write_bytes(whole.getvalue()[:5000])
    (tmp_path / "half.jpg").write_bytes(jpeg.getvalue()[:1500])
    (tmp_path / "folder.png").mkdir()
    for name, reason in {
        "missing.png": ".*path",
        "text.png": "not a picture.*remove.*PNG",
        "empty.png": "not a picture.*remove.*PNG",
        "half.png": ".*truncated.*remove",
        "half.jpg": ".*truncated.*remove",
        "folder.png": ".*folder, expected a picture file; .* in it",
    }.items():
        with pytest.raises(ValueError, match=f"{name}: {reason}"):
            open_picture(tmp_path / name)
    with pytest.raises(ValueError, match=r"row 3: not a picture.*remove.*PNG"):
        open_picture(b"", name="row 3")
    with pytest.raises(ValueError, match=r"^row 3: .*truncated.*remove"):
        open_picture(whole.getvalue()[:5000], name="row 3")


def test_formats_that_run_programs_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EPS is PostScript, which Pillow has Ghostscript run."""
    Image.fromarray(noise(4, 4, 3)).save(tmp_path / "a.eps")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.eps").read_bytes())
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "EPS"
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(ValueError, match=r"a\.png: not a picture.*format.*PNG"):
        open_picture(tmp_path / "a.png")


@pytest.mark.parametrize("limit", [3000, 1500])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pillows_limit_of_pixels_is_an_error(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "a.png")  # 4096 pixels: 1.4 and 2.7 times the limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"a\.png: .*limit of .* pixels.*PIL\.Image\.MAX_IMAGE_PIXELS"):
        open_picture(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert open_picture(tmp_path / "a.png").size == (64, 64)


@pytest.mark.parametrize("form", ["png", "tif", "gif", "webp"])
@pytest.mark.parametrize("limit", [3000, 1500])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_limit_of_ones_own_leaves_pillows_as_it_is(
    form: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 1.4 and at 2.7 times the limit: between one and two times Pillow warns, beyond it refuses."""
    array = noise(64, 64)
    Image.fromarray(array).save(tmp_path / f"a.{form}", lossless=True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    found = open_picture(tmp_path / f"a.{form}", max_megapixels=0.0041)
    np.testing.assert_array_equal(np.asarray(found.convert("L")), array)
    assert limit == Image.MAX_IMAGE_PIXELS
    for megapixels in (0.004, 0.001):
        with pytest.raises(ValueError, match=rf"a\.{form}: .*pixels.*--data\.max-megapixels"):
            open_picture(tmp_path / f"a.{form}", max_megapixels=megapixels)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("suffix", sorted(PICTURE_SUFFIXES))
def test_what_is_listed_is_read(suffix: str, tmp_path: Path) -> None:
    """By its content, whatever the name."""
    Image.init()
    form = Image.registered_extensions()[suffix]
    y, x = np.mgrid[:64, :64]
    smooth = np.stack([2 * x + 40, 3 * y + 20, x + y + 60], -1).astype(np.uint8)
    image = Image.fromarray(smooth)
    if suffix in (".pgm", ".bw", ".pbm", ".pfm"):
        grey = Image.fromarray(smooth[..., 0])
        modes = {".pbm": grey.convert("1"), ".pfm": Image.fromarray(smooth[..., 0] / np.float32(255))}
        image = modes.get(suffix, grey)
    expected = np.asarray(image.convert("RGB")).astype(int)
    if suffix == ".pfm":
        expected = smooth[..., :1].repeat(3, -1).astype(int)
    if suffix == ".ico":  # other depths have a mask of transparency
        image.save(tmp_path / f"a{suffix}", sizes=[(64, 64)])
    else:
        image.save(tmp_path / f"a{suffix}", form, quality=95)
    opened = open_picture(tmp_path / f"a{suffix}").convert("RGB")
    # Icons come in several sizes, of which the largest counts.
    found = np.asarray(opened.resize((64, 64), Image.Resampling.BOX)).astype(int)
    assert found.shape == expected.shape and np.abs(found - expected).mean() < (6 if form == "GIF" else 3)


def test_all_names_of_what_is_read_are_listed() -> None:
    """What this Pillow registers for the formats that are read; it opens MPO, JPEGs in a row, as JPEG."""
    Image.init()
    registered = {suffix for suffix, form in Image.registered_extensions().items() if form in FORMATS}
    assert registered <= PICTURE_SUFFIXES and set(FORMATS) - {"MPO"} <= Image.OPEN.keys()
    assert {*PICTURES.suffixes} == PICTURE_SUFFIXES and not PICTURE_SUFFIXES & PICTURE_UNREADABLE.keys()
    for suffix, way in PICTURE_UNREADABLE.items():
        assert (suffix == suffix.lower() and suffix[0] == "." and "`" in way) or "export" in way
    assert "heif" in PICTURE_UNREADABLE[".heic"] and "rsvg" in PICTURE_UNREADABLE[".svg"]


def test_folders_are_searched_for_all_that_is_read(tmp_path: Path) -> None:
    for i, suffix in enumerate((".avif", ".JFIF", ".jp2", ".ico", ".tga", ".qoi", ".pcx")):
        form = Image.registered_extensions()[suffix.lower()]
        Image.fromarray(noise(32, 32, 3)).save(tmp_path / f"{i}{suffix}", form)
    (tmp_path / "7.heic").touch()
    found = find_sources(DataConfig(str(tmp_path)), PICTURES).train
    assert [found.id(i)[0] for i in range(len(found))] == list("0123456")


def test_fit_leaves_pictures_of_the_right_size_alone() -> None:
    array = noise(6, 8, 3)
    for size in (None, (6, 8)):
        out = fit_picture(Image.fromarray(array), size, 3)
        assert out.dtype == np.uint8 and out.flags.c_contiguous and out.flags.writeable
        np.testing.assert_array_equal(out, array.transpose(2, 0, 1))


def test_fit_converts_channels() -> None:
    grey = Image.fromarray(noise(3, 4))
    np.testing.assert_array_equal(fit_picture(grey, None, 3), np.stack([np.asarray(grey)] * 3))
    assert fit_picture(grey.convert("RGB"), None, 1).shape == (1, 3, 4)
    np.testing.assert_array_equal(fit_picture(grey.convert("RGB"), None, 1)[0], np.asarray(grey))
    np.testing.assert_array_equal(fit_picture(Image.new("RGBA", (1, 1), (0, 0, 0, 0)), None, 1), [[[255]]])
    with pytest.raises(ValueError, match=r"channels: expected 1 .* or 3 .*, got 2"):
        fit_picture(grey, None, 2)
    with pytest.raises(ValueError, match=r"size .*1 x 1 .*got \(0, 4\)"):
        fit_picture(grey, (0, 4), 1)


def test_fit_keeps_the_aspect_and_the_centre() -> None:
    wide = np.zeros((10, 30), dtype=np.uint8)
    wide[:, 10:20] = 255  # the middle third fills a square crop
    assert fit_picture(Image.fromarray(wide), (5, 5), 1)[0, :, 1:4].min() > 240
    np.testing.assert_array_equal(
        fit_picture(Image.fromarray(wide.T), (10, 10), 1), np.full((1, 10, 10), 255)
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 100_000), (100_000, 1), (2, 3)])
def test_fit_of_extreme_shapes(shape: tuple[int, int]) -> None:
    out = fit_picture(Image.fromarray(np.full(shape, 77, dtype=np.uint8)), (32, 48), 3)
    np.testing.assert_array_equal(out, np.full((3, 32, 48), 77))
