"""How far a box is from the true boxes of its image: the metric is content with any of them.

Shape suffixes: N images (or any dimensions before the last); M true boxes, padded.
"""

import torch
from torch import Tensor

from cropscore_ray.models.boxes import generalized_iou


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


def _distance(pred: Tensor, true: Tensor, loss: str) -> Tensor:
    if loss == "giou":
        return 1 - generalized_iou(pred, true)
    difference = pred - true
    if loss == "euclidean":
        # Its slope at 0 is not defined; 1e-4 of the image's side is as good as 0.
        return (difference.square().sum(-1) + 1e-8).sqrt()
    return (difference.square() if loss == "l2" else difference.abs()).mean(-1)
