"""Inception's blocks: those of GoogLeNet with batch norm, and those of the Inception-BN kind.

Parameters keep the names of the public weight files. The first kind is torchvision's, number for
number, written here because importing torchvision takes 2.4 seconds of every process that starts.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


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
        one, reduce3, three, reduce5, five, projection = widths
        self.out_channels = one + three + five + projection
        self.branch1 = ConvBNReLU(channels, one, 1)
        self.branch2 = nn.Sequential(
            ConvBNReLU(channels, reduce3, 1), ConvBNReLU(reduce3, three, 3, padding=1)
        )
        self.branch3 = nn.Sequential(
            ConvBNReLU(channels, reduce5, 1), ConvBNReLU(reduce5, five, 3, padding=1)
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
        one, reduce3, three, reduce33, double3, last = widths
        self.out_channels = one + three + double3 + last
        self.b1 = _branch((channels, one, 1))
        self.b2 = _branch((channels, reduce3, 1), (reduce3, three, 3))
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


def _branch(*convolutions: tuple[int, int, int]) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            f"conv{i}": nn.Conv2d(channels, width, side, padding=side // 2)
            for i, (channels, width, side) in enumerate(convolutions, 1)
        }
    )
