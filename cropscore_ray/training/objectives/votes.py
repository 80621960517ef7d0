"""Training a voting head: whole images through windows, and what each cell should vote.

Shape suffixes: N images; M true boxes, padded with NO_BOX; V cells.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cropscore_ray.config.sections import VoterConfig
from cropscore_ray.geometry import IOU_THRESHOLD, Boxes, sides_px
from cropscore_ray.images.crop import crop
from cropscore_ray.models.boxes import NO_BOX, best_iou, generalized_iou, mirrored
from cropscore_ray.models.inference import best_dtype
from cropscore_ray.models.voter import (
    CELLS,
    VoterMaps,
    cell_centres,
    voted_boxes,
    voter_maps,
)
from cropscore_ray.training.data.batches import Batch
from cropscore_ray.training.data.images import Box, Request, WholeImageDataset
from cropscore_ray.training.objectives.heads import HeadObjective

_MOST_BOXES = 32  # an image's largest ones; crowds of more small objects are rare
_LEAST_SEEN = 0.3  # of an object's area must be in the window for it to count
_GIOU_WEIGHT, _L1_WEIGHT = 2.0, 0.5


class VoteDataset(WholeImageDataset):
    """An image an epoch, whole or through a window, at the two sides that a voter reads."""

    config: VoterConfig

    def _sample(self, request: Request) -> dict[str, Any]:
        """Return large and small, uint8 (S, S, 3), class_index, and boxes, (32, 4)."""
        rng, pixels, boxes_M4 = self._read(request)
        window, seen_M4 = draw_window(rng, boxes_M4, self.config.smallest_window)
        box = window * sides_px(pixels.shape)
        sides = {"large": CELLS * self.stride, "small": CELLS // 2 * self.stride}
        views = {name: crop(pixels, box[None], side)[0] for name, side in sides.items()}
        boxes = torch.full((_MOST_BOXES, 4), NO_BOX)
        largest = np.argsort(-(seen_M4[:, 2:] - seen_M4[:, :2]).prod(1))[:_MOST_BOXES]
        boxes[: len(largest)] = torch.from_numpy(seen_M4[largest]).float()
        if rng.random() < 0.5:
            views = {name: view.flip(1) for name, view in views.items()}
            boxes = mirrored(boxes)
        return {**views, "class_index": int(self.data.classes[request.image]), "boxes": boxes}


def draw_window(rng: np.random.Generator, boxes_M4: Boxes, smallest: float) -> tuple[Box, Box]:
    """Draw a part of the image, and return it with the boxes as they lie in it.

    Every second image is seen whole, and so is an image whose window would leave out all objects.
    """
    whole = np.array([0.0, 0.0, 1.0, 1.0])
    if rng.random() < 0.5:
        return whole, boxes_M4
    sides = rng.uniform(smallest, 1.0, 2)
    low = rng.uniform(0.0, 1.0 - sides)
    moved_M4 = (boxes_M4 - np.tile(low, 2)) / np.tile(sides, 2)
    seen_M4 = moved_M4.clip(0.0, 1.0)
    seen_area_M, area_M = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (seen_M4, moved_M4))
    counts = seen_area_M > _LEAST_SEEN * area_M
    if not counts.any():
        return whole, boxes_M4
    return np.concatenate([low, low + sides]), seen_M4[counts]


class VoteObjective(HeadObjective):
    """The loss of voting heads on the maps of a scorer that stays as it is."""

    def mean_squares(self, batch: Batch) -> dict[str, Tensor]:
        """Return those of the last, the inner and the whole maps."""
        maps = self._maps(batch)
        maps_of = {"last": maps.last_NDhw, "inner": maps.inner_NDhw, "whole": maps.whole_NDhw}
        return {name: maps_NDhw.square().mean((0, 2, 3)) for name, maps_NDhw in maps_of.items()}

    def __call__(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return a pass's mean loss, and how many images' surest votes fit, of how many."""
        maps = self._maps(batch)
        device = batch["large"].device
        dtype = best_dtype(device)
        class_ND = self.class_CD[batch["class_index"]]
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            votes_N5V = module(maps, class_ND)
        boxes_NV4 = voted_boxes(votes_N5V)
        loss = vote_losses(votes_N5V[:, 0], boxes_NV4, batch["boxes"]).mean()
        surest = votes_N5V[:, 0].argmax(1)
        each = torch.arange(len(surest), device=device)
        surest_N4 = boxes_NV4[each, surest].detach().clamp(0, 1)
        hit = best_iou(surest_N4, batch["boxes"]) >= IOU_THRESHOLD
        return loss, hit.sum(), torch.tensor(len(hit), device=device)

    def _maps(self, batch: Batch) -> VoterMaps:
        return voter_maps(self.scorer, batch["large"], batch["small"])


def vote_losses(logits_NV: Tensor, boxes_NV4: Tensor, true_NM4: Tensor) -> Tensor:
    """Return each image's loss, (N,).

    A cell's logit is judged by whether its centre lies in a true box, cells inside and
    outside weighing alike; its box, if it does, by GIoU and L1 with the box around it that it
    is nearest to.
    """
    is_box_NM = true_NM4[..., 0] < NO_BOX
    true_NM4 = torch.where(is_box_NM[..., None], true_NM4, torch.zeros(()))
    inside_NVM = _cells_inside(true_NM4, boxes_NV4.shape[1]) & is_box_NM[:, None]
    pred, true = boxes_NV4[:, :, None], true_NM4[:, None]
    distance_NVM = _GIOU_WEIGHT * (1 - generalized_iou(pred, true))
    distance_NVM = distance_NVM + _L1_WEIGHT * (pred - true).abs().mean(-1)
    nearest_NV = torch.where(inside_NVM, distance_NVM, torch.tensor(1e6)).amin(2)
    inside_NV = inside_NVM.any(2)
    box_loss = _mean_over(nearest_NV, inside_NV)
    wrong_NV = F.binary_cross_entropy_with_logits(logits_NV, inside_NV.float(), reduction="none")
    return box_loss + 0.5 * (_mean_over(wrong_NV, inside_NV) + _mean_over(wrong_NV, ~inside_NV))


def _cells_inside(boxes_NM4: Tensor, num_votes: int) -> Tensor:
    """Return which votes' cells lie in which boxes, (N, V, M); no box is less than a cell."""
    centre_V2 = cell_centres(num_votes, boxes_NM4.device)[None, :, None]
    sides_NM2 = boxes_NM4[..., 2:] - boxes_NM4[..., :2]
    more_NM2 = (0.5 / CELLS - sides_NM2 / 2).clamp_min(0)
    low, high = boxes_NM4[..., :2] - more_NM2, boxes_NM4[..., 2:] + more_NM2
    return ((centre_V2 >= low[:, None]) & (centre_V2 <= high[:, None])).all(-1)


def _mean_over(values_NV: Tensor, counted_NV: Tensor) -> Tensor:
    """Return the mean of the values that count, (N,); 0 where none does."""
    counted = torch.where(counted_NV, values_NV, torch.zeros(()))
    return counted.sum(1) / counted_NV.sum(1).clamp_min(1)
