"""From the bytes of an image to RGB pixels, by Pillow; where bytes come from is not known here."""

import io
import struct
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cropscore_ray.config.sections import MAX_MEGAPIXELS
from cropscore_ray.errors import ImageError

Pixels = NDArray[np.uint8]
"""A decoded image: RGB, (H, W, 3)."""

DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
)
"""Any of these may mean, where Pillow reads an image, that the image is damaged."""


def decode(data: bytes, *, max_megapixels: float = MAX_MEGAPIXELS) -> Pixels:
    """Return an encoded image as RGB pixels, uint8, shape (H, W, 3).

    EXIF rotation is not applied: boxes of the usual data sets live in the stored frame
    (METHOD section 5). Of an animation the first frame counts; transparency is laid on
    black, 16-bit grey is scaled to 8 bits.

    Raises:
        ImageError: with status empty, undecodable, unsupported or too_large.
    """
    if not data:
        raise ImageError("empty", "the file has 0 bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd EXIF; the status says what matters
        try:
            with Image.open(io.BytesIO(data)) as image:
                megapixels = image.width * image.height / 1e6
                if megapixels > max_megapixels:
                    raise ImageError(
                        "too_large",
                        f"{image.width}x{image.height} pixels, above {max_megapixels:g} megapixels",
                    )
                return np.asarray(to_rgb(image))
        except Image.DecompressionBombError as error:
            raise ImageError("too_large", str(error)) from error
        except UnidentifiedImageError as error:
            format_name = _unsupported_format(data)
            if format_name:
                raise ImageError("unsupported", f"{format_name} is not read") from error
            kind = f"{len(data)} bytes beginning with {data[:8]!r}"
            raise ImageError("undecodable", f"not an image that Pillow knows: {kind}") from error
        except DAMAGED as error:
            raise ImageError("undecodable", f"{type(error).__name__}: {error}"[:300]) from error


def _unsupported_format(data: bytes) -> str | None:
    """Return the name of a format that cameras and web pages use and Pillow does not know."""
    head = data[:1024]
    if head[4:8] == b"ftyp":
        return {b"avif": "AVIF", b"avis": "AVIF"}.get(head[8:12], "HEIF or video")
    if head.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")):
        return "JPEG XL"
    if head.startswith(b"%PDF"):
        return "PDF"
    return "SVG" if b"<svg" in head else None


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB: deep grey values scaled, what is transparent on black."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which turns a 16-bit image white.
        values = np.asarray(image, np.float32)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        image = Image.fromarray((values.clip(0, top) * (255.0 / top)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return image.convert("RGB")
