"""Pictures with a colour profile, as sRGB.

Left out: colours that chunks of PNG or tags of EXIF describe without a profile.
"""

import logging
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image

from tokenizer.checks import first_time

logger = logging.getLogger(__name__)

# Levels of 255 by which a profile may differ from sRGB and still count as that. There are dozens of profiles
# of sRGB, which differ by rounding; converting them would cost time and change pixels for nothing.
SAME = 3
_SPACES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}
_STEPS = np.linspace(0, 255, 9).round().astype(np.uint8)
_GREYS = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
_COLOURS = Image.fromarray(np.stack(np.meshgrid(_STEPS, _STEPS, _STEPS), -1).reshape(27, 27, 3))


def to_srgb(image: Image.Image, profile: bytes | None, name: str) -> Image.Image:
    """The picture in sRGB if `profile` describes other colours: grey stays grey, CMYK becomes RGB, and alpha
    is kept. Said in the log the first time.

    A profile that cannot be used, such as one of CMYK on RGB, is ignored, which is said too.
    """
    if not profile or image.mode not in ("L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"):
        return image
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA") else "RGBA")
    elif image.mode == "P":
        image = image.convert("RGB")
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colours = image.convert(image.mode[:-1]) if alpha else image
    try:
        convert, what = _conversion(profile, colours.mode)
    except (OSError, ValueError, ImportError, TypeError) as error:
        if first_time("colour profile ignored"):
            logger.warning("%s: its colour profile is ignored (%s); said once", name, error)
        return image
    if convert is None:
        return image
    if first_time("colour profile converted"):
        logger.info(
            "%s: converted from its colour profile (%s) to sRGB, as are others; said once", name, what
        )
    converted = convert(colours)
    if alpha:
        converted.putalpha(alpha)
    return converted


@lru_cache(maxsize=32)
def _conversion(profile: bytes, mode: str) -> tuple[Callable[[Image.Image], Image.Image] | None, str]:
    """What takes pictures of `mode` from a profile to sRGB, None if that changes next to nothing, and the
    profile's name. Raises `ValueError` or `OSError` for a profile that does not fit such pictures."""
    from PIL import ImageCms  # Pillow may have been built without it

    try:
        found = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = found.profile.xcolor_space.strip()
        takes = _SPACES.get(space, "")
        # Grey pictures with the profile of RGB are common, and mean its curve.
        if not takes or (takes != mode and (mode, takes) != ("L", "RGB")):
            raise ValueError(f"it is of {space or 'an unknown colour space'}, the picture is {mode}")
        # Without a cache of the last pixel, which threads would share; of grey the optimised way is coarse.
        flags = ImageCms.Flags.NOCACHE | (ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE)
        target = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(found, target, takes, "RGB", flags=flags)
        what = ImageCms.getProfileDescription(found).strip()
    except ImageCms.PyCMSError as error:
        raise ValueError(str(error)) from error
    if mode == "CMYK":
        return transform.apply, what
    before = _GREYS if mode == "L" else _COLOURS
    after = np.asarray(transform.apply(before.convert(takes)))
    if np.abs(after - np.asarray(before.convert("RGB"), dtype=int)).max() <= SAME:
        return None, what
    if mode == "L":
        table = after[0, :, 1].tolist()
        return lambda image: image.point(table), what
    return transform.apply, what
