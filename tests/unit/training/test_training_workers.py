"""Two real processes that share each step, as PyTorch has them talk: they learn what one does."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import Linear
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cropscore_ray.config.sections import PreprocessConfig, SgdConfig
from cropscore_ray.errors import ImageError
from cropscore_ray.training import ray_worker
from cropscore_ray.training.data.images import ImageDataset, LabelledImages, Request
from cropscore_ray.training.loop import NetworkTask, Worker, train_networks
from cropscore_ray.training.objectives import crops
from cropscore_ray.training.objectives.crops import CropObjective

NUM_IMAGES, NUM_CLASSES = 23, 3
UNREADABLE = 17


class Noise(ImageDataset):
    """Images that need no files; one cannot be read."""

    def _sample(self, request: Request) -> dict[str, Any]:
        if request.image == UNREADABLE:
            raise ImageError("missing", "not there")
        rng = np.random.default_rng((request.image, request.epoch))
        crop = torch.from_numpy(rng.integers(0, 256, (4, 4, 3), np.uint8))
        return {"crop": crop, "class_index": request.image % NUM_CLASSES, "overlap": torch.nan}


def a_task() -> NetworkTask:
    classes = np.arange(NUM_IMAGES) % NUM_CLASSES
    images = LabelledImages(uris=[""] * NUM_IMAGES, classes=classes, boxes=[])
    dataset = Noise(images, PreprocessConfig(), seed=1)
    return NetworkTask(
        name="linear",
        make=partial(Linear, NUM_CLASSES),
        dataset=dataset,
        objective=CropObjective(dataset, label_smoothing=0.1),
        # Of a step one worker has four images, in two passes, and the other three, in one.
        config=SgdConfig(epochs=3, batch_size=7, pass_size=3, learning_rate=0.5, ema_decay=0.9),
        seed=1,
    )


def train(**worker: Any) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Return the weights, and the metrics of all checkpoints but for what clocks say."""
    metrics: list[dict[str, float]] = []

    def checkpoint(found: dict[str, Any], state: Any) -> None:
        del state
        metrics.append({name: found[name] for name in ("epoch", "loss", "accuracy", "failed")})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crops, "best_dtype", lambda device: torch.float32)
        shared = Worker(checkpoint=checkpoint, checkpoint_steps=2, **worker)
        return train_networks([a_task()], shared)["linear"]["weights"], metrics


def train_as_one_of_two(rank: int, folder: Path) -> None:
    """Train in a process of its own, and leave in a file what `train` returned."""
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)

    def progress(name: str, done: int, total: int, detail: Any) -> None:
        if rank == 0:  # the only one that shows it, so the other must not be waited for
            assert "nan" not in detail()

    found = train(
        rank=rank,
        num_workers=2,
        wrap=DistributedDataParallel,
        total=ray_worker._total,
        progress=progress,
    )
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.trains
def test_two_processes_with_several_passes_learn_what_one_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_as_one_of_two, (tmp_path,), nprocs=2)
    weights, metrics = train()
    assert {one["failed"] for one in metrics} == {0, 1}
    for rank in range(2):
        shared_weights, shared_metrics = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(shared_weights, weights)
        assert shared_metrics == [pytest.approx(one) for one in metrics]
