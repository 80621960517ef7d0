"""How far a box is from the true boxes of its image: the metric is content with any of them.

Shape suffixes: N images (or any dimensions before the last); M true boxes, padded.
"""

import torch
from torch import Tensor

from cropscore_ray.models.voter import iou

NO_BOX = 1e3  # so far off that it is never the nearest; infinity would make gradients NaN


def box_loss(pred_N4: Tensor, boxes_NM4: Tensor, loss: str) -> Tensor:
    """Return each image's distance to the true box that is nearest, shape (N,).

    euclidean: the length of the difference of the corners, as a vector of four; l2: the mean
    square of its parts; l1: their mean size; giou: 1 - GIoU (Rezatofighi et al. 2019, eq. 5),
    from 0 for equal boxes to 2 for far ones.
    """
    with torch.no_grad():
        distances_NM = _distance(pred_N4[..., None, :], boxes_NM4, loss)
        nearest_N14 = distances_NM.argmin(-1)[..., None, None].expand(*pred_N4.shape[:-1], 1, 4)
    return _distance(pred_N4, boxes_NM4.gather(-2, nearest_N14)[..., 0, :], loss)


def _distance(one: Tensor, other: Tensor, loss: str) -> Tensor:
    if loss == "giou":
        return 1 - generalized_iou(one, other)
    difference = one - other
    if loss == "euclidean":
        # Its slope at 0 is not defined; 1e-4 of the image's side is as good as 0.
        return (difference.square().sum(-1) + 1e-8).sqrt()
    return (difference.square() if loss == "l2" else difference.abs()).mean(-1)


def generalized_iou(one: Tensor, other: Tensor) -> Tensor:
    """Return GIoU of boxes whose leading dimensions fit together; a turned box has no area."""
    low, high = (
        torch.maximum(one[..., :2], other[..., :2]),
        torch.minimum(one[..., 2:], other[..., 2:]),
    )
    shared = (high - low).clamp_min(0).prod(-1)
    union = _area(one) + _area(other) - shared
    hull_low = torch.minimum(one[..., :2], other[..., :2])
    hull_high = torch.maximum(one[..., 2:], other[..., 2:])
    hull = (hull_high - hull_low).prod(-1)
    return shared / union.clamp_min(1e-6) - (hull - union) / hull.clamp_min(1e-6)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)


def best_iou(pred_N4: Tensor, boxes_NM4: Tensor) -> Tensor:
    """Return the IoU of each box with the true box it fits best, (N,); 0 for padding."""
    true_NM4 = torch.where(boxes_NM4 < NO_BOX, boxes_NM4, torch.zeros(()))
    return iou(pred_N4[:, None], true_NM4)[:, 0].amax(1)
