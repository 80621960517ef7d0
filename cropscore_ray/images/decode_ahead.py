"""Encoded images to pixels, a group ahead of the group in use.

On a CPU Pillow decodes, in threads. On a GPU the files that its decoder takes go there as
one list, and the others come from Pillow. It knows nothing of networks.
"""

import io
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image
from torch import Tensor

from cropscore_ray.errors import ImageError
from cropscore_ray.images import decode as pillow
from cropscore_ray.images.ahead import made_ahead
from cropscore_ray.images.decode import DAMAGED, Pixels
from cropscore_ray.images.fetch import Fetched

logger = logging.getLogger(__name__)

Decoded = Pixels | Tensor | ImageError

_END_OF_JPEG = b"\xff\xd9"


def decode_ahead(
    fetched: list[Fetched], *, group: int, max_megapixels: float, device: torch.device
) -> Iterator[list[Decoded]]:
    """Yield images group by group, in order; while one is in use, the next is decoded.

    No more than that: pixels of two groups are in memory. An image that cannot be decoded is
    the ImageError that says why.
    """
    groups = [fetched[i : i + group] for i in range(0, len(fetched), group)]
    decoder = _GpuDecoder(device) if device.type == "cuda" else None
    threads = (os.cpu_count() or 1) if decoder else 1  # a CPU's cores are busy with networks
    with ThreadPoolExecutor(threads) as pool:

        def decode(some: list[Fetched]) -> list[Decoded]:
            on_gpu = decoder(some, max_megapixels) if decoder else {}
            rest = [data for i, data in enumerate(some) if i not in on_gpu]
            others = pool.map(lambda data: _decode(data, max_megapixels), rest)
            return [on_gpu[i] if i in on_gpu else next(others) for i in range(len(some))]

        yield from made_ahead(map(decode, groups))


def _decode(data: Fetched, max_megapixels: float) -> Decoded:
    if isinstance(data, ImageError):
        return data
    try:
        return pillow.decode(data, max_megapixels=max_megapixels)
    except ImageError as error:
        return error


class _GpuDecoder:
    """nvJPEG through torchvision, on a stream of its own so that networks do not wait."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, some: list[Fetched], max_megapixels: float) -> dict[int, Tensor]:
        """Return the images that the GPU decodes, by their place in the list."""
        from torchvision.io import ImageReadMode, decode_jpeg

        chosen = [i for i, data in enumerate(some) if suits_gpu(data, max_megapixels)]
        if not chosen:
            return {}
        files = [torch.frombuffer(bytearray(some[i]), dtype=torch.uint8) for i in chosen]  # type: ignore[arg-type]
        try:
            with torch.cuda.stream(self.stream):
                planes = decode_jpeg(files, mode=ImageReadMode.RGB, device=self.device)
                images = [image.permute(1, 2, 0).contiguous() for image in planes]
            self.stream.synchronize()
            for image in images:  # or its memory is given away while networks still read it
                image.record_stream(torch.cuda.default_stream(self.device))
        except RuntimeError as error:
            # One file spoils the list; Pillow says which, and what is wrong with it.
            logger.info("%d images go to Pillow: %s", len(chosen), str(error).splitlines()[0])
            return {}
        return dict(zip(chosen, images, strict=True))


def suits_gpu(data: Fetched, max_megapixels: float) -> bool:
    """Return whether nvJPEG takes a file, and takes it as Pillow would: a whole baseline RGB JPEG.

    nvJPEG makes grey of what a truncated file lacks; Pillow says so.
    """
    if isinstance(data, ImageError) or not data.rstrip(b"\x00").endswith(_END_OF_JPEG):
        return False
    try:
        with Image.open(io.BytesIO(data)) as image:
            small = image.width * image.height <= max_megapixels * 1e6
            baseline = image.format == "JPEG" and "progressive" not in image.info
            return small and baseline and image.mode == "RGB"
    except DAMAGED:  # Pillow's decoder names what is wrong
        return False
