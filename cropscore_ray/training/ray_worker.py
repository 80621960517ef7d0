"""A training inside a worker of Ray Train: its cores, its checkpoints, its line of progress."""

import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.torch import get_device, prepare_model

from cropscore_ray.clusters import events, resources
from cropscore_ray.training.loop import State, Worker

_STATE_FILE = "state.pt"
_MOST_ON_THEIR_WAY = 2  # checkpoints
_PROGRESS_S = 0.3


def worker_loop(loop_config: dict[str, Any]) -> Any:
    """Run a training in this worker; return rank 0's result as bytes (`on_ray.fit`)."""
    context = ray.train.get_context()
    queue: events.Handle = loop_config["queue"]
    rank = context.get_world_rank()
    on_cpu = get_device().type == "cpu"
    num_cores = cores_of_worker(resources.cpus_here(), context.get_local_world_size())
    if on_cpu:  # Ray sets one thread for each CPU asked for
        torch.set_num_threads(num_cores)
    last_s = 0.0

    def progress(name: str, done: int, total: int, detail: Callable[[], str]) -> None:
        nonlocal last_s
        if rank == 0 and (done == total or time.monotonic() - last_s > _PROGRESS_S):
            last_s = time.monotonic()
            events.tell(queue, name, done, total, detail())

    worker = Worker(
        rank=rank,
        num_workers=context.get_world_size(),
        device=get_device(),
        num_loaders=0 if on_cpu else max(1, num_cores - 1),
        wrap=prepare_model,
        total=_total,
        checkpoint_steps=loop_config["checkpoint_steps"],
        checkpoint=_Checkpoints(loop_config["may_write"]),
        progress=progress,
        resumed=_resumed_state(),
    )
    result, packed = loop_config["training"](worker), io.BytesIO()
    if rank != 0:
        return None
    torch.save(result, packed)  # Ray Train refuses to return tensors
    return packed.getvalue()


def cores_of_worker(cpus_of_node: float, num_workers: int) -> int:
    """Return a worker's share of the cores of its node.

    A container may see more cores than it has; Ray's number is what it has. That of a local Ray
    may be more than there are.
    """
    return max(1, min(int(cpus_of_node), os.cpu_count() or 1) // num_workers)


def _total(sums: torch.Tensor) -> torch.Tensor:
    total = sums.clone()
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total


class _Checkpoints:
    """Rank 0's states on their way to the storage, while the next steps are taken.

    One that would be the third on its way is left out. Where steps are faster than the storage,
    they would pile up on the node's disk, and a lost worker cost the steps of all of them.
    """

    def __init__(self, may_write: Callable[[], None]) -> None:
        self._may_write = may_write
        self._on_their_way: list[Path] = []  # rank 0's; Ray Train deletes what has arrived

    def __call__(self, metrics: dict[str, Any], state: Callable[[], State]) -> None:
        self._on_their_way = [folder for folder in self._on_their_way if folder.exists()]
        number = torch.tensor(len(self._on_their_way), device=get_device())
        if _total(number).item() >= _MOST_ON_THEIR_WAY:
            return
        checkpoint = None
        if ray.train.get_context().get_world_rank() == 0:
            self._may_write()
            folder = tempfile.mkdtemp()
            torch.save(state(), Path(folder) / _STATE_FILE)
            checkpoint = Checkpoint.from_directory(folder)
            self._on_their_way.append(Path(folder))
        ray.train.report(
            metrics,
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )


def _resumed_state() -> State | None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        state: State = torch.load(Path(folder) / _STATE_FILE, map_location="cpu", weights_only=True)
    return state
