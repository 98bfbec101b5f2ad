"""Images of any mode as 8-bit grey or RGB images.

Everything that an image file may hold is brought to "L" or "RGB" in one way: 16-bit values are
scaled to 8 bits, transparent images are composited on `BACKGROUND`, palettes, CMYK, YCbCr and HSV
are converted by Pillow. Modes whose values have no defined range are refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageFile

from leenet_fx.errors import InputError

BACKGROUND = (255, 255, 255)
"""Colour that transparent images are composited on: white."""

_CONVERTED = {"1": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "RGBX": "RGB"}
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
"""Formats whose images of mode "I" hold 16-bit values."""

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def readable_extensions() -> frozenset[str]:
    """Return the extensions of the image files that Pillow can decode, in lower case, with dot."""
    registered = Image.registered_extensions()
    return frozenset(name for name, kind in registered.items() if _is_decoded(kind))


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Return an image in mode "L" or "RGB".

    Args:
        image: of any mode; of an animation the current frame, which is the first unless changed.

    Raises:
        InputError: the values of its mode have no defined range or colour space.
    """
    if image.mode in _SIXTEEN_BITS or _is_sixteen_bits(image):
        return _from_sixteen_bits(image)
    image = image.convert(_PREMULTIPLIED[image.mode]) if image.mode in _PREMULTIPLIED else image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, BACKGROUND)
        return Image.alpha_composite(background, image).convert("RGB")
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in _CONVERTED:
        return image.convert(_CONVERTED[image.mode])
    raise InputError(
        f"pixels of mode '{image.mode}' have no defined range of 8 or 16 bits: convert the image "
        "to 8-bit grey or RGB"
    )


def _is_decoded(kind: str) -> bool:
    """Whether Pillow decodes a format, rather than only writes or identifies it."""
    if kind not in Image.OPEN or kind == "MPEG":
        return False
    reader: Any = Image.OPEN[kind][0]
    return not (isinstance(reader, type) and issubclass(reader, ImageFile.StubImageFile))


def _is_sixteen_bits(image: Image.Image) -> bool:
    return image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    """Drop the low bits, as Pillow does for 16-bit colours."""
    tags = getattr(image, "tag_v2", {})
    bits = 12 if tags.get(_BITS_PER_SAMPLE) == (12,) else 16
    values = np.asarray(image).astype(np.int32)
    grey = (values >> (bits - 8)).clip(0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = BACKGROUND[0]
    return Image.fromarray(grey)
