"""Regressors: 140 scores to one box, through shared hidden layers and a class's last one.

The last layers are one stack: slot 0 is the shared one, the others belong to the classes
that were fine-tuned, and `slot_of_class` says which is whose. Boxes are corners as fractions
of the image's sides.

Shape suffixes: N images; F = 140 scores; H outputs of the hidden layers and a constant 1;
G slots; C classes; I, O a layer's inputs, outputs; E evidence.
"""
# ruff: noqa: N815 (fields that are arrays carry their shape suffix)

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from cropscore_ray.models.boxes import ordered
from cropscore_ray.models.confidence import probabilities

SHARED = 0
NUM_EVIDENCE = 7
_SMALLEST = 1e-6  # a flat score vector becomes zeros instead of infinities

Layers = list[tuple[Tensor, Tensor]]
"""Weight (O, I) and bias (O,) of each hidden layer; each is followed by ReLU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Regressors:
    """Hidden layers, stacked last layers, and the calibration of their confidence."""

    hidden: Layers
    heads_G4H: Tensor
    """Last layers: weights, and the bias in the last column."""
    slot_of_class: Tensor
    """(C,) int64; SHARED for a class without a last layer of its own."""
    confidence: Tensor
    """(3, E): mean, scale and weight of each evidence (the first is the constant 1)."""
    normalization: str

    def boxes(self, scores_NF: Tensor, classes_N: Tensor) -> Tensor:
        """Return unit boxes, (N, 4), clipped to the image with their corners in order."""
        hidden_NH = apply_hidden(self.hidden, normalize_scores(scores_NF, self.normalization))
        heads_N4H = self.heads_G4H[self.slot_of_class[classes_N]]
        return ordered((heads_N4H @ hidden_NH[..., None])[..., 0])

    def confidences(self, scores_NF: Tensor, boxes_N4: Tensor) -> Tensor:
        """Return the estimated probability that a box has IoU >= 0.5, (N,)."""
        return probabilities(self.confidence, box_evidence(scores_NF, boxes_N4))

    def to_tensors(self) -> dict[str, Tensor]:
        """Return what a bundle stores."""
        tensors = {
            "heads": self.heads_G4H,
            "slot_of_class": self.slot_of_class,
            "confidence": self.confidence,
        }
        for i, (weight, bias) in enumerate(self.hidden):
            tensors |= {f"hidden.{i}.weight": weight, f"hidden.{i}.bias": bias}
        return tensors


def from_tensors(tensors: dict[str, Tensor], normalization: str) -> Regressors:
    """Build regressors from what `to_tensors` returned."""
    depth = sum(name.startswith("hidden.") for name in tensors) // 2
    return Regressors(
        hidden=[(tensors[f"hidden.{i}.weight"], tensors[f"hidden.{i}.bias"]) for i in range(depth)],
        heads_G4H=tensors["heads"],
        slot_of_class=tensors["slot_of_class"],
        confidence=tensors["confidence"],
        normalization=normalization,
    )


def normalize_scores(scores_NF: Tensor, normalization: str) -> Tensor:
    """Return each image's scores normalized on their own, (N, 140) float32.

    zscore: mean 0 and standard deviation 1; l2: length 1; raw: as they are. The poster
    says "normalized" and no more; METHOD row 10 compares them.
    """
    scores = scores_NF.float()
    if normalization == "zscore":
        centered = scores - scores.mean(1, keepdim=True)
        return centered / scores.std(1, correction=0, keepdim=True).clamp_min(_SMALLEST)
    if normalization == "l2":
        length: Tensor = torch.linalg.vector_norm(scores, dim=1, keepdim=True)
        return scores / length.clamp_min(_SMALLEST)
    assert normalization == "raw", normalization
    return scores


def apply_hidden(hidden: Layers, features_NF: Tensor) -> Tensor:
    """Return the hidden layers' outputs and a last column of ones, (N, H)."""
    x = features_NF
    for weight, bias in hidden:
        x = torch.relu(F.linear(x, weight, bias))
    return F.pad(x, (0, 1), value=1.0)


def box_evidence(scores_NF: Tensor, boxes_N4: Tensor) -> Tensor:
    """Return what the confidence is judged by, (N, 7).

    1, then the highest, mean and spread of the raw scores, and the box's width, height
    and area as fractions.
    """
    sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    columns = [
        torch.ones(len(scores_NF)),
        scores_NF.amax(1),
        scores_NF.mean(1),
        scores_NF.std(1, correction=0),
        *sides_N2.unbind(1),
        sides_N2.prod(1),
    ]
    return torch.stack(columns, 1)
