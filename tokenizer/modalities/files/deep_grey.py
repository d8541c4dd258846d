"""Grey values of more than 8 bits, whole numbers or floats, as 8 bits: which value is white, and which black.

Left out: colour, which Pillow reads in 8 bits.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WHITE_16 = 65535

# Tags of TIFF.
BITS, PHOTOMETRIC, MOST, FORMAT, SIGNED_LEAST, SIGNED_MOST = 258, 262, 281, 339, 340, 341
WHITE_IS_ZERO, SIGNED = 0, 2


class Levels(NamedTuple):
    """What whole numbers of grey mean: `white` as the file states it, or else by the `bits` that it has, less
    one if `signed`; `black` is 0 unless stated, which is for signed ones."""

    black: float = 0
    white: float | None = None
    bits: int = 16
    signed: bool = False
    inverted: bool = False


def levels_of(image: Image.Image, name: str) -> Levels:
    """Those of a picture as it was opened. `ValueError` for colours of 16 bits of which only the lower are
    used: Pillow keeps the upper 8."""
    tags = getattr(image, "tag_v2", None)
    if not tags:
        return Levels()
    bits, signed = int(_first(tags.get(BITS)) or 16), _first(tags.get(FORMAT)) == SIGNED
    white = _first(tags.get(SIGNED_MOST if signed else MOST)) or None
    if bits == 16 and white and white <= WHITE_16 // 2 and image.mode in ("RGB", "RGBA"):
        raise ValueError(
            f"{name}: colours of 16 bits, of which MaxSampleValue {white:g} is white; scale them to 16 bits, "
            "or convert the picture to 8 bits"
        )
    inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    black = _first(tags.get(SIGNED_LEAST)) or 0 if signed else 0
    return Levels(black, white, bits, signed, inverted)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and value else value


def grey_to_uint8(image: Image.Image, levels: Levels, name: str) -> Image.Image:
    """Modes "I;16*", "I" and "F" as "L"; other modes as they are. `ValueError` for values that are not within
    their levels, or of which these do not say what is white."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F":
        grey = unit_to_uint8(values, name)
    else:
        black, white = _limits(values, levels, name)
        if isinstance(clear := image.info.get("transparency"), int):
            values = np.where(values == clear, int(white), values)
        grey = _scaled(values, black, white)
    return Image.fromarray(255 - grey if levels.inverted else grey)


def _limits(values: NDArray[Any], levels: Levels, name: str) -> tuple[float, float]:
    """Black and white of whole numbers."""
    low, high = int(values.min()), int(values.max())
    # What is larger than the stated maximum contradicts it.
    if levels.white is not None and levels.black <= low and high <= levels.white:
        return levels.black, levels.white
    if levels.bits > 16 and low >= 0 and 0 < high <= 255:
        raise ValueError(
            f"{name}: integers of {levels.bits} bits hold {low}..{high}, and nothing says what is white; "
            "convert the picture to 8 bits, or set MaxSampleValue"
        )
    white = 2 ** (min(levels.bits, 16) - (levels.signed and levels.bits <= 16)) - 1
    if low < 0 or high > white:
        raise ValueError(
            f"{name}: integer grey values must lie in 0..{white} ({min(levels.bits, 16)} bits), "
            f"got {low}..{high}; rescale the picture"
        )
    return 0, white


def _scaled(values: NDArray[Any], black: float, white: float) -> NDArray[np.uint8]:
    if (black, white) == (0, WHITE_16):
        return uint16_to_uint8(values)
    grey: NDArray[np.uint8] = np.rint((values.astype(np.float32) - black) * (255 / (white - black))).astype(
        np.uint8
    )
    return grey


def uint16_to_uint8(values: NDArray[Any]) -> NDArray[np.uint8]:
    """0..65535 to 0..255, rounded: 257 = 65535 / 255."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def unit_to_uint8(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Floats in [0, 1] as 0..255; `ValueError` for others."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= 1.0):  # false for NaN as well
        raise ValueError(
            f"{name}: float pictures must lie in [0, 1], got {low:g}..{high:g}; rescale the values"
        )
    return np.rint(values.astype(np.float32) * 255).astype(np.uint8)
