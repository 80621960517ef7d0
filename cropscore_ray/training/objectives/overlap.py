"""Training an overlap head on squares of the grid, while the network below it stays as it is.

Shape suffixes: N images; R squares of an image; D channels; J = 7 cells a side.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cropscore_ray import grid
from cropscore_ray.models.heads import OverlapHead
from cropscore_ray.training.data.batches import Batch, single_images
from cropscore_ray.training.objectives.heads import SCALE_IMAGES, HeadObjective


class OverlapObjective(HeadObjective):
    """The loss of a head: binary cross-entropy with the overlap of each square."""

    def prepare(self, network: OverlapHead, device: torch.device) -> None:
        """Scale each channel of the embedding to unit size, as measured on some images."""
        squares = [
            self._embed(batch).square().mean((0, 1))
            for batch in single_images(self.dataset, SCALE_IMAGES, device)
        ]
        size_D = torch.stack(squares).mean(0).sqrt()
        network.read.scale.copy_(1 / size_D.clamp_min(1e-2))

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
