"""A network on one device, run on uint8 crops in passes as large as fit there.

On a CPU passes go side by side, one core each; on a GPU they are compiled for constant
shapes. It knows nothing of images, grids or files.

Shape suffixes: N crops; S their side; D channels; J cells a side.
"""

import copy
import logging
import math
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cropscore_ray.config.sections import PreprocessConfig
from cropscore_ray.images.crop import Crops, colour_lines, scaled
from cropscore_ray.models.fused import ConvReLU, MergedBlock, for_inference
from cropscore_ray.models.googlenet import Network

logger = logging.getLogger(__name__)

Work = TypeVar("Work")
Result = TypeVar("Result")

# A core's batch on a CPU: its largest activation stays below 12 MiB. Larger ones outgrow the
# caches, and glibc gives tensors of 32 MiB and more fresh pages every time. Measured on two
# cores, torchvision's GoogLeNet in bf16, crops/s at 4, 7, 14, 28 a core: 195, 204, 206, 121.
_CPU_ACTIVATION_BYTES = 12 * 2**20
# Of the free memory; the rest is for crops, workspaces and fragmentation.
_GPU_SHARE = 0.5


class InferenceNetwork:
    """A trained network on one device, ready to score."""

    def __init__(
        self,
        network: Network,
        preprocess: PreprocessConfig,
        device: torch.device,
        dtype: torch.dtype,
        *,
        largest_batch: int,
    ) -> None:
        """Take a copy of the network; `largest_batch` is the most crops worth a pass."""
        self.device, self.dtype = device, dtype
        self.preprocess = preprocess
        self.network = for_inference(network, device, dtype)
        self.fc = self.network.fc
        self._num_cores = torch.get_num_threads()
        self._cores = one_thread_each(self._num_cores) if device.type == "cpu" else None
        self.batch = self._find_batch(largest_batch)
        self._forward = self.compiled(self._cells)
        self._largest_of_side: dict[int, int] = {}
        self._lines_of_side: dict[int, tuple[Tensor, Tensor]] = {}

    def compiled(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a function compiled for constant shapes on a GPU, as it is on a CPU.

        A GPU captures each shape as a CUDA graph. On a CPU a compiler brings 3 % and costs 10
        to 20 seconds a shape, and a machine may not have one (docs/measurements/performance.md).
        """
        if self.device.type != "cuda":
            return function
        compiled: Callable[..., Tensor] = torch.compile(
            function, mode="max-autotune", dynamic=False
        )
        return compiled

    def cells(
        self, crops: Tensor | Crops, cells: int | None = 1, *, with_inner: bool = False
    ) -> Tensor:
        """Return the mean maps of J x J cells of each crop, (N, D, J, J) float32.

        Args:
            crops: uint8 (N, S, S, 3) on the network's device, or what gives them in slices.
            cells: J; the maps' sides are its multiples. None: the maps as they are.
            with_inner: whether channels of the maps before the last pooling follow.
        """
        side = crops.side if isinstance(crops, Crops) else crops.shape[1]
        while True:
            run = partial(self._pass, crops, cells, with_inner, self._lines(side))
            try:
                return torch.cat(self.each(run, self._passes(crops, side)))
            except RuntimeError as error:
                self._halve(error)

    def each(self, work: Callable[[Work], Result], pieces: Iterable[Work]) -> list[Result]:
        """Return what the pieces of work give, done on all cores of a CPU, or queued on a GPU."""
        return list(self._cores.map(work, pieces) if self._cores else map(work, pieces))

    @torch.inference_mode()
    def _pass(
        self,
        crops: Tensor | Crops,
        cells: int | None,
        with_inner: bool,
        lines: tuple[Tensor, Tensor],
        batch: slice,
    ) -> Tensor:
        crops_NSS3 = crops[batch].to(self.device)
        if self.device.type != "cuda":
            return self._forward(crops_NSS3, lines, cells, with_inner)
        # A copy, since a CUDA graph writes its next results to the same place.
        maps = self._forward(padded(crops_NSS3, batch.stop - batch.start), lines, cells, with_inner)
        return maps[: len(crops_NSS3)].clone()

    def _cells(
        self,
        crops_NSS3: Tensor,
        lines: tuple[Tensor, Tensor],
        cells: int | None,
        with_inner: bool = False,
    ) -> Tensor:
        x = scaled(crops_NSS3, *lines, self.dtype)
        if not with_inner:
            return _means(self.network.features(x), cells)
        inner = self.network.inner(x)
        return torch.cat([_means(self.network.last(inner), cells), _means(inner, cells)], 1)

    def _lines(self, side: int) -> tuple[Tensor, Tensor]:
        """Return what normalizes crops of a side; made once, outside what is compiled."""
        if side not in self._lines_of_side:
            self._lines_of_side[side] = colour_lines(self.preprocess, side, self.device)
        return self._lines_of_side[side]

    def _passes(self, crops: Tensor | Crops, side: int) -> list[slice]:
        """Return which crops go through the network together.

        At most as many as cost what `batch` ordinary ones do. On a CPU no pass holds crops of
        two images, so that an image's scores are the same bits whatever its neighbours; and
        passes are a little smaller where that lets all cores be done at once.
        """
        most = max(1, self.batch * self.preprocess.input_px**2 // side**2)
        if self.device.type == "cuda":
            # The largest group that came is the constant shape; smaller ones are padded to it.
            self._largest_of_side[side] = max(len(crops), self._largest_of_side.get(side, 0))
            batch = min(most, self._largest_of_side[side])
            return [slice(at, at + batch) for at in range(0, len(crops), batch)]
        of_image = crops.per_image if isinstance(crops, Crops) else len(crops)
        rounds = math.ceil(of_image / (most * self._num_cores))
        batch = math.ceil(of_image / (rounds * self._num_cores))
        return [
            slice(at, min(at + batch, first + of_image))
            for first in range(0, len(crops), of_image)
            for at in range(first, first + of_image, batch)
        ]

    def _find_batch(self, largest: int) -> int:
        """Return the largest batch that fits: on a GPU its memory, on a CPU a core's caches."""
        most, total = activation_bytes(self.network, self.preprocess.input_px, self.dtype)
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            fitting = int(free * _GPU_SHARE / total)
        else:
            fitting = _CPU_ACTIVATION_BYTES // most
        batch = max(1, min(largest, fitting))
        logger.info(
            "%s: passes of %d crops, %s on %s",
            type(self.network).__name__,
            batch,
            str(self.dtype).removeprefix("torch."),
            self.device if self._cores is None else f"each of {self._num_cores} cores",
        )
        return batch

    def _halve(self, error: RuntimeError) -> None:
        """Go on with half the batch if memory ran out; else raise the error again."""
        if not is_out_of_memory(error) or self.batch == 1:
            raise error
        self.batch //= 2
        logger.warning("out of memory on %s: passes of %d crops now", self.device, self.batch)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether memory ran out; the CPU's allocator has no exception of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _means(maps: Tensor, cells: int | None) -> Tensor:
    maps = maps.float()
    return maps if cells is None else F.avg_pool2d(maps, maps.shape[-1] // cells)


@cache
def one_thread_each(number: int) -> ThreadPoolExecutor:
    """Return threads in which torch computes on one core each.

    Passes that run side by side, each on its own core from pixels to features, wait for each
    other less than one pass does that is spread over all cores at every layer.
    """
    all_there = threading.Barrier(number)

    def begin() -> None:
        torch.set_num_threads(1)  # of this thread, and of threads to come
        all_there.wait()

    cores = ThreadPoolExecutor(number, thread_name_prefix="core", initializer=begin)
    list(cores.map(abs, range(number)))
    torch.set_num_threads(number)  # of others as before
    return cores


def padded(crops_NSS3: Tensor, batch: int) -> Tensor:
    """Return crops with black ones behind them, so that a last batch has the usual shape."""
    missing = batch - len(crops_NSS3)
    return F.pad(crops_NSS3, [0, 0, 0, 0, 0, 0, 0, missing]) if missing else crops_NSS3


def best_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the processor multiplies it natively, else float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    # Answers for AVX512-BF16 and AMX; emulated bf16 would be slower than float32.
    native = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()  # type: ignore[no-untyped-call]
    return torch.bfloat16 if native else torch.float32


def activation_bytes(network: Network, side: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return the bytes of the largest activation of one crop, and of all of them together.

    Counted by running the network on no data (torch's meta device).
    """
    sizes: list[int] = []

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        sizes.append(output.numel() * dtype.itemsize)

    shadow = copy.deepcopy(network).to("meta")
    for layer in shadow.modules():
        if isinstance(layer, nn.Conv2d | ConvReLU | MergedBlock):
            layer.register_forward_hook(count)
    shadow.features(torch.empty(1, 3, side, side, dtype=dtype, device="meta"))
    return max(sizes), sum(sizes)
