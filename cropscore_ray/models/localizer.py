"""From images and classes to boxes: through the scores of 140 squares, or through votes of cells.

A model's mode decides which of the two its localizer is. Each has two halves: `look` queues work
on the networks' device, and `boxes` computes in the host's memory from what came of that.

Shape suffixes: G images; K classes of each; F figures: 140 scores, or a box and its evidence.
"""

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from cropscore_ray.config.modes import VOTER
from cropscore_ray.models import regressors, voter
from cropscore_ray.models.bundle import LOCALIZER, SCORER, Bundle
from cropscore_ray.models.scorer import CropScorer, Image, whole_images


class Localizer(Protocol):
    """What makes boxes of images."""

    def look(self, images_G: list[Image], classes_GK: Tensor) -> Tensor:
        """Return what boxes of these classes are made from, (G, K, F), on the networks' device."""

    def boxes(self, figures_KF: Tensor, classes_K: Tensor) -> tuple[Tensor, Tensor]:
        """Return an image's unit boxes, (K, 4), and the chance of each to have IoU >= 0.5, (K,)."""


class ScoresLocalizer:
    """Boxes that regressors read off the scores of an image's 140 squares."""

    def __init__(self, scorer: CropScorer, tensors: dict[str, Tensor], normalization: str) -> None:
        """Take what `Regressors.to_tensors` returned, and how scores are normalized."""
        self.look = scorer.square_scores
        self.regressors = regressors.from_tensors(tensors, normalization)

    def boxes(self, figures_KF: Tensor, classes_K: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `Localizer.boxes` does, of scores."""
        boxes_K4 = self.regressors.boxes(figures_KF, classes_K)
        return boxes_K4, self.regressors.confidences(figures_KF, boxes_K4)


class VotesLocalizer:
    """Boxes that most cells of the scorer's maps vote for."""

    def __init__(self, scorer: CropScorer, tensors: dict[str, Tensor]) -> None:
        """Take what `voter.from_tensors` does."""
        self.scorer = scorer
        self._tensors = tensors

    @cached_property
    def voter(self) -> voter.Voter:
        """The heads on the scorer's device, made when the scorer is first needed."""
        fc = self.scorer.network(SCORER).fc
        return voter.from_tensors(self._tensors, fc, self.scorer.device)

    def look(self, images_G: list[Image], classes_GK: Tensor) -> Tensor:
        """Return the boxes that won and the evidence of each; no image is looked at again."""
        network = self.scorer.network(SCORER)
        side = voter.CELLS * network.network.stride
        maps = voter.voter_maps(
            network,
            whole_images(images_G, side, with_mirrors=True),
            whole_images(images_G, side // 2, with_mirrors=True),
        )
        elected = [
            torch.cat(self.voter.elect(maps[slice(2 * i, 2 * i + 2)], classes_K), 1)
            for i, classes_K in enumerate(classes_GK)
        ]
        return torch.stack(elected)

    def boxes(self, figures_KF: Tensor, classes_K: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `Localizer.boxes` does, of boxes and their evidence."""
        return figures_KF[:, :4], self.voter.confidences(figures_KF[:, 4:])


def load_localizer(bundle: Bundle, scorer: CropScorer) -> Localizer:
    """Return the localizer of a bundle, which looks through the bundle's scorer."""
    tensors = bundle.tensors(LOCALIZER)
    if bundle.config.localizer_kind is VOTER:
        return VotesLocalizer(scorer, tensors)
    return ScoresLocalizer(scorer, tensors, bundle.config.localizer.normalization)
