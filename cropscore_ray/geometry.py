"""Boxes and their overlap.

A box is `box_xyxy`: left, top, right, bottom in pixels of the original image, right
and bottom exclusive, so width is right - left. Shape suffixes: N, M boxes; 4 the
sides. Everything here is numpy in float64; nothing here knows images or classes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Boxes = NDArray[np.float64]

IOU_THRESHOLD = 0.5
"""A box is right from here on: ILSVRC's development kit calls `overlap < 0.50` wrong."""


def sides_px(shape: Sequence[int]) -> Boxes:
    """Return what makes a unit box one of pixels: an image's width, height, width, height."""
    height, width = shape[:2]
    return np.array([width, height, width, height], np.float64)


def area(boxes_N4: ArrayLike) -> NDArray[np.float64]:
    """Return the area of each box, shape (N,); a box turned inside out has area 0."""
    boxes = np.asarray(boxes_N4, np.float64)
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return np.asarray(sides[..., 0] * sides[..., 1])


def intersection(boxes_N4: ArrayLike, others_M4: ArrayLike) -> NDArray[np.float64]:
    """Return the area that each pair of boxes shares, shape (N, M)."""
    boxes = np.asarray(boxes_N4, np.float64)[..., :, None, :]
    others = np.asarray(others_M4, np.float64)[..., None, :, :]
    top_left = np.maximum(boxes[..., :2], others[..., :2])
    bottom_right = np.minimum(boxes[..., 2:], others[..., 2:])
    return area(np.concatenate([top_left, bottom_right], axis=-1))


def iou(boxes_N4: ArrayLike, others_M4: ArrayLike) -> NDArray[np.float64]:
    """Return intersection over union of each pair, shape (N, M), in [0, 1].

    Two empty boxes share nothing: their IoU is 0. With half-open boxes this equals the
    inclusive-pixel formula of the ILSVRC development kit (compute_overlap.m).
    """
    shared = intersection(boxes_N4, others_M4)
    union = area(boxes_N4)[..., :, None] + area(others_M4)[..., None, :] - shared
    return _fraction(shared, union)


def coverage_and_purity(
    crops_N4: ArrayLike, box_4: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the part of the box inside each crop and the part of each crop that is box.

    Both have shape (N,) and lie in [0, 1]; an empty box or crop gives 0.
    """
    shared = intersection(crops_N4, np.asarray(box_4, np.float64)[None])[:, 0]
    return _fraction(shared, area(box_4)), _fraction(shared, area(crops_N4))


def _fraction(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
