"""Auxiliary classifiers on the inner blocks of a GoogLeNet, for training alone.

They send a gradient into the middle of a deep network (Szegedy et al. 2014, section 5), and are
thrown away afterwards: a bundle never holds them.
"""

from functools import partial

from torch import Tensor, nn
from torchvision.models.googlenet import Inception, InceptionAux

from cropscore_ray.networks import Network


class WithAuxHeads(nn.Module):
    """A network whose call gives its logits and, in training, those of its auxiliary heads."""

    def __init__(self, network: Network, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.ModuleDict()
        self._maps: dict[str, Tensor] = {}
        for name in network.aux_blocks:
            block = network.get_submodule(name)
            assert isinstance(block, Inception)
            self.heads[name] = InceptionAux(_out_channels(block), num_classes)
            block.register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, block: nn.Module, inputs: object, maps: Tensor) -> None:
        del block, inputs
        if self.training:
            self._maps[name] = maps

    def forward(self, x_N3HW: Tensor) -> list[Tensor]:
        """Return logits, (N, C) each: the network's own and then each head's."""
        logits = [self.network(x_N3HW)]
        logits += [head(self._maps.pop(name)) for name, head in self.heads.items() if self._maps]
        return logits


def _out_channels(block: Inception) -> int:
    last = (block.branch1, block.branch2[-1], block.branch3[-1], block.branch4[-1])
    return sum(one.conv.out_channels for one in last)
