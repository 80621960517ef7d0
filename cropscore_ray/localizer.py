"""The regressors: 140 scores to one box, shared by all classes and then one per class.

All regressors are one stack of weights: slot 0 is the shared one, the others belong to
the classes that were fine-tuned, and `slot_of_class` says which is whose. Boxes are
corners as fractions of the image's sides.

Shape suffixes: N images; F = 140 scores; G slots; C classes; I, O a layer's inputs, outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cropscore_ray.features import normalize_scores

SHARED = 0
NUM_EVIDENCE = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Localizer:
    """Stacked regressors and the calibration of their confidence."""

    weights: list[Tensor]
    """Of each layer, (G, O, I)."""
    biases: list[Tensor]
    """Of each layer, (G, O)."""
    slot_of_class: Tensor
    """(C,) int64; SHARED for a class without a regressor of its own."""
    confidence: Tensor
    """(3, E): mean, scale and weight of each evidence (the first is the constant 1)."""
    normalization: str

    def boxes(self, scores_NF: Tensor, classes_N: Tensor) -> Tensor:
        """Return unit boxes, (N, 4), clipped to the image with their corners in order."""
        features_NF = normalize_scores(scores_NF, self.normalization)
        slots_N = self.slot_of_class[classes_N]
        return ordered(apply_stack(self.weights, self.biases, features_NF, slots_N))

    def confidences(self, scores_NF: Tensor, boxes_N4: Tensor) -> Tensor:
        """Return the estimated probability that a box has IoU >= 0.5, (N,)."""
        mean, scale, weight = self.confidence
        evidence_NE = (box_evidence(scores_NF, boxes_N4) - mean) / scale
        return torch.sigmoid(evidence_NE @ weight)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return what a bundle stores."""
        tensors = {"slot_of_class": self.slot_of_class, "confidence": self.confidence}
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            tensors |= {f"layers.{i}.weight": weight, f"layers.{i}.bias": bias}
        return tensors


def from_tensors(tensors: dict[str, Tensor], normalization: str) -> Localizer:
    """Build a localizer from what `to_tensors` returned."""
    num_layers = sum(name.endswith(".weight") for name in tensors)
    return Localizer(
        weights=[tensors[f"layers.{i}.weight"] for i in range(num_layers)],
        biases=[tensors[f"layers.{i}.bias"] for i in range(num_layers)],
        slot_of_class=tensors["slot_of_class"],
        confidence=tensors["confidence"],
        normalization=normalization,
    )


def apply_stack(
    weights: list[Tensor], biases: list[Tensor], features_NF: Tensor, slots_N: Tensor
) -> Tensor:
    """Return the raw outputs of each image's own regressor, (N, 4)."""
    slots, group_N = torch.unique(slots_N, return_inverse=True)
    outputs_N4 = features_NF.new_empty(len(features_NF), biases[-1].shape[1])
    for i, slot in enumerate(slots):
        mine = group_N == i
        x = features_NF[mine]
        for weight_GOI, bias_GO in zip(weights[:-1], biases[:-1], strict=True):
            x = torch.relu(torch.nn.functional.linear(x, weight_GOI[slot], bias_GO[slot]))
        outputs_N4[mine] = torch.nn.functional.linear(x, weights[-1][slot], biases[-1][slot])
    return outputs_N4


def ordered(boxes_N4: Tensor) -> Tensor:
    """Return unit boxes inside the image with left <= right and top <= bottom."""
    low = torch.minimum(boxes_N4[:, :2], boxes_N4[:, 2:])
    high = torch.maximum(boxes_N4[:, :2], boxes_N4[:, 2:])
    return torch.cat([low, high], 1).clamp(0.0, 1.0)


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
