"""Small heads on a network's maps or embeddings, read by the network's own weights of a class.

Shape suffixes: N images with a class each; C classes; S crops or squares; D channels; W channels
of a head; V cells; h, w a map's sides.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class ByClass(nn.Module):
    """A 1x1 convolution whose weights are the same for all classes, plus a part for each.

    A class's part is one matrix times its weights in the network, channel by channel.
    """

    def __init__(self, channels: int, width: int, *, by_class: bool = True) -> None:
        super().__init__()
        self.same = nn.Linear(channels, width)
        self.by_class = nn.Linear(channels, width, bias=False) if by_class else None
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(channels))

    def forward(self, maps_NDhw: Tensor, class_ND: Tensor) -> Tensor:
        """Return (N, W, h, w); `class_ND` are `class_weights` of each image's class."""
        weight = self.same.weight
        if self.by_class is not None:
            weight = weight + self.by_class.weight * class_ND[:, None]
        x_NDV = F.dropout1d(maps_NDhw.flatten(2), 0.2, self.training)
        y_NWV = (weight * self.scale).to(x_NDV.dtype) @ x_NDV
        y_NWV = y_NWV + self.same.bias[:, None]
        return y_NWV.view(*y_NWV.shape[:2], *maps_NDhw.shape[2:])


class OverlapHead(nn.Module):
    """From embeddings of crops and a class to how far each crop overlaps an object of it.

    A class's own score depends little on that: it is as high where half of the object is in sight,
    or where much else is. An embedding holds more than the score reads out of it.
    """

    def __init__(self, channels: int, width: int, *, dropout: float = 0.3) -> None:
        """Take the embedding's channels and the head's own."""
        super().__init__()
        self.dropout = dropout
        self.read = ByClass(channels, width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)

    def set_scale(self, name: str, scale_D: Tensor) -> None:
        """Set what a reader multiplies its channels with."""
        getattr(self, name).scale.copy_(scale_D)

    def forward(self, embedding_NSD: Tensor, class_ND: Tensor) -> Tensor:
        """Return logits of overlaps, (N, S) float32; `class_ND` as `ByClass` takes it."""
        x_NWS1 = self.read(embedding_NSD.mT[..., None], class_ND)
        x_NSW = F.dropout(F.relu(x_NWS1[..., 0].mT), self.dropout, self.training)
        x_NSW = x_NSW + F.dropout(F.relu(self.hidden(x_NSW)), self.dropout, self.training)
        logits: Tensor = self.out(x_NSW)[..., 0].float()
        return logits


def class_weights(fc: nn.Linear) -> Tensor:
    """Return a network's weights of each class, (C, D), scaled to unit spread."""
    weight = fc.weight.detach().float()
    return weight / weight.std()
