"""Training of heads: the network below stays as it is. First kind: a head of overlaps.

Shape suffixes: N images; R squares of an image; C classes; D channels; J = 7 cells a side.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cropscore_ray import grid
from cropscore_ray.models.heads import class_weights
from cropscore_ray.models.inference import InferenceNetwork
from cropscore_ray.training.data.batches import Batch, single_images
from cropscore_ray.training.data.images import ImageDataset

_SCALE_IMAGES = 200
"""Images on which the scales of channels are measured."""


class HeadObjective:
    """What objectives of heads share; each kind adds `mean_squares` and `__call__`."""

    def __init__(self, dataset: ImageDataset, scorer: InferenceNetwork) -> None:
        """Take the network as it will serve the heads, so that both see the same numbers."""
        self.dataset = dataset
        self.scorer = scorer
        self.class_CD = class_weights(scorer.fc)

    def mean_squares(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean square of each channel that a head reads, (D,), by the reader's name."""
        raise NotImplementedError

    def prepare(self, network: Any, device: torch.device) -> None:
        """Scale each channel that is read to unit size, as measured on some images."""
        images = single_images(self.dataset, _SCALE_IMAGES, device)
        measured = [self.mean_squares(batch) for batch in images]
        for name in measured[0]:
            size_D = torch.stack([squares[name] for squares in measured]).mean(0).sqrt()
            network.set_scale(name, 1 / size_D.clamp_min(1e-2))

    def trained(self, network: nn.Module) -> nn.Module:
        """Return the heads themselves."""
        return network

    def state(self) -> Any:
        """Return nothing: scales are buffers of the heads."""
        return None

    def load(self, state: Any) -> None:
        """Take nothing."""


class OverlapObjective(HeadObjective):
    """The loss of an overlap head: binary cross-entropy with the overlap of each square."""

    def mean_squares(self, batch: Batch) -> dict[str, Tensor]:
        """Return those of the embedding."""
        return {"read": self._embed(batch).square().mean((0, 1))}

    def __call__(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return a pass's mean loss, and how many squares are judged right, of how many.

        Right is the side of one half that the predicted overlap is on.
        """
        embedding_NRD = self._embed(batch)
        classes_N = batch["class_index"].view(len(embedding_NRD), -1)[:, 0]
        logits = module(embedding_NRD, self.class_CD[classes_N]).flatten()
        overlap = batch["overlap"].float()
        loss = F.binary_cross_entropy_with_logits(logits, overlap)
        right = (logits > 0) == (overlap > 0.5)
        return loss, right.sum(), torch.tensor(len(right), device=logits.device)

    def _embed(self, batch: Batch) -> Tensor:
        """Return the embeddings of crops, one an image, or of regions of whole images."""
        if "regions" not in batch:
            return self.scorer.cells(batch["crop"]).flatten(1)[:, None]
        cells_NDJJ = self.scorer.cells(batch["crop"], grid.CELLS)
        return torch.einsum("nrij,ndij->nrd", batch["regions"].to(cells_NDJJ), cells_NDJJ)
