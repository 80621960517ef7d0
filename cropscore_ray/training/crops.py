"""Training crops: which part of which image, and what the network should say of it.

A sampler draws a crop for one image; `CropDataset` decodes, cuts and mirrors it. What is
drawn depends on (seed, epoch, image) alone, not on batch size, workers or order. Pyramid
mode's dataset is in regions.py; which images make a step, in batches.py.

Shape suffixes: M true boxes; S squares.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F  # noqa: N812

from cropscore_ray import fetch, geometry, grid, images
from cropscore_ray.config import ClassifierConfig, PreprocessConfig, ScorerConfig
from cropscore_ray.errors import DataError, ImageError

logger = logging.getLogger(__name__)

NO_OVERLAP = math.nan
"""Overlap of a crop whose target is its class."""

_SMALLEST_SCALE = 0.02  # a network that knows nothing yet must still learn from squares
_ATTEMPTS = 100  # an image set with this many unreadable images in a row is no image set

Box = NDArray[np.float64]
Sampler = Callable[[np.random.Generator, Box], tuple[Box, float]]
"""From a generator and the true boxes (unit, (M, 4)) to a unit crop and its overlap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledImages:
    """Images with their classes and true boxes, as columns."""

    uris: list[str]
    classes: NDArray[np.int64]
    boxes: list[Box]
    """Pixels of the original image, (M, 4); empty where there are none."""

    def __len__(self) -> int:
        return len(self.uris)


def classifier_sampler(config: ClassifierConfig) -> Sampler:
    """Draw random parts of the image, as GoogLeNet was trained.

    Area from min_area_fraction to 1, aspect from 3/4 to 4/3 (Szegedy et al. 2014, section 6).
    """

    def sample(rng: np.random.Generator, boxes_M4: Box) -> tuple[Box, float]:
        area = rng.uniform(config.min_area_fraction, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        width = min(1.0, math.sqrt(area * aspect))
        height = min(1.0, math.sqrt(area / aspect))
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        return np.array([left, top, left + width, top + height]), NO_OVERLAP

    return sample


def scorer_sampler(config: ScorerConfig) -> Sampler:
    """Draw a true box with context and jitter, or a square of the grid with its overlap."""

    def sample(rng: np.random.Generator, boxes_M4: Box) -> tuple[Box, float]:
        if rng.random() < config.grid_fraction:
            return _sample_square(rng, boxes_M4)
        box = boxes_M4[rng.integers(len(boxes_M4))]
        sides = np.tile(box[2:] - box[:2], 2)
        context = np.array([-1, -1, 1, 1]) * config.context_fraction
        jitter = rng.uniform(-config.jitter_fraction, config.jitter_fraction, 4)
        return np.clip(box + sides * (context + jitter), 0.0, 1.0), NO_OVERLAP

    return sample


def _sample_square(rng: np.random.Generator, boxes_M4: Box) -> tuple[Box, float]:
    """Draw a square so that all overlaps, from none to full, are seen alike often."""
    overlaps = square_overlaps(boxes_M4)
    chosen = evenly(rng, overlaps)
    return grid.unit_squares()[chosen], float(overlaps[chosen])


def evenly(rng: np.random.Generator, overlaps_S: NDArray[np.float64]) -> int:
    """Draw a square's index so that all overlaps, from none to the highest, are alike often."""
    distance = np.abs(overlaps_S - rng.uniform(0.0, overlaps_S.max()))
    near = np.flatnonzero(distance <= max(0.05, distance.min()))
    return int(rng.choice(near))


def square_overlaps(boxes_M4: Box) -> NDArray[np.float64]:
    """Return sqrt(coverage * purity) of each square with the box it fits best, (140,).

    0 beside the objects, 1 where square and box are one (METHOD section 8).
    """
    best = np.zeros(grid.NUM_SQUARES)
    for box in boxes_M4:
        coverage, purity = geometry.coverage_and_purity(grid.unit_squares(), box)
        best = np.maximum(best, np.sqrt(coverage * purity))
    return best


@dataclass(frozen=True, slots=True)
class Request:
    """What a dataset is asked for: an image in an epoch, and how large (pyramid mode)."""

    image: int
    epoch: int
    level: int = 0


class CropDataset(Dataset[dict[str, Any]]):
    """One crop an image and epoch; an unreadable image is replaced by the next one."""

    def __init__(
        self,
        data: LabelledImages,
        sampler: Sampler,
        preprocess: PreprocessConfig,
        seed: int,
        photometric: float = 0.0,
    ) -> None:
        self.data = data
        self.sampler = sampler
        self.preprocess = preprocess
        self.photometric = photometric
        self.seed = seed

    def __len__(self) -> int:
        return len(self.data)

    def request(self, image: int, epoch: int, step: int) -> Request:
        """Return what to ask this dataset for, to get an image in a step of an epoch."""
        del step
        return Request(image, epoch)

    def __getitem__(self, request: Request) -> dict[str, Any]:
        """Return crop (S, S, 3) uint8, class_index, overlap, and how many images failed."""
        for num_failed in range(_ATTEMPTS):
            at = (request.image + num_failed) % len(self)
            try:
                sample = self._sample(replace(request, image=at))
                return {**sample, "num_failed": num_failed}
            except ImageError as error:
                logger.warning("left out of training: %s (%s)", error, error.status)
        raise DataError(
            f"{_ATTEMPTS} training images in a row cannot be read, the last: {self.data.uris[at]}",
            hint="check the storage's settings and the manifest's image_uri column",
        )

    def _sample(self, request: Request) -> dict[str, Any]:
        rng, pixels, unit_boxes_M4 = self._read(request)
        height, width = pixels.shape[:2]
        unit, overlap = self.sampler(rng, unit_boxes_M4)
        box = at_least_one_pixel(unit * np.array([width, height, width, height]), width, height)
        crop_SS3 = images.crop(pixels, box[None], self.preprocess.input_px)[0]
        crop_SS3 = crop_SS3.flip(1) if rng.random() < 0.5 else crop_SS3
        if self.photometric:
            crop_SS3 = distort(rng, crop_SS3, self.photometric)
        return {
            "crop": crop_SS3,
            "class_index": int(self.data.classes[request.image]),
            "overlap": overlap,
        }

    def _read(self, request: Request) -> tuple[np.random.Generator, images.Pixels, Box]:
        """Return an image's own generator in its epoch, its pixels and its unit boxes."""
        rng = np.random.default_rng((self.seed, request.epoch, request.image))
        pixels = images.decode(fetch.fetch_image(self.data.uris[request.image]))
        height, width = pixels.shape[:2]
        boxes = self.data.boxes[request.image]
        return rng, pixels, boxes / np.array([width, height, width, height])


def distort(rng: np.random.Generator, crop_SS3: Tensor, strength: float) -> Tensor:
    """Return a crop with other brightness, contrast and saturation, in a random order.

    Each by a factor from 1 - strength to 1 + strength (Howard 2013, section 2; the GoogLeNet
    paper says that it used these).
    """
    changes = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation]
    changed_3SS = crop_SS3.permute(2, 0, 1)
    for at in rng.permutation(len(changes)):
        factor = rng.uniform(1 - strength, 1 + strength)
        changed_3SS = changes[at](changed_3SS, factor)
    return changed_3SS.permute(1, 2, 0).contiguous()


def at_least_one_pixel(box: Box, width_px: int, height_px: int) -> Box:
    """Return the box moved and widened so that it covers a pixel of the image."""
    left, top = min(box[0], width_px - 1.0), min(box[1], height_px - 1.0)
    return np.array([left, top, max(box[2], left + 1.0), max(box[3], top + 1.0)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """How a logit reads as an overlap: sigmoid(scale * logit + shift)."""

    scale: float = 1.0
    shift: float = 0.0


def fit_calibration(logits_N: Tensor, overlaps_N: Tensor) -> Calibration:
    """Return the logistic fit of overlaps in [0, 1] on logits of the image's class.

    An image-level network says 10 where half an object is in sight. Held fixed while the
    scorer trains, the fit keeps the overlap loss from spending its first epochs on pushing
    all logits down, which undoes what the network knows (measured: one epoch at rate 0.002
    took the class accuracy from above 0.6 to 0.23).
    """
    if not len(logits_N):
        return Calibration()
    weight = torch.tensor([0.1, 0.0], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            weight[0] * logits_N + weight[1], overlaps_N
        )
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    scale, shift = weight.detach().tolist()
    return Calibration(scale=max(scale, _SMALLEST_SCALE), shift=shift)


def crop_losses(
    logits_NC: Tensor, batch: dict[str, Tensor], label_smoothing: float, calibration: Calibration
) -> Tensor:
    """Return the loss of each crop, (N,): cross-entropy of class crops, overlap of squares.

    A batch's class_index and overlap are (N,), of crops or of regions of images.

    The overlap is learnt by binary cross-entropy on the class's own logit, the very number
    that becomes the feature; divided by the calibration's scale, so that a wrong overlap
    moves a logit as hard as a wrong class does.
    """
    is_square = ~batch["overlap"].isnan()
    class_loss = torch.nn.functional.cross_entropy(
        logits_NC, batch["class_index"], reduction="none", label_smoothing=label_smoothing
    )
    own_logit = logits_NC.gather(1, batch["class_index"][:, None])[:, 0]
    overlap_loss = torch.nn.functional.binary_cross_entropy_with_logits(
        calibration.scale * own_logit + calibration.shift,
        batch["overlap"].nan_to_num(0.0).float(),
        reduction="none",
    )
    return torch.where(is_square, overlap_loss / calibration.scale, class_loss)
