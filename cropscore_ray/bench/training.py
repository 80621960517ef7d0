"""Training steps on Ray workers: what a second worker brings, and what checkpoints cost."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cropscore_ray.bench.measuring import Measured
from cropscore_ray.clusters import resources, session
from cropscore_ray.config.sections import ClassifierConfig, NetworkConfig, PreprocessConfig
from cropscore_ray.datasets.drawn import CLASS_NAMES, draw_image
from cropscore_ray.errors import ConfigError
from cropscore_ray.models.googlenet import make_network
from cropscore_ray.training import on_ray
from cropscore_ray.training.data.crops import CropDataset, classifier_sampler
from cropscore_ray.training.data.images import LabelledImages
from cropscore_ray.training.loop import NetworkTask, State, Worker, train_networks
from cropscore_ray.training.objectives.crops import CropObjective

_SEED = 14
_NUM_CLASSES = 1000  # as many as ILSVRC's, so that checkpoints have their true size
_EPOCHS = {"warm-up": (1,), "without": (2, 5), "with checkpoints": (3, 4)}
"""Epochs of each kind, in one training: another training may find a slower machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How much work is measured."""

    input_px: int = 112
    """A quarter of the usual pixels: a step on one core takes about a second."""
    batch: int = 32
    steps: int
    """Of an epoch; some epochs have a checkpoint, in the middle."""

    @property
    def num_images(self) -> int:
        """Images an epoch."""
        return self.batch * self.steps


WORKERS = {"one worker": 1, "two workers": 2}


def draw_images(folder: Path, num_images: int) -> LabelledImages:
    """Draw images into a folder of this machine."""
    uris, boxes = [], []
    classes = np.arange(num_images) % len(CLASS_NAMES)
    for i, class_index in enumerate(classes):
        image, drawn = draw_image(np.random.default_rng((_SEED, i)), int(class_index))
        image.save(folder / f"{i}.jpg")
        uris.append(str(folder / f"{i}.jpg"))
        boxes.append(np.array(drawn, np.float64))
    return LabelledImages(uris=uris, classes=classes, boxes=boxes)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Epochs of steps of a GoogLeNet, some with a checkpoint (`_EPOCHS`)."""

    images: LabelledImages
    size: Size

    def __call__(self, worker: Worker) -> list[dict[str, float]]:
        """Return the metrics of the epochs."""
        if worker.device.type == "cpu":
            torch.set_num_threads(1)
        worker = replace(worker, checkpoint=_InTheMiddle(worker.checkpoint))
        epochs = sum(len(numbers) for numbers in _EPOCHS.values())
        config = ClassifierConfig(epochs=epochs, batch_size=self.size.batch)
        side = self.size.input_px
        preprocess = PreprocessConfig(input_px=side, frame_px=side)
        dataset = CropDataset(self.images, classifier_sampler(config), preprocess, _SEED)
        task = NetworkTask(
            name="steps",
            make=lambda: make_network(NetworkConfig(), _NUM_CLASSES),
            dataset=dataset,
            objective=CropObjective(dataset, label_smoothing=0.0),
            config=config,
            seed=_SEED,
        )
        metrics: list[dict[str, float]] = train_networks([task], worker)["steps"]["metrics"]
        return metrics


class _InTheMiddle:
    """Checkpoints in the middle of some epochs: each has half an epoch to arrive in.

    The warm-up has one too, since the first of a process is slower.
    """

    def __init__(self, checkpoint: Callable[[dict[str, Any], Callable[[], State]], None]) -> None:
        self._checkpoint = checkpoint
        self._epoch = 0

    def __call__(self, metrics: dict[str, Any], state: Callable[[], State]) -> None:
        is_middle = metrics["epoch"] > self._epoch  # the second of an epoch is at its end
        self._epoch = metrics["epoch"]
        if is_middle and self._epoch not in _EPOCHS["without"]:
            self._checkpoint(metrics, state)


def on_gpu() -> bool:
    """Return whether all trainings are on GPUs: if there are enough for each, else none is.

    Raises:
        ConfigError: the cluster has several nodes, which cannot all read the images.
    """
    session.connect()
    if (num_nodes := resources.num_nodes()) > 1:
        raise ConfigError(
            f"bench training measures one machine, and the cluster has {num_nodes} nodes",
            hint="unset RAY_ADDRESS, or join a cluster of one node",
        )
    return bool(on_ray.scaling_config(max(WORKERS.values()), None, None).use_gpu)


def run_round(
    images: LabelledImages, size: Size, storage_uri: str, number: int, *, use_gpu: bool
) -> dict[str, list[dict[str, float]]]:
    """Train once with each number of workers; return the metrics of the epochs."""
    return {
        name: on_ray.fit(
            Steps(images=images, size=size),
            on_ray.FitConfig(
                name=f"{name.replace(' ', '-')}-{number}",
                storage_uri=storage_uri,
                num_workers=num_workers,
                use_gpu=use_gpu,
                checkpoint_steps=size.steps // 2,
            ),
        )
        for name, num_workers in WORKERS.items()
    }


def measured(rounds: list[dict[str, list[dict[str, float]]]], size: Size) -> list[Measured]:
    """Return rates without and with checkpoints, and the share of time waited for images."""
    rows = []
    for name in WORKERS:
        for kind, title in (("without", name), ("with checkpoints", f"{name}, with checkpoints")):
            rates, waits = [], []
            for metrics in rounds:
                epochs = [metrics[name][number - 1] for number in _EPOCHS[kind]]
                seconds = sum(epoch["seconds"] for epoch in epochs)
                waited_s = sum(epoch["seconds"] * epoch["input_wait"] for epoch in epochs)
                rates.append(size.num_images * len(epochs) / seconds)
                waits.append(waited_s / seconds)
            rows += [
                Measured(name=title, unit="images/s", values=rates),
                Measured(name=f"{title}, waiting", unit="of its time", values=waits),
            ]
    return rows
