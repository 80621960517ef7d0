"""Which images a worker sees in which step, read ahead while the step before is taken.

A step's images depend on (seed, step) alone: a training that was stopped goes on at any step,
and with any number of workers, which share the images of each step among them.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from cropscore_ray.config.sections import SgdConfig
from cropscore_ray.errors import ConfigError, CropscoreError, DataError
from cropscore_ray.images.ahead import made_ahead
from cropscore_ray.training.data.images import ImageDataset, Request

_AHEAD = 2  # passes that a thread has ready

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The steps of one training over one dataset, and one worker's share of them."""

    num_images: int
    batch_size: int
    """Images a step, of all workers together; whole batches only."""
    pass_size: int
    """Most images that a worker takes at once; a larger share goes through in several passes."""
    epochs: int
    seed: int
    rank: int
    num_workers: int

    @property
    def steps_an_epoch(self) -> int:
        """Steps an epoch: as many for any number of workers."""
        return self.num_images // self.batch_size

    @property
    def num_steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.steps_an_epoch

    def share(self, step: int) -> list[int]:
        """Return the images of a step that fall to this worker.

        A seeded shuffle an epoch; what does not fill a batch is left to the next epoch, since
        batch norm dislikes a last batch of a single image.
        """
        epoch, at = divmod(step, self.steps_an_epoch)
        order = _order(self.num_images, self.seed, epoch)
        batch = order[at * self.batch_size :][: self.batch_size]
        return [int(i) for i in batch[self.rank :: self.num_workers]]

    def passes(self, step: int) -> list[list[int]]:
        """Return this worker's images of a step, pass by pass.

        As few passes as can be, whose sizes differ by an image at most: to batch norm a pass of
        the one image that is left over would count as much as the others.
        """
        share = self.share(step)
        size, num_passes = len(share), math.ceil(len(share) / self.pass_size)
        return [
            share[size * i // num_passes : size * (i + 1) // num_passes] for i in range(num_passes)
        ]


@lru_cache(maxsize=2)
def _order(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch, 0x5EED)).permutation(num_images)


def make_plan(
    name: str, num_images: int, config: SgdConfig, seed: int, rank: int, num_workers: int
) -> Plan:
    """Return the plan of a training.

    Raises:
        DataError: there are fewer images than workers.
        ConfigError: a batch has fewer images than there are workers.
    """
    if num_images < num_workers:
        raise DataError(
            f"{name}: {num_images} labelled training images for {num_workers} workers",
            hint="does the manifest's training split carry classes and, for the scorer, boxes?",
        )
    batch_size = min(config.batch_size, num_images)
    if batch_size < num_workers:
        raise ConfigError(
            f"{name}: a step of {batch_size} images cannot be shared by {num_workers} workers",
            hint="raise its batch_size, or ask for fewer num_workers",
        )
    return Plan(
        num_images=num_images,
        batch_size=batch_size,
        pass_size=config.pass_size or batch_size,
        epochs=config.epochs,
        seed=seed,
        rank=rank,
        num_workers=num_workers,
    )


def _requests(dataset: ImageDataset, plan: Plan, first_step: int) -> Iterator[list[Request]]:
    """Yield what a DataLoader is to read: the passes of all steps from `first_step` on."""
    for step in range(first_step, plan.num_steps):
        epoch, at = divmod(step, plan.steps_an_epoch)
        for images in plan.passes(step):
            yield [dataset.request(i, epoch, at) for i in images]


def _collate(items: list[Any]) -> Any:
    """Return a batch of items, or the error in their place."""
    return items[0] if isinstance(items[0], CropscoreError) else default_collate(items)


class Feed:
    """The batches of a training, pass by pass, and how long the steps had to wait for them."""

    def __init__(
        self,
        dataset: ImageDataset,
        plan: Plan,
        first_step: int,
        device: torch.device,
        num_loaders: int = 0,
    ) -> None:
        """Begin to read: in so many processes, or in a thread if there are none."""
        loader = DataLoader(
            dataset,
            batch_sampler=_requests(dataset, plan, first_step),
            collate_fn=_collate,
            num_workers=num_loaders,
            pin_memory=device.type == "cuda",
        )
        self._batches = iter(loader) if num_loaders else made_ahead(iter(loader), depth=_AHEAD)
        self._device = device
        self.waited_s = 0.0

    def take(self) -> Batch:
        """Return the next pass on the device, with one class and overlap a crop or region.

        Raises:
            CropscoreError: what the dataset raised.
        """
        began_s = time.monotonic()
        batch = next(self._batches)
        self.waited_s += time.monotonic() - began_s
        if isinstance(batch, CropscoreError):
            raise batch
        return on_device(batch, self._device)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on its device, with one class and overlap a crop or region."""
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    flat = {"class_index", "overlap"} & moved.keys()
    return moved | {name: moved[name].flatten() for name in flat}


def single_images(dataset: ImageDataset, num_images: int, device: torch.device) -> Iterator[Batch]:
    """Yield about so many images, spread evenly over a dataset, each as a batch of its own."""
    for i in range(0, len(dataset), max(1, len(dataset) // num_images)):
        image = dataset[dataset.request(i, epoch=0, step=i)]
        yield on_device(default_collate([image]), device)
