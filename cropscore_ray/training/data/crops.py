"""Training crops: which part of which image, and what the network should learn from it.

A sampler draws a crop for one image; `CropDataset` decodes, cuts and mirrors it. What is
drawn depends on (seed, epoch, image) alone, not on batch size, workers or order. Pyramid
mode's dataset is in regions.py; which images make a step, in batches.py.

Shape suffixes: M true boxes; S squares.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cropscore_ray import geometry, grid
from cropscore_ray.config.sections import ClassifierConfig, PreprocessConfig, ScorerConfig
from cropscore_ray.geometry import Boxes
from cropscore_ray.images.crop import crop
from cropscore_ray.training.data.images import (
    Box,
    ImageDataset,
    LabelledImages,
    Request,
    at_least_one_pixel,
)

_GREY = (0.299, 0.587, 0.114)
"""How bright red, green and blue are (ITU-R BT.601)."""
NO_OVERLAP = math.nan
"""Overlap of a crop whose target is its class."""

Sampler = Callable[[np.random.Generator, Boxes], tuple[Box, float]]
"""From a generator and the true boxes (unit, (M, 4)) to a unit crop and its overlap."""


def classifier_sampler(config: ClassifierConfig) -> Sampler:
    """Draw random parts of the image, as GoogLeNet was trained.

    Area from min_area_fraction to 1, aspect from 3/4 to 4/3 (Szegedy et al. 2014, section 6), both
    of the image as a square: squashed, as the squares of the grid and the ten crops show it. What
    would stick out is cut off.
    """

    def sample(rng: np.random.Generator, boxes_M4: Boxes) -> tuple[Box, float]:
        area = rng.uniform(config.min_area_fraction, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        width = min(1.0, math.sqrt(area * aspect))
        height = min(1.0, math.sqrt(area / aspect))
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        return np.array([left, top, left + width, top + height]), NO_OVERLAP

    return sample


def scorer_sampler(config: ScorerConfig) -> Sampler:
    """Draw a true box with context and jitter, or a square of the grid with its overlap."""

    def sample(rng: np.random.Generator, boxes_M4: Boxes) -> tuple[Box, float]:
        if rng.random() < config.grid_fraction:
            overlaps = square_overlaps(boxes_M4)
            chosen = evenly(rng, overlaps)
            return grid.unit_squares()[chosen], float(overlaps[chosen])
        box = boxes_M4[rng.integers(len(boxes_M4))]
        sides = np.tile(box[2:] - box[:2], 2)
        context = np.array([-1, -1, 1, 1]) * config.context_fraction
        jitter = rng.uniform(-config.jitter_fraction, config.jitter_fraction, 4)
        return np.clip(box + sides * (context + jitter), 0.0, 1.0), NO_OVERLAP

    return sample


def any_square(rng: np.random.Generator, boxes_M4: Boxes) -> tuple[Box, float]:
    """Draw a square, each as probable as any other, with its overlap."""
    chosen = rng.integers(grid.NUM_SQUARES)
    return grid.unit_squares()[chosen], float(square_overlaps(boxes_M4)[chosen])


def evenly(rng: np.random.Generator, overlaps_S: NDArray[np.float64]) -> int:
    """Draw a square's index so that all overlaps, from none to the highest, are alike often."""
    distance = np.abs(overlaps_S - rng.uniform(0.0, overlaps_S.max()))
    near = np.flatnonzero(distance <= max(0.05, distance.min()))
    return int(rng.choice(near))


def square_overlaps(boxes_M4: Boxes) -> NDArray[np.float64]:
    """Return sqrt(coverage * purity) of each square with the box it fits best, (140,).

    0 beside the objects, 1 where square and box are one (METHOD section 8).
    """
    best = np.zeros(grid.NUM_SQUARES)
    for box in boxes_M4:
        coverage, purity = geometry.coverage_and_purity(grid.unit_squares(), box)
        best = np.maximum(best, np.sqrt(coverage * purity))
    return best


class CropDataset(ImageDataset):
    """One crop an image and epoch."""

    def __init__(
        self,
        data: LabelledImages,
        sampler: Sampler,
        preprocess: PreprocessConfig,
        seed: int,
        photometric: float = 0.0,
    ) -> None:
        super().__init__(data, preprocess, seed)
        self.sampler = sampler
        self.photometric = photometric

    def _sample(self, request: Request) -> dict[str, Any]:
        """Return crop (S, S, 3) uint8, class_index and overlap; factors of its light (`relit`)."""
        rng, pixels, unit_boxes_M4 = self._read(request)
        height, width = pixels.shape[:2]
        unit, overlap = self.sampler(rng, unit_boxes_M4)
        box = at_least_one_pixel(unit * geometry.sides_px(pixels.shape), width, height)
        crop_SS3 = crop(pixels, box[None], self.preprocess.input_px)[0]
        crop_SS3 = crop_SS3.flip(1) if rng.random() < 0.5 else crop_SS3
        sample = {
            "crop": crop_SS3,
            "class_index": int(self.data.classes[request.image]),
            "overlap": overlap,
        }
        if self.photometric:
            most, least = 1 + self.photometric, 1 - self.photometric
            sample["light"] = rng.uniform(least, most, 3).astype(np.float32)
        return sample


def relit(crops_NSS3: Tensor, light_N3: Tensor) -> Tensor:
    """Return crops with other brightness, contrast and saturation, float32 from 0 to 255.

    A factor mixes a crop with black, with its mean grey, or each pixel with its own grey (Howard
    2013, section 2; the GoogLeNet paper says that it used these). Where nothing is clipped in
    between, as here, their order makes no difference.

    Args:
        crops_NSS3: uint8, on any device.
        light_N3: the three factors of each crop.
    """
    brightness, contrast, saturation = light_N3.T[..., None, None, None]
    crops_NSS3 = crops_NSS3.float()
    grey_NSS1 = crops_NSS3 @ crops_NSS3.new_tensor(_GREY)[:, None]
    mean_N111 = grey_NSS1.mean((1, 2), keepdim=True)
    crops_NSS3 = torch.lerp(grey_NSS1, crops_NSS3, saturation)
    crops_NSS3 = torch.lerp(mean_N111, crops_NSS3, contrast)
    lit_NSS3: Tensor = brightness * crops_NSS3
    return lit_NSS3.clamp_(0, 255)
