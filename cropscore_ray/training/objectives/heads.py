"""What trainings of heads have in common: the network below stays as it is.

Shape suffixes: C classes; D channels.
"""

from typing import Any

from torch import nn

from cropscore_ray.models.heads import class_weights
from cropscore_ray.models.inference import InferenceNetwork
from cropscore_ray.training.data.images import ImageDataset

SCALE_IMAGES = 200
"""Images on which the scales of channels are measured."""


class HeadObjective:
    """What objectives of heads share; each kind adds `prepare` and `__call__`."""

    def __init__(self, dataset: ImageDataset, scorer: InferenceNetwork) -> None:
        """Take the network as it will serve the heads, so that both see the same numbers."""
        self.dataset = dataset
        self.scorer = scorer
        self.class_CD = class_weights(scorer.fc)

    def trained(self, network: nn.Module) -> nn.Module:
        """Return the heads themselves."""
        return network

    def state(self) -> Any:
        """Return nothing: scales are buffers of the heads."""
        return None

    def load(self, state: Any) -> None:
        """Take nothing."""
