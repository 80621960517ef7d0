"""Training steps on Ray workers: what a second worker brings, and what checkpoints cost."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cropscore_ray import runtime
from cropscore_ray.bench.measuring import Measured
from cropscore_ray.config import ClassifierConfig, NetworkConfig, PreprocessConfig
from cropscore_ray.datasets.drawn import CLASS_NAMES, draw_image
from cropscore_ray.networks import make_network
from cropscore_ray.training import cluster
from cropscore_ray.training.crop_loss import CropObjective
from cropscore_ray.training.crops import CropDataset, classifier_sampler
from cropscore_ray.training.dataset import LabelledImages
from cropscore_ray.training.sgd import NetworkTask, Worker, train_networks

_SEED = 14
_NUM_CLASSES = 1000  # as many as ILSVRC's, so that checkpoints have their true size


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How much work is measured."""

    input_px: int = 112
    """A quarter of the usual pixels: a step on one core takes about a second."""
    batch: int = 32
    steps: int = 20
    """An epoch; with checkpoints, every so many and in the middle."""

    @property
    def num_images(self) -> int:
        """Images an epoch."""
        return self.batch * self.steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """A way to take the same steps."""

    num_workers: int = 1
    has_checkpoints: bool = False


SIZE = Size()
CONTESTANTS = {
    "one worker": Contestant(),
    "two workers": Contestant(num_workers=2),
    "with checkpoints": Contestant(has_checkpoints=True),
}


def draw_images(folder: Path, num_images: int) -> LabelledImages:
    """Draw images into a folder that all workers can read."""
    uris, boxes = [], []
    classes = np.arange(num_images) % len(CLASS_NAMES)
    for i, class_index in enumerate(classes):
        image, found = draw_image(np.random.default_rng((_SEED, i)), int(class_index))
        image.save(folder / f"{i}.jpg")
        uris.append(str(folder / f"{i}.jpg"))
        boxes.append(np.array(found, np.float64))
    return LabelledImages(uris=uris, classes=classes, boxes=boxes)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Two epochs of steps of a GoogLeNet, the first to warm up."""

    images: LabelledImages
    size: Size
    contestant: Contestant

    def __call__(self, worker: Worker) -> list[dict[str, float]]:
        """Return the metrics of both epochs."""
        if worker.device.type == "cpu":
            torch.set_num_threads(1)
        if not self.contestant.has_checkpoints:
            worker = replace(worker, checkpoint=lambda *_: None)
        config = ClassifierConfig(epochs=2, batch_size=self.size.batch)
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


def run_round(images: LabelledImages, storage_uri: str, number: int) -> dict[str, dict[str, float]]:
    """Let each contestant train once; return the metrics of its second epoch.

    On GPUs if there are enough for all of them, so that none is compared with CPUs.
    """
    runtime.connect()
    most = max(one.num_workers for one in CONTESTANTS.values())
    on_gpu = bool(cluster.scaling_config(most, None, None).use_gpu)
    found = {}
    for name, contestant in CONTESTANTS.items():
        metrics = cluster.fit(
            Steps(images=images, size=SIZE, contestant=contestant),
            name=f"{name.replace(' ', '-')}-{number}",
            storage_uri=storage_uri,
            num_workers=contestant.num_workers,
            use_gpu=on_gpu,
            checkpoint_steps=max(1, SIZE.steps // 2),
        )
        found[name] = metrics[1]
    return found


def measured(rounds: list[dict[str, dict[str, float]]]) -> list[Measured]:
    """Return the contestants' rates, then the share of their time that they waited for images."""
    rates = [
        Measured(
            name=name,
            unit="images/s",
            values=[SIZE.num_images / one[name]["seconds"] for one in rounds],
        )
        for name in CONTESTANTS
    ]
    waits = [
        Measured(
            name=f"{name}, waiting",
            unit="of its time",
            values=[one[name]["input_wait"] for one in rounds],
        )
        for name in CONTESTANTS
    ]
    return rates + waits
