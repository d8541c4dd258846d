"""Pictures to arrays: what Pillow or numpy holds becomes 8-bit grey or RGB, then (C, H, W) of a given size.

Left out: grey of many bits (`deep_grey.py`), colour profiles, what Pillow refuses in PNG (`png_chunks.py`),
the range [-1, 1], tensors and models, and walking through folders; one picture at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tokenizer.modalities.files.colour_profiles import to_srgb
from tokenizer.modalities.files.deep_grey import grey_to_uint8, levels_of, uint16_to_uint8, unit_to_uint8
from tokenizer.modalities.files.png_chunks import mended

PictureSource: TypeAlias = str | Path | bytes | Image.Image | NDArray[Any]

# Formats that are read, whatever a file is called, and what their files usually are called. Pillow knows 25
# more, of which one, EPS, is a program that it has another program run, others only show a preview or one
# plane of what they hold (PSD, FITS), and the rest are so rare that their readers are hardly tested.
FORMATS = {
    "AVIF": (".avif", ".avifs"),
    "BMP": (".bmp",),
    "DDS": (".dds",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "ICNS": (".icns",),
    "ICO": (".ico",),
    "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg"),
    "JPEG2000": (".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx"),
    "MPO": (".mpo",),
    "PCX": (".pcx",),
    "PNG": (".apng", ".png"),
    "PPM": (".pbm", ".pfm", ".pgm", ".pnm", ".ppm"),
    "QOI": (".qoi",),
    "SGI": (".bw", ".rgb", ".rgba", ".sgi"),
    "TGA": (".icb", ".tga", ".vda", ".vst"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
# In lower case; folders are searched for these.
PICTURE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

_MAGICK = "convert it, as by `magick mogrify -format png *{}` of ImageMagick"
_HEIF = "convert it, as by `heif-convert IN.heic OUT.png` of libheif"
_RAW = "develop it to TIFF or JPEG, as by `dcraw -T` or `darktable-cli`"
_VECTOR = "draw it in pixels, as by `rsvg-convert IN -o OUT.png` or `inkscape --export-type=png IN`"
_PAGES = "draw its pages in pixels, as by `pdftoppm -png IN OUT` or `gs -sDEVICE=png16m`"
_LAYERS = "export it as one picture from the program that made it, or by `magick 'IN[0]' OUT.png`"
_HIGH_RANGE = "map it to 8 or 16 bits, as by `magick IN OUT.png`: only who made it knows what is white"
_SCIENCE = "export its planes as PNG or TIFF with the range of grey that is meant"
# By suffix, what makes pictures of a kind that is not read into such that are.
PICTURE_UNREADABLE: dict[str, str] = {
    **dict.fromkeys((".heic", ".heif", ".heics", ".heifs", ".hif"), _HEIF),
    **dict.fromkeys(
        (
            *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mos", ".mrw"),
            *(".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
        ),
        _RAW,
    ),
    **dict.fromkeys((".emf", ".svg", ".svgz", ".wmf"), _VECTOR),
    **dict.fromkeys((".ai", ".djvu", ".eps", ".pdf", ".ps"), _PAGES),
    **dict.fromkeys((".kra", ".ora", ".psb", ".psd", ".xcf"), _LAYERS),
    **dict.fromkeys((".exr", ".hdr"), _HIGH_RANGE),
    **dict.fromkeys((".dcm", ".fit", ".fits", ".mha", ".mhd", ".nii", ".nrrd"), _SCIENCE),
    ".jxl": "convert it, as by `djxl IN.jxl OUT.png`",
    **{
        suffix: _MAGICK.format(suffix)
        for suffix in (".bpg", ".cur", ".dpx", ".jxr", ".pcd", ".pict", ".ras", ".wdp", ".xbm", ".xpm")
    },
}
# Another number wherever other pictures than before can be read, for those who keep what was found readable.
READER = 1
_MODES = {1: "L", 3: "RGB"}


def open_picture(
    source: PictureSource, name: str | None = None, max_megapixels: float | None = None
) -> Image.Image:
    """Any picture in mode "L" or "RGB", upright (EXIF), on white where transparent; the first of many frames.

    source: a file's path, its bytes, a Pillow picture, or an array (H, W) or (H, W, 1 | 3 | 4) of uint8,
    uint16 or float in [0, 1]. Grey of more bits is scaled to 8, white being what TIFF's MaxSampleValue or
    BitsPerSample say, float grey is read as [0, 1]. CMYK, YCbCr and LAB become RGB, and what has a colour
    profile sRGB. `name` stands for the picture in messages. Larger pictures than `max_megapixels`, in
    millions of pixels, are refused; left out, PIL.Image.MAX_IMAGE_PIXELS is the limit, 89 million.

    Raises `ValueError`, naming the picture and the fix, if it is missing, no picture, truncated, empty, too
    large, or has values out of range.
    """
    name = name or _describe(source)
    if isinstance(source, np.ndarray):
        return _flatten(Image.fromarray(_array_to_uint8(source, name)))
    most = Image.MAX_IMAGE_PIXELS if max_megapixels is None else round(max_megapixels * 1e6)
    try:
        return _decoded(source, name, most)
    except ValueError as error:
        if isinstance(error.__cause__, _BOMBS) and max_megapixels is not None:
            with _pillows_limit(most):
                return _decoded(source, name, most)
        whole = None if isinstance(source, Image.Image) else mended(_content(source), name)
        if whole is None:
            raise
    return _decoded(whole.content, name, most, whole.profile)


def _decoded(source: Any, name: str, most: int | None, profile: bytes | None = None) -> Image.Image:
    """`open_picture` of at most so many pixels; `profile` stands for that of the file."""
    with _opened(source, name, most) as image:
        if 0 in image.size:
            size = f"{image.width} x {image.height}"
            raise ValueError(f"{name}: the picture is {size} and has no pixels; remove it")
        levels = levels_of(image, name)
        image.load()
        grey = grey_to_uint8(ImageOps.exif_transpose(image), levels, name)
        picture = _flatten(to_srgb(grey, profile or image.info.get("icc_profile"), name))
        picture.info.pop("icc_profile", None)  # applied; who opens the result must not do so again
        return picture


def fit_picture(image: Image.Image, size: tuple[int, int] | None, channels: int) -> NDArray[np.uint8]:
    """A picture as an array (C, H, W) with `channels` 1 (grey) or 3 (RGB), and `size` = (H, W) if given.

    A picture of another size is scaled (Lanczos, antialiased) to cover `size` with its aspect kept, and cut
    to its centre. The cut comes first, in the picture's own pixels: elongated pictures take no more memory.
    """
    if channels not in _MODES:
        raise ValueError(f"channels: expected 1 (grey) or 3 (RGB), got {channels}")
    if image.mode not in _MODES.values():
        image = open_picture(image)
    image = image.convert(_MODES[channels])
    if size is not None and image.size != (size[1], size[0]):
        height, width = size
        if height < 1 or width < 1:
            raise ValueError(f"size must be at least 1 x 1 pixels (H, W), got {size}")
        scale = max(height / image.height, width / image.width)
        box_width, box_height = min(width / scale, image.width), min(height / scale, image.height)
        left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
        box = (left, top, left + box_width, top + box_height)
        image = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
    pixels = np.array(image)
    return rearrange(pixels, "h w -> 1 h w") if channels == 1 else rearrange(pixels, "h w c -> c h w").copy()


@contextmanager
def _opened(source: str | Path | bytes | Image.Image, name: str, most: int | None) -> Iterator[Image.Image]:
    """The picture with its header read; whatever goes wrong in the `with` block becomes a `ValueError`."""
    try:
        opened = source if isinstance(source, Image.Image) else None
        with nullcontext(opened) if opened else Image.open(_file(source), formats=_formats()) as image:
            _check_pixels(image, most)
            yield image
    except FileNotFoundError as error:
        raise ValueError(f"{name}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise ValueError(f"{name}: is a folder, expected a picture file; give one in it") from error
    except _BOMBS as error:
        raise ValueError(f"{name}: {error}. {_BOMB_FIX}") from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{name}: not a picture, or of a format that is not read; remove it or convert it to PNG"
        ) from error
    except Exception as error:
        # Pillow's format readers raise a dozen kinds of exceptions on damaged data, SyntaxError among them.
        reason = str(error) or type(error).__name__
        if isinstance(error, ValueError) and reason.startswith(f"{name}: "):
            raise
        raise ValueError(f"{name}: cannot be read ({reason}); replace or remove the file") from error


_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_BOMB_FIX = (
    "Scale it down, or, if you trust it, raise the limit: --data.max-megapixels of scripts, in Python "
    "PIL.Image.MAX_IMAGE_PIXELS"
)
_LIMIT = Lock()


def _check_pixels(image: Image.Image, most: int | None) -> None:
    """Pillow only warns between one and two times its limit; here the limit is the limit."""
    pixels = image.width * image.height
    if most is not None and pixels > most:
        raise Image.DecompressionBombError(f"{pixels} pixels are over the limit of {most} pixels")


@contextmanager
def _pillows_limit(most: int | None) -> Iterator[None]:
    """Pillow's own limit, which its readers ask for in places that no argument reaches, raised to `most` as
    long as one picture takes; nothing is lowered, and the limit that others set comes back."""
    with _LIMIT:
        before = Image.MAX_IMAGE_PIXELS
        if before is not None and most is not None:
            Image.MAX_IMAGE_PIXELS = max(before, most)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _file(source: Any) -> Any:
    return BytesIO(source) if isinstance(source, bytes) else source


def _content(source: str | Path | bytes) -> bytes:
    """The bytes of a file; none if it cannot be read, as who tried before has said."""
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError:
        return b""


def _describe(source: Any) -> str:
    if isinstance(source, bytes):
        return f"picture of {len(source)} bytes"
    if isinstance(source, np.ndarray):
        return f"array of shape {source.shape}"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "picture")
    if isinstance(source, str | Path):
        return str(source)
    raise TypeError(f"expected a path, bytes, a PIL.Image or a numpy array, got {type(source).__name__}")


def _flatten(image: Image.Image) -> Image.Image:
    """Mode "L" or "RGB", with transparent places composited on white."""
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data or image.mode in ("La", "RGBa"):
        rgba = image  # a copy only where it must be: pictures may have 90 million pixels
        if image.mode != "RGBA":
            rgba = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba)
    return image.convert("L" if grey else "RGB")


def _array_to_uint8(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """An array (H, W) or (H, W, C) of uint8, uint16 or float as uint8, without an axis of one channel."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        got = "" if str(array.shape) in name else f", got {array.shape}"
        raise ValueError(f"{name}: expected (H, W) or (H, W, C) with 1, 3 or 4 channels last{got}")
    if array.size == 0:
        raise ValueError(f"{name}: the picture has no pixels; remove it")
    if array.ndim == 3 and array.shape[2] == 1:
        array = rearrange(array, "h w 1 -> h w")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.uint16:
        return uint16_to_uint8(array)
    if np.issubdtype(array.dtype, np.floating):
        return unit_to_uint8(array, name)
    raise ValueError(f"{name}: expected uint8, uint16, or float in [0, 1], got {array.dtype}; convert it")
