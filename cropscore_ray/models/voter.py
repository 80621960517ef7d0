"""Every cell of an image's map votes for a box of the class; the box that most agree on wins.

In place of 140 scores, a small head reads the scorer's maps of the whole image: the last ones
of the image at two sizes, and those before the last pooling. For each of 14 x 14 cells it
predicts how probable it is that the cell lies in an object of the class, and where that object's
sides are. All classes share a head; what it reads depends on the class by the scorer's own
weights of it. Maps cost far more than heads: several heads read them and vote together.

Shape suffixes: N images with a class each; D, d channels; W channels of the head; V cells, or
votes; h, w a map's sides; E evidence. Boxes are corners as fractions of the image.
"""
# ruff: noqa: N815 (fields that are arrays carry their shape suffix)

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cropscore_ray.images.crop import Crops
from cropscore_ray.models.boxes import iou, mirrored
from cropscore_ray.models.confidence import probabilities
from cropscore_ray.models.heads import ByClass, class_weights
from cropscore_ray.models.inference import InferenceNetwork

CELLS = 14
"""Votes a side: cells of the last map of an image of twice the network's usual side."""
NUM_EVIDENCE = 7

_FIRST_SIDE = 0.3  # a cell that knows nothing yet puts each side of the object so far away
_LONGEST = 1.5  # in the exponent: no side is further than 0.3 exp(1.5) = 1.34 image sides
_AGREES = 0.5  # IoU from which two votes mean the same box; the metric's own
_AVERAGED = 0.6  # IoU from which a vote has a part in the winner's sides
_CANDIDATES = 60
_SMALL_AREA = 0.02  # an object has votes in proportion to its area; dividing evens that out


class VotingHead(nn.Module):
    """From a scorer's maps and a class to the votes of 14 x 14 cells."""

    def __init__(
        self, num_last: int, num_inner: int, *, width: int = 128, dropout: float = 0.3
    ) -> None:
        """Take the channels of the scorer's last maps and of those before the last pooling."""
        super().__init__()
        self.dropout = dropout
        self.last = ByClass(num_last, width)
        self.whole = ByClass(num_last, width)
        self.inner = ByClass(num_inner, width, by_class=False)
        self.around = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=apart, dilation=apart) for apart in (1, 2, 3)
        )
        self.out = nn.Conv2d(width, 5, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, maps: "VoterMaps", class_ND: Tensor) -> Tensor:
        """Return (N, 5, V): a logit, and the logarithms of the sides' distances.

        Args:
            maps: of the images.
            class_ND: the scorer's weights of each image's class, of unit spread.
        """
        parts = [
            self.last(maps.last_NDhw, class_ND),
            self.inner(maps.inner_NDhw, class_ND),
            self.whole(maps.whole_NDhw, class_ND),
        ]
        size = parts[0].shape[-2:]
        parts[2] = F.interpolate(parts[2].float(), size, mode="bilinear")
        x = sum(parts[1:], parts[0]) / len(parts) ** 0.5
        x = F.dropout2d(F.relu(x), self.dropout, self.training)
        for layer in self.around:
            x = F.dropout2d(x + F.relu(layer(x)), self.dropout / 2, self.training)
        votes: Tensor = self.out(x).float().flatten(2)
        return votes


class VotingHeads(nn.Module):
    """Heads that vote together; they differ in their first weights and in their dropout."""

    def __init__(
        self,
        num_heads: int,
        num_last: int,
        num_inner: int,
        *,
        width: int = 128,
        dropout: float = 0.3,
    ) -> None:
        """Take how many, and what a `VotingHead` takes."""
        super().__init__()
        self.heads = nn.ModuleList(
            VotingHead(num_last, num_inner, width=width, dropout=dropout) for _ in range(num_heads)
        )

    def forward(self, maps: "VoterMaps", class_ND: Tensor) -> Tensor:
        """Return (N, 5, V), the heads' votes one after the other; see `VotingHead.forward`."""
        return torch.cat([head(maps, class_ND) for head in self.heads], 2)

    def set_scale(self, name: str, scale_D: Tensor) -> None:
        """Set what a reader (last, inner or whole) multiplies its maps' channels with."""
        for head in self.heads:
            getattr(head, name).scale.copy_(scale_D)


@dataclass(frozen=True, kw_only=True, slots=True)
class VoterMaps:
    """A scorer's maps of images, in cells."""

    last_NDhw: Tensor
    """14 x 14, of the image at twice the network's usual side"""
    inner_NDhw: Tensor
    """14 x 14 means of the maps before the last pooling, of the same image"""
    whole_NDhw: Tensor
    """7 x 7, of the image at the usual side"""

    def __getitem__(self, images: slice | Tensor) -> "VoterMaps":
        return VoterMaps(
            last_NDhw=self.last_NDhw[images],
            inner_NDhw=self.inner_NDhw[images],
            whole_NDhw=self.whole_NDhw[images],
        )


def voter_maps(
    network: InferenceNetwork, large: Tensor | Crops, small: Tensor | Crops
) -> VoterMaps:
    """Return a scorer's maps of whole images at twice and at the usual side."""
    both_NDVV = network.cells(large, CELLS, with_inner=True)
    num_last = network.fc.in_features
    return VoterMaps(
        last_NDhw=both_NDVV[:, :num_last],
        inner_NDhw=both_NDVV[:, num_last:],
        whole_NDhw=network.cells(small, CELLS // 2),
    )


def cell_centres(num_votes: int, device: torch.device) -> Tensor:
    """Return where votes stand, (V, 2), x and y: the cells row by row, once for each head."""
    at = (torch.arange(CELLS, device=device) + 0.5) / CELLS
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], -1).repeat(num_votes // CELLS**2, 1)


def voted_boxes(votes_N5V: Tensor) -> Tensor:
    """Return the box of each vote, (N, V, 4), not cut off at the image's edge."""
    x, y = cell_centres(votes_N5V.shape[2], votes_N5V.device).unbind(-1)
    far_N4V = _FIRST_SIDE * votes_N5V[:, 1:].clamp(-4.0, _LONGEST).exp()
    return torch.stack(
        [x - far_N4V[:, 0], y - far_N4V[:, 1], x + far_N4V[:, 2], y + far_N4V[:, 3]], -1
    )


def count_votes(boxes_NV4: Tensor, chances_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the box that most votes agree on, and evidence of whether it is right.

    A vote weighs the square of its cell's chance to lie in an object. Of the 60 boxes whose own
    votes weigh most for their size, the box wins whose agreeing votes do; its sides become the
    weighted means of the votes that agree closely.

    Args:
        boxes_NV4: of the votes, inside the image.
        chances_NV: of their cells.

    Returns:
        unit boxes, (N, 4), and evidence for a confidence, (N, 7).
    """
    weight_NV = chances_NV.clamp_min(1e-6).square()
    size_NV = ((boxes_NV4[..., 2:] - boxes_NV4[..., :2]).prod(-1) + _SMALL_AREA).sqrt()
    top_NK = (weight_NV / size_NV).topk(min(_CANDIDATES, weight_NV.shape[1])).indices
    candidates_NK4 = boxes_NV4.gather(1, top_NK[..., None].expand(-1, -1, 4))
    iou_NKV = iou(candidates_NK4, boxes_NV4)
    agree_NKV = torch.sigmoid((iou_NKV - _AGREES) / 0.05) * weight_NV[:, None]
    winner_N = (agree_NKV.sum(2) / size_NV.gather(1, top_NK)).argmax(1)
    each = torch.arange(len(winner_N), device=winner_N.device)
    part_NV = weight_NV * (iou_NKV[each, winner_N] >= _AVERAGED)
    part_NV = part_NV / part_NV.sum(1, keepdim=True)
    # A mean of sides at the image's edge may lie a rounding error beyond it.
    box_N4 = (part_NV[..., None] * boxes_NV4).sum(1).clamp(0.0, 1.0)
    agree_N = agree_NKV[each, winner_N].sum(1)
    evidence_NE = torch.stack(
        [
            torch.ones_like(agree_N),
            agree_N / weight_NV.sum(1),
            chances_NV.amax(1),
            (part_NV * chances_NV).sum(1),
            box_N4[:, 2] - box_N4[:, 0],
            box_N4[:, 3] - box_N4[:, 1],
            (part_NV * iou_NKV[each, winner_N]).sum(1),
        ],
        1,
    )
    return box_N4, evidence_NE


@dataclass(frozen=True, kw_only=True, slots=True)
class Voter:
    """Trained heads on their device, and the calibration of its confidence, on the host."""

    heads: VotingHeads
    class_CD: Tensor
    confidence: Tensor
    """(3, E): mean, scale and weight of each evidence."""

    @torch.inference_mode()
    def elect(self, maps: VoterMaps, classes_K: Tensor) -> tuple[Tensor, Tensor]:
        """Return an image's boxes for some classes, (K, 4), and their evidence, (K, 7).

        `maps` are of two: the image and its mirror image, whose votes count alike.
        """
        boxes, chances = [], []
        for i in range(2):
            repeated = maps[torch.full((len(classes_K),), i, device=classes_K.device)]
            votes_K5V = self.heads(repeated, self.class_CD[classes_K])
            seen_KV4 = voted_boxes(votes_K5V)
            boxes.append(mirrored(seen_KV4) if i else seen_KV4)
            chances.append(votes_K5V[:, 0].sigmoid())
        return count_votes(torch.cat(boxes, 1).clamp(0.0, 1.0), torch.cat(chances, 1))

    def confidences(self, evidence_KE: Tensor) -> Tensor:
        """Return the estimated probability that a box has IoU >= 0.5, (K,)."""
        return probabilities(self.confidence, evidence_KE.to(self.confidence))


def from_tensors(tensors: dict[str, Tensor], fc: nn.Linear, device: torch.device) -> Voter:
    """Build a voter from its heads' state dict with `confidence`, and the scorer's last layer."""
    weights = {name: tensor for name, tensor in tensors.items() if name != "confidence"}
    num_heads = sum(name.endswith(".out.bias") for name in weights)
    width, num_inner = weights["heads.0.inner.same.weight"].shape
    heads = VotingHeads(num_heads, fc.in_features, num_inner, width=width)
    heads.load_state_dict(weights)
    return Voter(
        heads=heads.to(device).eval(),
        class_CD=class_weights(fc).to(device),
        confidence=tensors["confidence"],
    )
