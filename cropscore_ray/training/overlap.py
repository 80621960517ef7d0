"""Training an overlap head on squares of the grid, while the network below it stays as it is.

Shape suffixes: N images; R squares of an image; D channels; J = 7 cells a side.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import default_collate

from cropscore_ray import grid
from cropscore_ray.class_heads import OverlapHead, class_weights
from cropscore_ray.inference import InferenceNetwork
from cropscore_ray.training.batches import Batch, on_device
from cropscore_ray.training.dataset import ImageDataset

_SCALE_IMAGES = 200


class OverlapObjective:
    """The loss of a head: binary cross-entropy with the overlap of each square."""

    def __init__(self, dataset: ImageDataset, network: InferenceNetwork) -> None:
        """Take squares with their overlaps, and the network as it will serve the head."""
        self.dataset = dataset
        self.network = network
        self.class_CD = class_weights(network.fc)

    def trained(self, network: OverlapHead) -> nn.Module:
        """Return the head itself."""
        return network

    def prepare(self, network: OverlapHead, device: torch.device) -> None:
        """Scale each channel of the embedding to unit size, as measured on some images."""
        squares = []
        for i in range(0, len(self.dataset), max(1, len(self.dataset) // _SCALE_IMAGES)):
            one = self.dataset[self.dataset.request(i, epoch=0, step=i)]
            embedding_NRD = self._embed(on_device(default_collate([one]), device))
            squares.append(embedding_NRD.square().mean((0, 1)))
        size_D = torch.stack(squares).mean(0).sqrt()
        network.read.scale.copy_(1 / size_D.clamp_min(1e-2))

    def state(self) -> Any:
        """Return nothing: the scale is a buffer of the head."""
        return None

    def load(self, state: Any) -> None:
        """Take nothing."""

    def __call__(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return a pass's mean loss, and of how many squares, of all, half is told right.

        A square counts as told right if its overlap is above one half and said to be, or neither.
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
            return self.network.cells(batch["crop"]).flatten(1)[:, None]
        cells_NDJJ = self.network.cells(batch["crop"], grid.CELLS)
        return torch.einsum("nrij,ndij->nrd", batch["regions"].to(cells_NDJJ), cells_NDJJ)
