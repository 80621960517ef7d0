"""Trainings of a small network on a few images, and what they leave behind."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cropscore_ray.config.sections import (
    ClassifierConfig,
    NetworkConfig,
    PreprocessConfig,
    ScorerConfig,
    SgdConfig,
)
from cropscore_ray.models.googlenet import make_network
from cropscore_ray.training.data.crops import (
    CropDataset,
    Sampler,
    classifier_sampler,
    scorer_sampler,
)
from cropscore_ray.training.data.images import ImageDataset, LabelledImages
from cropscore_ray.training.loop import NetworkTask, State
from cropscore_ray.training.objectives.crops import CropObjective

NETWORK = NetworkConfig(architecture="googlenet-small", width=0.125)
NUM_CLASSES = 3
CLASSES = classifier_sampler(ClassifierConfig(min_area_fraction=0.5))
SQUARES = scorer_sampler(ScorerConfig(grid_fraction=0.5))


def a_task(
    images: LabelledImages,
    *,
    name: str = "classifier-0",
    epochs: int = 3,
    batch_size: int = 4,
    sampler: Sampler = CLASSES,
    seed: int = 1,
) -> NetworkTask:
    preprocess = PreprocessConfig(input_px=32, frame_px=36)
    dataset = CropDataset(images, sampler, preprocess, seed)
    return NetworkTask(
        name=name,
        make=partial(make_network, NETWORK, NUM_CLASSES),
        dataset=dataset,
        objective=objective(dataset, learns_overlap=sampler is SQUARES),
        config=SgdConfig(epochs=epochs, batch_size=batch_size, learning_rate=0.05),
        seed=seed,
    )


def objective(dataset: ImageDataset, **settings: Any) -> CropObjective:
    return CropObjective(dataset, label_smoothing=0.1, **settings)


class StoppedError(Exception):
    """What a lost node looks like to the loop."""


@dataclass
class Keeper:
    """Keeps every checkpoint, and stops the training after so many."""

    stop_after: int | None = None
    states: list[State] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, metrics: dict[str, Any], state: Callable[[], State]) -> None:
        self.states.append(copy.deepcopy(state()))
        self.metrics.append(metrics)
        if len(self.states) == self.stop_after:
            raise StoppedError


def weights(finished: dict[str, State], name: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = finished[name]["weights"]
    return found


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
