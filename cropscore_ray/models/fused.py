"""Networks rebuilt for scoring: the same numbers from fewer passes over memory.

Batch norm is folded, convolutions that read the same input are merged, and ReLU and pooling
write nothing that nobody reads. What each step brought: docs/measurements/performance.md.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cropscore_ray.models.googlenet import ConvBNReLU, Inception, InceptionBNBlock, Network


def for_inference(network: Network, device: torch.device, dtype: torch.dtype) -> Network:
    """Return a copy for scoring: batch norm folded, siblings merged, channels last, in `dtype`.

    Exact up to rounding. The linear classifier and the overlap head stay in float32: they
    are little work, and their scores are the feature.
    """
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    for name, block in list(copied.named_modules()):
        if isinstance(block, ConvBNReLU):
            copied.set_submodule(name, ConvReLU(fuse_conv_bn_eval(block.conv, block.bn)))
    for name, block in list(copied.named_modules()):
        if isinstance(block, Inception):
            copied.set_submodule(name, _merge_inception(block))
        elif isinstance(block, InceptionBNBlock):
            copied.set_submodule(name, _merge_inception_bn(block))
    copied.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    copied.pool = max_pool
    copied.fc = copy.deepcopy(network.fc).requires_grad_(False).to(device, torch.float32)
    if network.overlap is not None:
        copied.overlap = copy.deepcopy(network.overlap).requires_grad_(False).eval().to(device)
    return copied


def max_pool(
    x: Tensor, side: int, stride: int, padding: int = 0, *, ceil_mode: bool = False
) -> Tensor:
    """Return what F.max_pool2d does, to the bit.

    On a CPU it is the maxima of shifted rows, then of shifted columns: fewer comparisons, and
    none of the 8-byte indices that torch writes beside each result.
    """
    if x.is_cuda:
        return F.max_pool2d(x, side, stride, padding, ceil_mode=ceil_mode)
    for dim in (2, 3):
        x = _max_along(x, dim, side, stride, padding, ceil_mode)
    return x


def _max_along(
    x: Tensor, dim: int, side: int, stride: int, padding: int, ceil_mode: bool
) -> Tensor:
    length = x.shape[dim]
    rest = length + 2 * padding - side
    num = (math.ceil(rest / stride) if ceil_mode else rest // stride) + 1
    if (num - 1) * stride >= length + padding:
        num -= 1  # a window must begin in the input or in the padding before it
    shifted = []  # first output, and the input's every stride-th line that outputs meet there
    for offset in range(-padding, side - padding):
        first = max(0, math.ceil(-offset / stride))
        last = min(num - 1, (length - 1 - offset) // stride)
        lines: list[slice] = [slice(None)] * 4
        lines[dim] = slice(offset + first * stride, offset + last * stride + 1, stride)
        shifted.append((first, x[tuple(lines)]))
    # Those that reach all outputs come first: two of them make the result without a copy.
    shifted.sort(key=lambda item: item[1].shape[dim] < num)
    (_, whole), (_, second), *others = shifted
    assert whole.shape[dim] == num, "some line of each window lies in the input"
    if second.shape[dim] == num:
        out = torch.maximum(whole, second)
    else:
        out, others = whole.clone(), shifted[1:]
    for first, piece in others:
        part = out.narrow(dim, first, piece.shape[dim])
        torch.maximum(part, piece, out=part)
    return out


class ConvReLU(nn.Module):
    """A convolution with its ReLU; on a CPU one operation, so that the maps are written once."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps."""
        conv = self.conv
        if x.device.type != "cpu" or not self.has_onednn:
            return F.relu(conv(x), inplace=True)
        # What torch.compile makes of the two on a CPU; here without a compiler.
        maps: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, conv.weight, conv.bias, conv.padding, conv.stride, [1, 1], 1, "relu", [], ""
        )
        return maps


class MergedBlock(nn.Module):
    """An inception block whose 1x1 convolutions on the same input are one convolution.

    It reads its input once, and thin branches of 16 to 48 channels, which fill no matrix
    tile, ride along with wide ones.
    """

    def __init__(self, branches: list[list[nn.Conv2d]], pooled: nn.Conv2d | None) -> None:
        """Merge the first convolutions of branches; `pooled` follows a 3x3 max pool."""
        super().__init__()
        self.first = ConvReLU(_concatenated([branch[0] for branch in branches]))
        self.widths = [branch[0].out_channels for branch in branches]
        self.rests = nn.ModuleList(nn.Sequential(*map(ConvReLU, rest)) for _, *rest in branches)
        self.pooled = ConvReLU(pooled) if pooled is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches' maps side by side."""
        parts = torch.split(self.first(x), self.widths, 1)
        outputs = [rest(part) for part, rest in zip(parts, self.rests, strict=True)]
        if self.pooled is not None:
            outputs.append(self.pooled(max_pool(x, 3, 1, 1)))
        return torch.cat(outputs, 1)


def _merge_inception(block: Inception) -> MergedBlock:
    branches: list[Any] = [[block.branch1], block.branch2, block.branch3, block.branch4[1:]]
    *convolutions, [pooled] = [[layer.conv for layer in branch] for branch in branches]
    return MergedBlock(convolutions, pooled)


def _merge_inception_bn(block: InceptionBNBlock) -> MergedBlock:
    branches = (block.b1, block.b2, block.b3, block.b4)
    return MergedBlock([list(branch.values()) for branch in branches], None)  # type: ignore[arg-type]


def _concatenated(convolutions: list[nn.Conv2d]) -> nn.Conv2d:
    """Return one 1x1 convolution with the outputs of several."""
    channels = sum(conv.out_channels for conv in convolutions)
    merged = nn.Conv2d(convolutions[0].in_channels, channels, 1).requires_grad_(False)
    merged.weight.copy_(torch.cat([conv.weight for conv in convolutions]))
    biases = [conv.bias for conv in convolutions]
    assert merged.bias is not None
    merged.bias.copy_(torch.cat(biases))  # type: ignore[arg-type]
    return merged
