"""Training images: read by URI when they are asked for, and never the same way twice.

What is drawn from an image depends on (seed, epoch, image) alone, not on batch size, workers
or order.

Shape suffixes: M true boxes.
"""

import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch.utils.data import Dataset

from cropscore_ray.config.sections import PreprocessConfig
from cropscore_ray.errors import CropscoreError, DataError, ImageError
from cropscore_ray.geometry import Boxes, sides_px
from cropscore_ray.images import fetch
from cropscore_ray.images.decode import Pixels, decode

logger = logging.getLogger(__name__)

_ATTEMPTS = 100  # an image set with this many unreadable images in a row is no image set

Box = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Texts(Sequence[str]):
    """A list of texts in one piece of memory.

    Of a plain list, a process that was forked would soon own a copy: to look at an object is to
    count that, in the object.
    """

    values: pa.StringArray

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: Any) -> Any:
        return self.values[int(i)].as_py()


@dataclass(frozen=True, slots=True)
class Ragged(Sequence[Boxes]):
    """A list of each image's boxes in one piece of memory; why, see Texts."""

    flat_B4: Boxes  # noqa: N815
    ends: NDArray[np.int64]
    """Where each image's boxes end in the flat ones."""

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: Any) -> Any:
        if i >= len(self):
            raise IndexError(i)
        return self.flat_B4[self.ends[i - 1] if i else 0 : self.ends[i]]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledImages:
    """Images with their classes and true boxes, as columns."""

    uris: Sequence[str]
    classes: NDArray[np.int64]
    boxes: Sequence[Boxes]
    """Pixels of the original image, (M, 4); empty where there are none."""

    def __len__(self) -> int:
        return len(self.uris)

    def take(self, index: NDArray[np.int64]) -> "LabelledImages":
        """Return some of the images."""
        return LabelledImages(
            uris=[self.uris[i] for i in index],
            classes=self.classes[index],
            boxes=[self.boxes[i] for i in index],
        )


@dataclass(frozen=True, slots=True)
class Request:
    """What a dataset is asked for: an image in an epoch, and how large (pyramid mode)."""

    image: int
    epoch: int
    level: int = 0


class ImageDataset(Dataset[dict[str, Any]]):
    """Something of each image an epoch; an unreadable image is replaced by the next one.

    Not so where a storage fails, after the retries of `fetch`: then an outage would silently change
    what is learnt.
    """

    crops_an_image = 1
    """What of an image is judged in a step: crops, or regions of its maps."""

    def __init__(self, data: LabelledImages, preprocess: PreprocessConfig, seed: int) -> None:
        self.data = data
        self.preprocess = preprocess
        self.seed = seed

    def __len__(self) -> int:
        return len(self.data)

    def request(self, image: int, epoch: int, step: int) -> Request:
        """Return what to ask this dataset for, to get an image in a step of an epoch."""
        del step
        return Request(image, epoch)

    def __getitem__(self, request: Request) -> dict[str, Any]:
        """Return what was drawn, and num_failed, how many unreadable images were passed over.

        Raises:
            StorageError: the storage does not answer.
            DataError: no image in reach can be read.
        """
        for num_failed in range(_ATTEMPTS):
            at = (request.image + num_failed) % len(self)
            try:
                sample = self._sample(replace(request, image=at))
                return {**sample, "num_failed": num_failed}
            except ImageError as error:
                fetch.require_answer(error)
                logger.warning("left out of training: %s (%s)", error, error.status)
        raise DataError(
            f"{_ATTEMPTS} training images in a row cannot be read, the last: {self.data.uris[at]}",
            hint="check the storage's settings and the manifest's image_uri column",
        )

    def __getitems__(self, requests: list[Request]) -> list[Any]:
        """Return a pass's items, or an error alone.

        Out of a DataLoader's process PyTorch raises it with a traceback for a message, without the
        hint. No image after it is asked for: of a storage that is away each would take as long as
        the retries do, minutes.
        """
        items = []
        for request in requests:
            try:
                items.append(self[request])
            except CropscoreError as error:
                return [error]
        return items

    @abstractmethod
    def _sample(self, request: Request) -> dict[str, Any]:
        """Return what is drawn from an image; ImageError if it cannot be read."""

    def _read(self, request: Request) -> tuple[np.random.Generator, Pixels, Boxes]:
        """Return an image's own generator in its epoch, its pixels and its unit boxes."""
        rng = np.random.default_rng((self.seed, request.epoch, request.image))
        pixels = decode(fetch.fetch_image(self.data.uris[request.image]))
        return rng, pixels, self.data.boxes[request.image] / sides_px(pixels.shape)


class WholeImageDataset(ImageDataset):
    """Images whose sides are whole cells of a network's maps."""

    def __init__(
        self,
        data: LabelledImages,
        config: Any,
        preprocess: PreprocessConfig,
        seed: int,
        stride: int,
    ) -> None:
        """Take the settings, and the pixels of the network's input to a map cell."""
        super().__init__(data, preprocess, seed)
        self.config = config
        self.stride = stride


def at_least_one_pixel(box: Box, width_px: int, height_px: int) -> Box:
    """Return the box moved and widened so that it covers a pixel of the image."""
    left, top = min(box[0], width_px - 1.0), min(box[1], height_px - 1.0)
    return np.array([left, top, max(box[2], left + 1.0), max(box[3], top + 1.0)])
