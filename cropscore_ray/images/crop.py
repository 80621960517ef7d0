"""From pixels to the crops that a network sees.

Cropping is Pillow's. One function cuts any boxes, with fractional borders, for training and for
scoring alike. It knows nothing of networks.

Shape suffixes: N crops; 3 colours; H, W the image's sides; S the crop's side.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from cropscore_ray.config.sections import PreprocessConfig
from cropscore_ray.images.decode import Pixels


def crop(pixels_HW3: Pixels | Tensor, boxes_N4: ArrayLike, size: int) -> Tensor:
    """Cut boxes out of an image and resample each to a square, antialiased.

    The crops are those of Pillow's `resize((size, size), BILINEAR, box=box)`, bit for bit:
    by Pillow itself, or on a GPU by a kernel with Pillow's integer arithmetic. A level of
    255 more or less in some pixels is not harmless: it moved scores by up to 6 % of an
    image's spread (docs/decisions/0005).

    Args:
        pixels_HW3: uint8 RGB; where it lies, the crops are made.
        boxes_N4: xyxy in pixels, inside the image and not empty; borders may be fractional.
        size: side of every crop, in pixels.

    Returns:
        uint8 (N, size, size, 3).
    """
    boxes = np.asarray(boxes_N4, np.float32)  # as Pillow takes them
    if isinstance(pixels_HW3, Tensor) and pixels_HW3.is_cuda:
        from cropscore_ray.images import crop_kernel

        return crop_kernel.crop(pixels_HW3, boxes, size)
    image = Image.fromarray(np.asarray(pixels_HW3))
    crops_NSS3 = np.empty((len(boxes), size, size, 3), np.uint8)
    for out, box in zip(crops_NSS3, boxes.tolist(), strict=True):
        out[:] = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=tuple(box)))
    return torch.from_numpy(crops_NSS3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Crops:
    """Crops of several images that are cut when a slice of them is taken, as of a tensor."""

    images: list[Pixels | Tensor]
    boxes: list[NDArray[np.float64]]
    """Of each image, (n, 4); as many of each."""
    side: int
    with_mirrors: bool = False
    """Whether each image's crops are followed by their mirror images."""

    @property
    def per_image(self) -> int:
        """How many crops each image has."""
        return len(self.boxes[0]) * (1 + self.with_mirrors)

    def __len__(self) -> int:
        return len(self.images) * self.per_image

    def __getitem__(self, some: slice) -> Tensor:
        """Return a run of the crops, uint8 (N, side, side, 3), where the images lie."""
        start, stop, _ = some.indices(len(self))
        parts, at = [], 0
        for pixels, boxes in zip(self.images, self.boxes, strict=True):
            for mirrored in (False, True)[: 1 + self.with_mirrors]:
                mine = boxes[max(0, start - at) : max(0, stop - at)]
                if len(mine):
                    cut = crop(pixels, mine, self.side)
                    parts.append(cut.flip(2) if mirrored else cut)
                at += len(boxes)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def normalize(crops_NSS3: Tensor, config: PreprocessConfig, dtype: torch.dtype) -> Tensor:
    """Return crops as a network takes them: (x / 255 - mean) / std by colour.

    Args:
        crops_NSS3: values from 0 to 255, on any device; float32 ones are overwritten.
        config: mean and deviation of colours.
        dtype: of the result; the arithmetic is float32.

    Returns:
        (N, 3, S, S), channels last in memory.
    """
    return scaled(crops_NSS3, *colour_lines(config, crops_NSS3.shape[2], crops_NSS3.device), dtype)


def colour_lines(
    config: PreprocessConfig, width_px: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return factor and summand that normalize each value of a line of pixels, (3 * width,)."""
    std, mean = (torch.tensor(rgb, device=device) for rgb in (config.std, config.mean))
    return (1 / (255 * std)).repeat(width_px), (-mean / std).repeat(width_px)


def scaled(crops_NSS3: Tensor, factor: Tensor, summand: Tensor, dtype: torch.dtype) -> Tensor:
    """Return crops times a factor plus a summand, see `normalize`.

    By whole lines and not by single pixels: three times as fast, since inner loops are long.
    """
    number, height, width = crops_NSS3.shape[:3]
    lines = crops_NSS3.reshape(number * height, width * 3).float()
    lines *= factor
    lines += summand
    return lines.to(dtype).view(number, height, width, 3).permute(0, 3, 1, 2)


def ten_crop_boxes(config: PreprocessConfig) -> NDArray[np.float64]:
    """Return (5, 4): corners and centre of the 10-crop view, as fractions of the sides.

    The whole image scaled to a square of frame_px, cut at input_px; the other five crops
    are their mirrors. A square of the frame keeps the view the same for every aspect
    (METHOD section 3 leaves the choice open).
    """
    side = config.input_px / config.frame_px
    rest = 1.0 - side
    corners = [(0.0, 0.0), (rest, 0.0), (0.0, rest), (rest, rest), (rest / 2, rest / 2)]
    unit = np.array([(x, y, x + side, y + side) for x, y in corners])
    return np.asarray(unit.clip(0.0, 1.0))
