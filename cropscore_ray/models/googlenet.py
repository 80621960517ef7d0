"""The GoogLeNets: torchvision's, the Inception-BN kind, and a narrow kind for small inputs.

All have one interface: `features(x_N3HW)` gives the maps before pooling, `fc` is the
linear classifier on their mean, and calling the network gives logits. Parameters keep the
names of the public weight files, so that these load as they are. Blocks and GoogLeNet are
torchvision's, number for number, written here because importing torchvision takes 2.4 seconds of
every process that starts.

Shape suffixes: N images; 3 colours; D channels; C classes; H, W sides; R regions;
J cells a side.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cropscore_ray.config.sections import NetworkConfig
from cropscore_ray.models.heads import OverlapHead

# Channels of each block: 1x1 | 3x3 reduce, 3x3 | 5x5 reduce, 5x5 | pool projection
# (Szegedy et al. 2014, table 1).
_GOOGLENET_BLOCKS = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
_NAMES = tuple(_GOOGLENET_BLOCKS)
_SMALL_BLOCKS = ("inception3a", "inception3b", "inception4a", "inception4c", "inception4e")

# Channels of each block: 1x1 | 3x3 reduce, 3x3 | double-3x3 reduce, both 3x3 | last 1x1.
_INCEPTION_BN_BLOCKS = {
    "a3": (64, 64, 64, 64, 96, 32),
    "b3": (64, 64, 96, 64, 96, 64),
    "c3": (160, 128, 160, 64, 96, 160),
    "a4": (224, 64, 96, 96, 128, 128),
    "b4": (192, 96, 128, 96, 128, 128),
    "c4": (160, 128, 160, 128, 160, 128),
    "d4": (96, 128, 192, 160, 192, 128),
    "e4": (480, 128, 192, 192, 256, 128),
    "a5": (352, 192, 320, 160, 224, 128),
    "b5": (352, 192, 320, 160, 224, 128),
}
_BN_NAMES = tuple(_INCEPTION_BN_BLOCKS)


class ConvBNReLU(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, channels: int, width: int, side: int, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, side, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps, none below 0."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """Four branches side by side, with torchvision's 3x3 in place of the paper's 5x5."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        """Take the widths of 1x1 | 3x3 reduce, 3x3 | "5x5" reduce, "5x5" | pool projection."""
        super().__init__()
        width1, reduce3, width3, reduce5, width5, projection = widths
        self.out_channels = width1 + width3 + width5 + projection
        self.branch1 = ConvBNReLU(channels, width1, 1)
        self.branch2 = nn.Sequential(
            ConvBNReLU(channels, reduce3, 1), ConvBNReLU(reduce3, width3, 3, padding=1)
        )
        self.branch3 = nn.Sequential(
            ConvBNReLU(channels, reduce5, 1), ConvBNReLU(reduce5, width5, 3, padding=1)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), ConvBNReLU(channels, projection, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches' maps side by side."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class InceptionBNBlock(nn.Module):
    """Four branches side by side; every convolution is followed by ReLU."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        """Take the widths of 1x1 | 3x3 reduce, 3x3 | double-3x3 reduce, both 3x3 | last 1x1."""
        super().__init__()
        width1, reduce3, width3, reduce33, double3, last = widths
        self.out_channels = width1 + width3 + double3 + last
        self.b1 = _branch((channels, width1, 1))
        self.b2 = _branch((channels, reduce3, 1), (reduce3, width3, 3))
        self.b3 = _branch((channels, reduce33, 1), (reduce33, double3, 3), (double3, double3, 3))
        self.b4 = _branch((channels, last, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches' maps side by side."""
        branches = []
        for branch in (self.b1, self.b2, self.b3, self.b4):
            y = x
            for convolution in branch.values():
                y = F.relu(convolution(y))
            branches.append(y)
        return torch.cat(branches, 1)


class Pool(NamedTuple):
    """Max pooling of stride 2."""

    side: int
    ceil_mode: bool


_POOL3, _POOL2 = Pool(3, ceil_mode=True), Pool(2, ceil_mode=True)
_FLOOR2 = Pool(2, ceil_mode=False)
_FIRST, *_OTHERS = (f"pre_layers.{place}" for place in (1, 4, 6, 7))
_BN_STEM: tuple[str | Pool, ...] = (_FIRST, _FLOOR2, *_OTHERS, _FLOOR2)


class Network(nn.Module):
    """What every architecture offers: maps, a linear classifier, logits."""

    fc: nn.Linear
    dropout_fraction: float = 0.0
    stride: int
    """Pixels of the input to one cell of the maps."""
    inner_steps: tuple[str | Pool, ...]
    """Names of modules, and the pooling between them, up to the last pooling."""
    last_steps: tuple[str | Pool, ...]
    """The last pooling, and what follows it."""
    num_inner: int
    """Channels of the maps before the last pooling."""
    aux_blocks: tuple[str, ...] = ()
    """Blocks that carry an auxiliary head while training from scratch."""

    pool: Callable[..., Tensor] = staticmethod(F.max_pool2d)
    """Max pooling; inference.py has one that is faster without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.overlap: OverlapHead | None = None
        """Of a scorer that has a head: what the head predicts for crops are their scores."""

    def features(self, x_N3HW: Tensor) -> Tensor:
        """Return the maps before global pooling, (N, D, h, w)."""
        return self.last(self.inner(x_N3HW))

    def inner(self, x_N3HW: Tensor) -> Tensor:
        """Return the maps before the last pooling, (N, d, 2h, 2w)."""
        return self._take(self.inner_steps, x_N3HW)

    def last(self, inner_NDHW: Tensor) -> Tensor:
        """Return the maps before global pooling from those of `inner`."""
        return self._take(self.last_steps, inner_NDHW)

    def _take(self, steps: tuple["str | Pool", ...], x: Tensor) -> Tensor:
        for step in steps:
            if isinstance(step, Pool):
                x = self.pool(x, step.side, 2, ceil_mode=step.ceil_mode)
            else:
                x = self.get_submodule(step)(x)
        return x

    def _add_blocks(
        self,
        kind: type["Inception | InceptionBNBlock"],
        channels: int,
        widths_of: Mapping[str, tuple[int, ...]],
    ) -> int:
        """Add blocks by name, one after the other; return the channels of the last one."""
        for name, widths in widths_of.items():
            block = kind(channels, widths)
            self.add_module(name, block)
            channels = block.out_channels
            if name == self.inner_steps[-1]:
                self.num_inner = channels
        return channels

    def forward(self, x_N3HW: Tensor, regions_NRJJ: Tensor | None = None) -> Tensor:
        """Return logits of the whole inputs, (N, C), or of regions of them, (N * R, C).

        Args:
            x_N3HW: normalized crops.
            regions_NRJJ: shares of J x J cells in each region's mean, as of grid.region_means.
        """
        maps = self.features(x_N3HW)
        if regions_NRJJ is None:
            embedding_ND = maps.mean((2, 3))
        else:
            cells = F.avg_pool2d(maps, maps.shape[-1] // regions_NRJJ.shape[-1])
            shares = regions_NRJJ.to(cells.dtype)
            embedding_ND = torch.einsum("nrij,ndij->nrd", shares, cells).flatten(0, 1)
        dropped = F.dropout(embedding_ND, self.dropout_fraction, self.training)
        logits: Tensor = self.fc(dropped)
        return logits


class GoogLeNet(Network):
    """torchvision's GoogLeNet without auxiliary heads: its parameter names, its 3x3 "5x5".

    Its pretrained weights want inputs of mean 0.5 and std 0.5, which torchvision hides
    in `transform_input`; here that stands in the bundle's preprocessing.
    """

    dropout_fraction = 0.2
    stride = 32
    aux_blocks = ("inception4a", "inception4d")
    inner_steps = ("conv1", _POOL3, "conv2", "conv3", _POOL3, *_NAMES[:2], _POOL3, *_NAMES[2:-2])
    last_steps = (_POOL2, *_NAMES[-2:])

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = ConvBNReLU(3, 64, 7, stride=2, padding=3)
        self.conv2 = ConvBNReLU(64, 64, 1)
        self.conv3 = ConvBNReLU(64, 192, 3, padding=1)
        channels = self._add_blocks(Inception, 192, _GOOGLENET_BLOCKS)
        self.fc = nn.Linear(channels, num_classes)


class SmallGoogLeNet(Network):
    """Five of GoogLeNet's blocks, narrowed, behind a stem of stride 4, for 64-pixel crops."""

    stride = 8
    aux_blocks = ("inception4a",)
    inner_steps = ("conv1", "conv2", _POOL3, *_SMALL_BLOCKS[:2])
    last_steps = (_POOL3, *_SMALL_BLOCKS[2:])

    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        stem = _scaled((32, 64), width)
        self.conv1 = ConvBNReLU(3, stem[0], 5, stride=2, padding=2)
        self.conv2 = ConvBNReLU(stem[0], stem[1], 3, padding=1)
        blocks = {name: _scaled(_GOOGLENET_BLOCKS[name], width) for name in _SMALL_BLOCKS}
        channels = self._add_blocks(Inception, stem[1], blocks)
        self.fc = nn.Linear(channels, num_classes)


class InceptionBN(Network):
    """A GoogLeNet of the Inception-BN kind with its batch norm folded into the convolutions."""

    stride = 32
    inner_steps = (*_BN_STEM, *_BN_NAMES[:3], _FLOOR2, *_BN_NAMES[3:-2])
    last_steps = (_FLOOR2, *_BN_NAMES[-2:])

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # The numbers are places in the original sequence; of the others `inner` takes the pools.
        self.pre_layers = nn.ModuleDict(
            {
                "1": nn.Conv2d(3, 64, 7, stride=2, padding=3),
                "4": nn.Conv2d(64, 64, 1),
                "6": nn.Conv2d(64, 192, 3, padding=1),
                "7": nn.ReLU(),
            }
        )
        channels = self._add_blocks(InceptionBNBlock, 192, _INCEPTION_BN_BLOCKS)
        self.fc = nn.Linear(channels, num_classes)


def _branch(*convolutions: tuple[int, int, int]) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            f"conv{i}": nn.Conv2d(channels, width, side, padding=side // 2)
            for i, (channels, width, side) in enumerate(convolutions, 1)
        }
    )


def _scaled(widths: tuple[int, ...], factor: float) -> tuple[int, ...]:
    return tuple(max(4, round(width * factor / 4) * 4) for width in widths)


def make_network(config: NetworkConfig, num_classes: int) -> Network:
    """Return a network with random weights (He), drawn from torch's global generator."""
    network: Network
    if config.architecture == "googlenet":
        network = GoogLeNet(num_classes)
    elif config.architecture == "inception-bn":
        network = InceptionBN(num_classes)
    else:
        network = SmallGoogLeNet(num_classes, config.width)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
