"""From an encoded image to the crops that a network sees.

Decoding is Pillow's; cropping is ours: one function cuts any boxes, with fractional
borders, out of an image and resamples each to a square with Pillow's antialiased
bilinear filter, as two matrix products a crop. It knows nothing of networks.

Shape suffixes: N crops; 3 colours; H, W the image's sides; S the crop's side.
"""

import io
import struct
import warnings
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, UnidentifiedImageError

from cropscore_ray.config import PreprocessConfig
from cropscore_ray.errors import ImageError

# Pillow reports a damaged file through any of these, whatever the format.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    AttributeError,
    RuntimeError,
    struct.error,
)


def decode(data: bytes, *, max_megapixels: float = 178.0) -> NDArray[np.uint8]:
    """Return an encoded image as RGB pixels, uint8, shape (H, W, 3).

    EXIF rotation is not applied: boxes of the usual data sets live in the stored frame
    (METHOD section 5). Of an animation the first frame counts; transparency is laid on
    black, 16-bit grey is scaled to 8 bits.

    Raises:
        ImageError: with status empty, undecodable or too_large.
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
                return np.asarray(_to_rgb(image))
        except Image.DecompressionBombError as error:
            raise ImageError("too_large", str(error)) from error
        except UnidentifiedImageError as error:
            kind = f"{len(data)} bytes beginning with {data[:8]!r}"
            raise ImageError("undecodable", f"not an image that Pillow knows: {kind}") from error
        except _DECODE_ERRORS as error:
            raise ImageError("undecodable", f"{type(error).__name__}: {error}"[:300]) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which turns a 16-bit image white.
        values = np.asarray(image, np.float32)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        image = Image.fromarray((values.clip(0, top) * (255.0 / top)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return image.convert("RGB")


# The grid's 28 intervals a side and the ten crops' 3: a few image sizes. The weights of a
# photo of 4,000 pixels are 1.6 MB an interval, so that a large cache would be gigabytes.
@lru_cache(maxsize=128)
def resample_weights(
    length: int, start: float, stop: float, size: int
) -> tuple[int, int, torch.Tensor]:
    """Return the weights that resample [start, stop) of a line of pixels to `size` pixels.

    The triangle filter of Pillow's BILINEAR (src/libImaging/Resample.c, precompute_coeffs):
    as wide as the step between output pixels when it shrinks, one pixel when it enlarges;
    near the crop's border it reads neighbouring pixels of the image, as Pillow does.

    Returns:
        first and last+1 pixel that are read, and weights, float32, (size, last+1 - first).
    """
    scale = (stop - start) / size
    support = max(scale, 1.0)
    centers = start + (np.arange(size) + 0.5) * scale
    first = max(0, int(centers[0] - support + 0.5))
    last = min(length, int(centers[-1] + support + 0.5))
    first, last = min(first, length - 1), max(last, min(first, length - 1) + 1)
    pixels = np.arange(first, last)
    distance = np.abs(pixels[None] + 0.5 - centers[:, None]) / support
    weights = np.maximum(1.0 - distance, 0.0)
    weights /= np.maximum(weights.sum(1, keepdims=True), 1e-12)
    return first, last, torch.from_numpy(weights.astype(np.float32))


def planes(pixels_HW3: NDArray[np.uint8]) -> torch.Tensor:
    """Return pixels as float32 colour planes, (3, H, W), in [0, 255]."""
    # A copy, since decoded pixels are read-only, which torch warns of.
    return torch.from_numpy(np.array(pixels_HW3.transpose(2, 0, 1), order="C")).float()


def crop(image_3HW: torch.Tensor, boxes_N4: ArrayLike, size: int) -> torch.Tensor:
    """Cut boxes out of an image and resample each to (size, size), antialiased.

    Equal to Pillow's `resize((size, size), BILINEAR, box=box)` within one level of 255,
    which is Pillow's own rounding between its two passes. Boxes that share their rows
    (a grid's squares, the ten crops) share the vertical pass.

    Args:
        image_3HW: colour planes, float32, of any scale.
        boxes_N4: xyxy in pixels, inside the image and not empty.
        size: side of every crop, in pixels.

    Returns:
        float32 (N, 3, size, size), of the image's scale.
    """
    height, width = image_3HW.shape[1:]
    boxes = np.asarray(boxes_N4, np.float64).tolist()
    crops_N3SS = torch.empty(len(boxes), 3, size, size)
    strips: dict[tuple[float, float], torch.Tensor] = {}
    for out_3SS, (left, top, right, bottom) in zip(crops_N3SS, boxes, strict=True):
        if (top, bottom) not in strips:
            first, last, weights = resample_weights(height, top, bottom, size)
            strips[top, bottom] = weights @ image_3HW[:, first:last]
        first, last, weights = resample_weights(width, left, right, size)
        torch.matmul(strips[top, bottom][:, :, first:last], weights.T, out=out_3SS)
    return crops_N3SS


def normalize(image_3HW: torch.Tensor, config: PreprocessConfig) -> torch.Tensor:
    """Return planes in [0, 255] on the network's scale: (x / 255 - mean) / std by colour.

    Done before cropping: resampling weights sum to 1, so the order does not matter, and an
    image has a fraction of the pixels of its 140 crops.
    """
    mean = image_3HW.new_tensor(config.mean).view(3, 1, 1)
    std = image_3HW.new_tensor(config.std).view(3, 1, 1)
    return image_3HW.sub(255.0 * mean).div_(255.0 * std)


def ten_crop_boxes(width_px: int, height_px: int, config: PreprocessConfig) -> NDArray[np.float64]:
    """Return (5, 4): corners and centre of the 10-crop view, in the image's pixels.

    The whole image scaled to a square of frame_px, cut at input_px; the other five crops
    are their mirrors. A square of the frame keeps the view the same for every aspect
    (METHOD section 3 leaves the choice open).
    """
    side = config.input_px / config.frame_px
    rest = 1.0 - side
    corners = [(0.0, 0.0), (rest, 0.0), (0.0, rest), (rest, rest), (rest / 2, rest / 2)]
    unit = np.array([(x, y, x + side, y + side) for x, y in corners])
    return np.asarray(np.clip(unit, 0.0, 1.0) * [width_px, height_px, width_px, height_px])
