"""What a machine allows: its arithmetic, its memory, and the layers of a network."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cropscore_ray.bench.measuring import Measured
from cropscore_ray.models.googlenet import Network


class _Layers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the multiply-adds and the elements read and written of each convolution and pool."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        first = out[0] if isinstance(out, tuple) else out
        if name == "convolution":
            weight = args[1]
            macs = first.numel() * weight.numel() // weight.shape[0]
            self.layers.append((macs, args[0].numel() + first.numel()))
        elif name.startswith(("max_pool2d", "mean")):
            self.layers.append((0, args[0].numel() + first.numel()))
        return out


def layers(network: Network, side: int) -> list[tuple[int, int]]:
    """Return each layer's multiply-adds, and its elements in and out, for one crop.

    Bias and ReLU are taken as part of their convolution, weights as resident in caches.
    """
    shadow = network.to("meta")
    counted = _Layers()
    with counted, torch.no_grad():
        shadow(torch.empty(1, 3, side, side, device="meta"))
    return counted.layers


def roofline(
    layers: list[tuple[int, int]], flops_per_s: float, bytes_per_s: float, item_bytes: int
) -> float:
    """Return the crops per second at which every layer meets one of the machine's two limits."""
    seconds = [
        max(2 * macs / flops_per_s, size * item_bytes / bytes_per_s) for macs, size in layers
    ]
    return 1 / sum(seconds)


def matrix_rate(device: torch.device, dtype: torch.dtype, rounds: int) -> Measured:
    """Measure a large matrix product, in operations per second."""
    side = 8192 if device.type == "cuda" else 2048
    square = torch.randn(side, side, device=device).to(dtype)
    seconds = _timed(lambda: square @ square, device, rounds)
    rates = [2.0 * side**3 / each for each in seconds]
    return Measured(name="matrix product", unit="FLOP/s", values=rates)


def copy_rate(device: torch.device, rounds: int) -> Measured:
    """Measure a large copy within the device's memory, in bytes read and written per second."""
    size = 2**30 if device.type == "cuda" else 2**28
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _timed(lambda: target.copy_(source), device, rounds)
    return Measured(name="copy", unit="B/s", values=[2.0 * size / each for each in seconds])


def _timed(work: Callable[[], Any], device: torch.device, rounds: int) -> list[float]:
    seconds = []
    for _ in range(rounds + 1):
        began_s = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began_s)
    return seconds[1:]
