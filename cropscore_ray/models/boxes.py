"""Unit boxes as tensors: corners as fractions of the image's sides, in the last dimension.

Shape suffixes: N images; K, V boxes; M true boxes, padded with NO_BOX.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NO_BOX = 1e3  # so far off that it is never the nearest; infinity would make gradients NaN


def pad_boxes(boxes: list[NDArray[np.float64]]) -> Tensor:
    """Return each image's boxes as one tensor, (N, M, 4), padded with NO_BOX."""
    most = max((len(boxes_M4) for boxes_M4 in boxes), default=0)
    padded_NM4 = torch.full((len(boxes), most, 4), NO_BOX)
    for padded_M4, boxes_M4 in zip(padded_NM4, boxes, strict=True):
        padded_M4[: len(boxes_M4)] = torch.from_numpy(np.asarray(boxes_M4, np.float32))
    return padded_NM4


def mirrored(boxes: Tensor) -> Tensor:
    """Return boxes, (…, 4), as they lie in the left-right mirror image; padding stays padding."""
    left, top, right, bottom = boxes.unbind(-1)
    turned = torch.stack([1 - right, top, 1 - left, bottom], -1)
    return torch.where(boxes == NO_BOX, boxes, turned)


def ordered(boxes_N4: Tensor) -> Tensor:
    """Return boxes inside the image with left <= right and top <= bottom."""
    low = torch.minimum(boxes_N4[:, :2], boxes_N4[:, 2:])
    high = torch.maximum(boxes_N4[:, :2], boxes_N4[:, 2:])
    return torch.cat([low, high], 1).clamp(0.0, 1.0)


def area(boxes: Tensor) -> Tensor:
    """Return the areas of boxes, (…); a turned box has none."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)


def _shared_and_union(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., 2:], others[..., 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    return shared, area(boxes) + area(others) - shared


def iou(boxes_NK4: Tensor, others_NV4: Tensor) -> Tensor:
    """Return the IoU of every pair, (N, K, V)."""
    shared, union = _shared_and_union(boxes_NK4[:, :, None], others_NV4[:, None])
    return shared / union.clamp_min(1e-9)


def best_iou(boxes_N4: Tensor, true_NM4: Tensor) -> Tensor:
    """Return the IoU of each box with the true box it fits best, (N,); 0 for padding."""
    true_NM4 = torch.where(true_NM4 < NO_BOX, true_NM4, torch.zeros(()))
    return iou(boxes_N4[:, None], true_NM4)[:, 0].amax(1)


def generalized_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return GIoU (Rezatofighi et al. 2019, eq. 5) of boxes whose leading dimensions fit.

    From 1 for equal boxes to -1 for far ones.
    """
    shared, union = _shared_and_union(boxes, others)
    hull_low = torch.minimum(boxes[..., :2], others[..., :2])
    hull_high = torch.maximum(boxes[..., 2:], others[..., 2:])
    hull = (hull_high - hull_low).prod(-1)
    return shared / union.clamp_min(1e-6) - (hull - union) / hull.clamp_min(1e-6)
