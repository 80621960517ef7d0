"""Ray Train around the trainings: workers, checkpoints, resume, and a line of progress.

A training is a function of a `Worker`; `fit` runs it on Ray workers and returns what
rank 0 returned. Checkpoints go below the bundle, so that the same command started again
goes on where it stopped.
"""

import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model
from ray.util.queue import Queue

from cropscore_ray import runtime, storage
from cropscore_ray.errors import CropscoreError
from cropscore_ray.networks import Network
from cropscore_ray.training.sgd import State, Worker

Progress = Callable[[str, int, int, float], None]
Training = Callable[[Worker], Any]

_STATE_FILE = "state.pt"
_MAX_FAILURES = 3
_PROGRESS_S = 0.3
# glibc hands the pages of every large tensor back, and touching fresh ones is slow. Measured on
# two cores, fine-tuning Inception-BN with 32 crops a step: 24 crops/s, with these 42.
_KEEP_PAGES = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}


def fit(
    training: Training,
    *,
    name: str,
    storage_uri: str,
    num_workers: int,
    use_gpu: bool | None,
    progress: Progress | None = None,
) -> Any:
    """Run a training on Ray Train workers and return rank 0's result.

    Args:
        training: called in every worker; must be picklable.
        name: of the training; the same name and storage go on from the last checkpoint.
        storage_uri: a folder that all nodes can write.
        num_workers: processes.
        use_gpu: one GPU each; None: if the cluster has that many.
        progress: called in this process as steps are taken.

    Raises:
        CropscoreError: a worker failed more than three times.
        ConfigError: this machine is too small for so many workers.
    """
    runtime.connect()
    on_gpu = runtime.num_gpus() >= num_workers if use_gpu is None else use_gpu
    runtime.check_workers(num_workers, on_gpu)
    fs, path = storage.filesystem(storage_uri)
    with runtime.events(progress or _ignore) as queue:
        trainer = TorchTrainer(
            _worker_loop,
            train_loop_config={"training": training, "queue": queue},
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=on_gpu),
            run_config=RunConfig(
                name=name,
                storage_path=path,
                storage_filesystem=fs,
                failure_config=FailureConfig(max_failures=_MAX_FAILURES),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                worker_runtime_env={"env_vars": {} if on_gpu else _KEEP_PAGES},
            ),
        )
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise CropscoreError(
                f"training {name} failed: {runtime.innermost(error)}",
                hint="start the same command again to go on from its last checkpoint",
            ) from error
    return _unpack(result.return_value)


def _ignore(*event: Any) -> None:
    del event


def _worker_loop(loop_config: dict[str, Any]) -> Any:
    context = ray.train.get_context()
    queue: Queue = loop_config["queue"]
    rank = context.get_world_rank()
    if get_device().type == "cpu":
        # Ray sets one thread for each CPU asked for; workers share all cores of their node.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    last_s = 0.0

    def progress(name: str, done: int, total: int, loss: float) -> None:
        nonlocal last_s
        if rank == 0 and (done == total or time.monotonic() - last_s > _PROGRESS_S):
            last_s = time.monotonic()
            runtime.tell(queue, name, done, total, loss)

    worker = Worker(
        rank=rank,
        num_workers=context.get_world_size(),
        device=get_device(),
        wrap=_wrap,
        checkpoint=_report,
        progress=progress,
        resumed=_resumed_state(),
    )
    result = loop_config["training"](worker)
    return _pack(result) if rank == 0 else None


def _pack(result: Any) -> bytes:
    """Return a result as bytes: Ray Train refuses to return tensors."""
    buffer = io.BytesIO()
    torch.save(result, buffer)
    return buffer.getvalue()


def _unpack(packed: bytes) -> Any:
    return torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)


def _wrap(network: Network) -> torch.nn.Module:
    module: torch.nn.Module = prepare_model(network)
    return module


def _report(metrics: dict[str, Any], state: State) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if ray.train.get_context().get_world_rank() == 0:
            torch.save(state, Path(folder) / _STATE_FILE)
            checkpoint = Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=checkpoint)


def _resumed_state() -> State | None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        state: State = torch.load(Path(folder) / _STATE_FILE, map_location="cpu", weights_only=True)
    return state
