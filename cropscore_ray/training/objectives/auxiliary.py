"""Auxiliary classifiers on the inner blocks of a GoogLeNet, for training alone.

They send a gradient into the middle of a deep network (Szegedy et al. 2014, section 5), and are
thrown away afterwards: a bundle never holds them.
"""

from functools import partial

from torch import Tensor, nn

from cropscore_ray.models.googlenet import Inception, Network


class WithAuxHeads(nn.Module):
    """A network whose call gives its logits and, in training, those of its auxiliary heads."""

    def __init__(self, network: Network, num_classes: int) -> None:
        # Imported where it is used: it takes seconds of every process that starts.
        from torchvision.models.googlenet import InceptionAux

        super().__init__()
        self.network = network
        self.heads = nn.ModuleDict()
        self._maps: dict[str, Tensor] = {}
        for name in network.aux_blocks:
            block = network.get_submodule(name)
            assert isinstance(block, Inception)
            self.heads[name] = InceptionAux(block.out_channels, num_classes)
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
