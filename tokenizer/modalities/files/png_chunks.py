"""PNG files that Pillow refuses although their pixels are whole: what it trips over is taken out.

Left out: chunks that pixels depend on, transparency and animation among them; they stay as they are.
"""

import logging
import zlib
from typing import NamedTuple

from PIL import PngImagePlugin

from tokenizer.checks import first_time

logger = logging.getLogger(__name__)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
PROFILE = b"iCCP"
# Ancillary, but what a picture looks like depends on them.
NEEDED = (b"tRNS", b"acTL", b"fcTL", b"fdAT")
# The most that a profile may inflate to; those of printers are of some MiB.
LARGEST_PROFILE = 64 << 20


class Mended(NamedTuple):
    """A file without what Pillow refuses, and the colour profile if that was too large for Pillow."""

    content: bytes
    profile: bytes | None


def mended(content: bytes, name: str) -> Mended | None:
    """None if `content` is no PNG, or holds nothing that can be done without.

    Texts above Pillow's limits are left out, and chunks with a wrong checksum that no pixel depends on, as
    libpng does; a colour profile above its limit is read here. The first time this is said in the log.
    """
    if not content.startswith(SIGNATURE):
        return None
    kept, dropped, profile, text = [SIGNATURE], list[str](), None, 0
    at = len(SIGNATURE)
    while at + 12 <= len(content):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(content):
            break
        data, checksum = content[at + 8 : end - 4], int.from_bytes(content[end - 4 : end], "big")
        why = ""
        if kind[0] & 32 and kind not in NEEDED:
            if zlib.crc32(kind + data) != checksum:
                why = "wrong checksum"
            elif kind in TEXTS:
                text += (size := _size_of_text(kind, data))
                if size > PngImagePlugin.MAX_TEXT_CHUNK or text > PngImagePlugin.MAX_TEXT_MEMORY:
                    text, why = text - size, "larger than Pillow reads"
            elif kind == PROFILE and len(inflated := _profile(data)) > PngImagePlugin.MAX_TEXT_CHUNK:
                profile, why = inflated, "larger than Pillow reads"
        if why:
            dropped.append(f"{kind.decode('latin-1')} ({why})")
        else:
            kept.append(content[at:end])
        at = end
    if not dropped:
        return None
    if first_time("PNG chunks left out"):
        logger.info("%s: read without %s; said once", name, ", ".join(dropped[:5]))
    return Mended(b"".join([*kept, content[at:]]), profile)


def _size_of_text(kind: bytes, data: bytes) -> int:
    """Bytes of a text, inflated as far as it takes to see that they are too many."""
    packed = b""
    if kind == b"zTXt":
        packed = data.partition(b"\0")[2][1:]
    elif kind == b"iTXt":
        _, _, rest = data.partition(b"\0")
        if rest[:1] == b"\1":
            packed = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    if not packed:
        return len(data)
    return len(_inflated(packed, PngImagePlugin.MAX_TEXT_CHUNK + 1))


def _profile(data: bytes) -> bytes:
    return _inflated(data.partition(b"\0")[2][1:], LARGEST_PROFILE)


def _inflated(packed: bytes, most: int) -> bytes:
    """At most so many bytes; none if they are damaged."""
    try:
        return zlib.decompressobj().decompress(packed, most)
    except zlib.error:
        return b""
