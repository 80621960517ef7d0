"""Boxes that need no crop scores: the best constant box, and the box of a class map.

Boxes here are in unit fractions of the image's width and height, xyxy, right and bottom
exclusive. Shapes: N images, M true boxes of one image, G true boxes in all, C candidate
boxes, T thresholds, HW a class map. An image's error is that of the any-instance rule:
no true box has IoU >= 0.5. Nothing here knows networks, classes or files.
"""

import itertools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from cropscore_ray import geometry

Floats = NDArray[np.float64]
T = TypeVar("T")

MAX_CONSTANT_BOX_IMAGES = 20_000  # 20,000 images give the error to 0.35 points
MAX_CAM_IMAGES = 5_000
CAM_SIDE = 56  # a 7x7 map enlarged eight times; finer changes boxes by under 1 % of a side
CAM_THRESHOLDS = np.round(np.arange(0.05, 0.951, 0.05), 2)

_COARSE_STEP = 0.1
_FINE_STEPS = (0.05, 0.02, 0.01)
_NUM_STARTS = 3
_CHUNK = 2_000_000  # pairs of a candidate and a box in memory together: about 100 MB


def fit_constant_box(gt_boxes_unit: Sequence[ArrayLike]) -> Floats:
    """Find the box that misses the fewest images when it is the answer for all.

    A search without chance: all boxes with sides on a grid of 0.1 that hold the image's
    centre, then from the best three in turn the best neighbour (each side moved by a
    step or not) until none is better, with steps 0.05, 0.02 and 0.01. The error is
    piecewise constant, so the result is a good local optimum, not a proven global one.
    Of more than 20,000 images every k-th is used.

    Args:
        gt_boxes_unit: For each image its true boxes (M, 4); images with M = 0 are passed over.

    Returns:
        The box, shape (4,).

    Raises:
        ValueError: No image has a box.
    """
    boxes_G4, starts_N = _flatten(_thinned(gt_boxes_unit, MAX_CONSTANT_BOX_IMAGES))
    coarse_C4 = _coarse_candidates()
    errors_C = _miss_rates(coarse_C4, boxes_G4, starts_N)
    starts = np.argsort(errors_C, kind="stable")[:_NUM_STARTS]
    optima = [_descend(coarse_C4[i], errors_C[i], boxes_G4, starts_N) for i in starts]
    return min(optima, key=lambda box_error: box_error[1])[0]


def cam_box(map_HW: ArrayLike, threshold: float) -> Floats:
    """Return the box of the largest region of a class map, shape (4,) (CAM, Zhou et al. 2016).

    The map is enlarged to 56 x 56 (bilinear, values at pixel centres), scaled to its own
    minimum and maximum, and cut: pixels at or above the threshold count. Regions touch by
    sides or corners; of equally large ones the first from the top wins. A constant map, or a map
    that is not finite, gives the whole image.

    Args:
        map_HW: Class evidence by place, any scale.
        threshold: Fraction of the way from the map's minimum to its maximum, in [0, 1].
    """
    scaled = _scaled(_enlarged(np.asarray(map_HW, np.float64)))
    return _largest_region(scaled >= threshold)


def fit_cam_threshold(maps_NHW: ArrayLike, gt_boxes_unit: Sequence[ArrayLike]) -> float:
    """Find the threshold of `cam_box` that misses the fewest images; the lowest of equals.

    Tried are 0.05, 0.10, … 0.95. Of more than 5,000 images every k-th is used.

    `maps_NHW` is a class map per image; boxes and errors are as in `fit_constant_box`. ValueError
    too if maps and boxes differ in number.
    """
    pairs = list(zip(np.asarray(maps_NHW, np.float64), gt_boxes_unit, strict=True))
    boxed = [(map_HW, np.asarray(gt, np.float64)) for map_HW, gt in pairs if len(np.asarray(gt))]
    if not boxed:
        raise ValueError("no image has a true box")
    misses_T = np.zeros(len(CAM_THRESHOLDS))
    for map_HW, gt_M4 in _thinned(boxed, MAX_CAM_IMAGES):
        scaled = _scaled(_enlarged(map_HW))
        boxes_T4 = np.stack([_largest_region(scaled >= t) for t in CAM_THRESHOLDS])
        misses_T += geometry.iou(boxes_T4, gt_M4).max(axis=1) < geometry.IOU_THRESHOLD
    return float(CAM_THRESHOLDS[np.argmin(misses_T)])


def _thinned(items: Sequence[T], limit: int) -> Sequence[T]:
    return items[:: -(-len(items) // limit)] if len(items) > limit else items


def _flatten(gt_boxes_unit: Sequence[ArrayLike]) -> tuple[Floats, NDArray[np.int64]]:
    """Return all boxes (G, 4) and the place of each image's first one (N,)."""
    arrays = [np.asarray(gt, np.float64).reshape(-1, 4) for gt in gt_boxes_unit]
    arrays = [gt for gt in arrays if len(gt)]
    if not arrays:
        raise ValueError("no image has a true box")
    lengths = np.array([len(gt) for gt in arrays])
    return np.concatenate(arrays), np.cumsum(lengths) - lengths


def _coarse_candidates() -> Floats:
    low = np.arange(0.0, 0.5, _COARSE_STEP)
    high = 1.0 - low
    return np.array(list(itertools.product(low, low, high, high)))


def _miss_rates(boxes_C4: Floats, gt_G4: Floats, starts_N: NDArray[np.int64]) -> Floats:
    """Return the fraction of images that each candidate misses, (C,)."""
    rows = max(1, _CHUNK // len(gt_G4))
    parts = [boxes_C4[i : i + rows] for i in range(0, len(boxes_C4), rows)]
    hits = [
        np.maximum.reduceat(geometry.iou(part, gt_G4), starts_N, axis=1) >= geometry.IOU_THRESHOLD
        for part in parts
    ]
    return np.asarray(1.0 - np.concatenate(hits).mean(axis=1), np.float64)


def _descend(
    box: Floats, error: float, gt_G4: Floats, starts_N: NDArray[np.int64]
) -> tuple[Floats, float]:
    moves = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=4)))
    for step in _FINE_STEPS:
        while True:
            near_C4: Floats = np.round(np.clip(box + step * moves, 0.0, 1.0), 4).astype(np.float64)
            errors_C = _miss_rates(near_C4, gt_G4, starts_N)
            best = int(np.argmin(errors_C))
            if errors_C[best] >= error:
                break
            box, error = near_C4[best], float(errors_C[best])
    return box, error


def _enlarged(map_HW: Floats) -> Floats:
    height, width = map_HW.shape
    return np.asarray(_bilinear(height) @ map_HW @ _bilinear(width).T)


def _bilinear(size: int) -> Floats:
    """Return (side, size): the weights that enlarge one axis; sides larger than 56 stay."""
    side = max(CAM_SIDE, size)
    places = (np.arange(side) + 0.5) * size / side - 0.5
    return np.stack([np.interp(places, np.arange(size), row) for row in np.eye(size)], axis=1)


def _scaled(map_HW: Floats) -> Floats:
    low, high = map_HW.min(), map_HW.max()
    if not high - low > 1e-12 * max(abs(low), abs(high)):  # also false for NaN
        return np.ones_like(map_HW)
    return np.asarray((map_HW - low) / (high - low))


def _largest_region(mask_HW: NDArray[np.bool_]) -> Floats:
    labels, count = ndimage.label(mask_HW, structure=np.ones((3, 3)))
    if count == 0:  # a threshold above 1
        return np.array([0.0, 0.0, 1.0, 1.0])
    sizes = np.bincount(labels.ravel())[1:]
    rows, columns = ndimage.find_objects(labels)[int(np.argmax(sizes))]
    height, width = mask_HW.shape
    return np.array(
        [columns.start / width, rows.start / height, columns.stop / width, rows.stop / height]
    )
