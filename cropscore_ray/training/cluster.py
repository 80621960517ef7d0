"""Ray Train around the trainings: workers, checkpoints, resume, and a line of progress.

A training is a function of a `Worker`; `fit` runs it on Ray workers and returns what
rank 0 returned. Checkpoints go below the bundle, so that the same command started again
goes on where it stopped.
"""

import io
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.exceptions import RayError
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    CheckpointUploadMode,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
)
from ray.train.torch import TorchTrainer, get_device, prepare_model

from cropscore_ray import runtime, storage
from cropscore_ray.errors import CropscoreError, StorageError
from cropscore_ray.training.sgd import State, Worker

logger = logging.getLogger(__name__)

StepProgress = Callable[[str, int, int, str], None]
Training = Callable[[Worker], Any]

_STATE_FILE = "state.pt"
_SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"  # Ray Train's
_MAX_FAILURES = 3  # from one checkpoint to the next
_MOST_ON_THEIR_WAY = 2  # checkpoints
_PROGRESS_S = 0.3
_SILENCE_S = 30.0
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
    min_workers: int | None = None,
    use_gpu: bool | None,
    checkpoint_steps: int = 0,
    may_write: Callable[[], None] | None = None,
    progress: StepProgress | None = None,
) -> Any:
    """Run a training on Ray Train workers and return rank 0's result.

    A lost worker or node costs the steps since the last checkpoint that arrived. The training
    gives up when it fails four times without a new one, and at once on an error that would come
    again.

    Args:
        training: called in every worker; must be picklable.
        name: of the training; the same name and storage go on from the last checkpoint.
        storage_uri: a folder that all nodes can write.
        num_workers: processes.
        min_workers: the fewest to go on with while nodes are missing; None: num_workers.
        use_gpu: one GPU each; None: see `runtime.takes_gpus`.
        checkpoint_steps: steps between checkpoints besides those at the ends of epochs.
        may_write: called in rank 0 before each checkpoint; raises if there must be none.
        progress: called in this process as steps are taken.

    Raises:
        CropscoreError: it failed four times without a new checkpoint, or what a worker raised.
        ConfigError: this machine is too small for so many workers.
    """
    # A checkpoint counts once the controller has seen it, by default every two seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    runtime.connect()
    scaling = scaling_config(num_workers, min_workers, use_gpu)
    fs, path = storage.filesystem(storage_uri)
    run = RunConfig(
        name=name,
        storage_path=path,
        storage_filesystem=fs,
        failure_config=FailureConfig(max_failures=_MAX_FAILURES),
        checkpoint_config=CheckpointConfig(num_to_keep=1),
        callbacks=[_EndAtOnce()],
        worker_runtime_env={"env_vars": {} if scaling.use_gpu else _KEEP_PAGES},
    )
    ear = _Ear(progress or _ignore, name, min_workers or num_workers, scaling.use_gpu)
    with runtime.events(ear.hear, ear.hear_nothing) as queue:
        loop_config = {
            "training": training,
            "queue": queue,
            "checkpoint_steps": checkpoint_steps,
            "may_write": partial(storage.persistently, storage_uri, may_write or _ignore),
        }
        return _run_to_the_end(
            lambda: TorchTrainer(
                _worker_loop,
                train_loop_config=loop_config,
                scaling_config=scaling,
                run_config=run,
            ),
            name,
            storage_uri,
        )


class _Ear:
    """Hears of steps; tells why there are none where the cluster is too small for the workers."""

    def __init__(self, hear: StepProgress, name: str, fewest: int, on_gpu: bool) -> None:
        self._hear, self._name, self._fewest, self._on_gpu = hear, name, fewest, on_gpu
        self._since_s = time.monotonic()

    def hear(self, *event: Any) -> None:
        self._since_s = time.monotonic()
        self._hear(*event)

    def hear_nothing(self) -> None:
        if time.monotonic() - self._since_s < _SILENCE_S:
            return
        self._since_s = time.monotonic()
        up = int(sum(runtime.gpus_by_node() if self._on_gpu else runtime.cpus_by_node()))
        if up < self._fewest:
            kind = "GPU" if self._on_gpu else "CPU"
            logger.warning(
                "training %s waits for %d workers with a %s each; the cluster has %d %ss now",
                *(self._name, self._fewest, kind, up, kind),
            )


def scaling_config(
    num_workers: int, min_workers: int | None, use_gpu: bool | None
) -> ScalingConfig:
    """Return what to ask Ray for; the arguments are those of `fit`."""
    fewest = min_workers or num_workers
    on_gpu = runtime.takes_gpus(fewest, "--set use_gpu=true") if use_gpu is None else use_gpu
    runtime.check_workers(fewest, on_gpu)
    return ScalingConfig(
        num_workers=num_workers if fewest == num_workers else (fewest, num_workers),
        use_gpu=on_gpu,
    )


def _run_to_the_end(make_trainer: Callable[[], TorchTrainer], name: str, storage_uri: str) -> Any:
    """Run a training, and again as long as it fails but gets further; return its result."""
    find = partial(storage.persistently, storage_uri, lambda: _last_checkpoint(storage_uri, name))
    while True:
        before = find()
        try:
            with _as_keyboard_interrupt():
                return _unpack(make_trainer().fit().return_value)
        except RayError as error:  # with the node of this process goes that of the controller
            raise CropscoreError(
                f"training {name} was lost: {runtime.innermost(error)}",
                hint="start the same command again to go on from its last checkpoint",
            ) from error
        except ray.train.TrainingFailedError as error:
            own = _own_error(error)
            if not _would_come_again(own) and find() != before:
                continue  # these failures were not all at one place
            raise own or CropscoreError(
                f"training {name} failed: {runtime.innermost(error)}",
                hint="start the same command again to go on from its last checkpoint",
            ) from error


def _own_error(error: ray.train.TrainingFailedError) -> CropscoreError | None:
    """Return what a worker raised on purpose, with its hint."""
    found = [getattr(error, "controller_failure", None)]
    found += getattr(error, "worker_failures", {}).values()
    return next((one for one in found if isinstance(one, CropscoreError)), None)


def _would_come_again(error: Exception | None) -> bool:
    """Tell errors of settings, images and models from those of a storage, which may be back."""
    return isinstance(error, CropscoreError) and not isinstance(error, StorageError)


class _EndAtOnce(UserCallback):
    """Ends a training on an error that would come again, which Ray Train would try three times.

    What it raises ends Ray Train's controller; that stops all workers, those too that wait for
    the one that failed.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        del run_context
        for error in worker_exceptions.values():
            if _would_come_again(error):
                raise error


@contextmanager
def _as_keyboard_interrupt() -> Iterator[None]:
    """Make Ctrl-C what it is elsewhere: Ray Train puts a handler of its own, and leaves it."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stopped:
        raise KeyboardInterrupt from stopped
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _last_checkpoint(storage_uri: str, name: str) -> str | None:
    """Return the checkpoint that a start goes on from; None if there is none.

    Others may lie there that Ray Train does not know of: what came too late before a failure.

    Raises:
        StorageError: what Ray Train noted of its checkpoints cannot be read.
    """
    where = storage.join(storage_uri, name)
    if not storage.exists(storage.join(where, _SNAPSHOT_FILE)):
        return None
    fs, path = storage.filesystem(where)
    try:
        checkpoint = ray.train.Result.from_path(path, storage_filesystem=fs).checkpoint
    except Exception as error:  # Ray Train's own, which have no public name
        raise StorageError(
            f"cannot go on with training {name}: {where}/{_SNAPSHOT_FILE}: {error}",
            hint=f"delete {where} to begin this training anew",
        ) from error
    return checkpoint.path if checkpoint else None


def _ignore(*event: Any) -> None:
    del event


def _worker_loop(loop_config: dict[str, Any]) -> Any:
    context = ray.train.get_context()
    queue: runtime.Handle = loop_config["queue"]
    rank = context.get_world_rank()
    on_cpu = get_device().type == "cpu"
    num_cores = cores_of_worker(runtime.cpus_here(), context.get_local_world_size())
    if on_cpu:  # Ray sets one thread for each CPU asked for
        torch.set_num_threads(num_cores)
    last_s = 0.0

    def progress(name: str, done: int, total: int, detail: Callable[[], str]) -> None:
        nonlocal last_s
        if rank == 0 and (done == total or time.monotonic() - last_s > _PROGRESS_S):
            last_s = time.monotonic()
            runtime.tell(queue, name, done, total, detail())

    worker = Worker(
        rank=rank,
        num_workers=context.get_world_size(),
        device=get_device(),
        num_loaders=0 if on_cpu else max(1, num_cores - 1),
        wrap=_wrap,
        total=_total,
        checkpoint_steps=loop_config["checkpoint_steps"],
        checkpoint=_Checkpoints(loop_config["may_write"]),
        progress=progress,
        resumed=_resumed_state(),
    )
    result = loop_config["training"](worker)
    return _pack(result) if rank == 0 else None


def cores_of_worker(cpus_of_node: float, num_workers: int) -> int:
    """Return a worker's share of the cores of its node.

    A container may see more cores than it has; what Ray was told is what it has. A local Ray is
    told of more than there are.
    """
    return max(1, min(int(cpus_of_node), os.cpu_count() or 1) // num_workers)


def _pack(result: Any) -> bytes:
    """Return a result as bytes: Ray Train refuses to return tensors."""
    buffer = io.BytesIO()
    torch.save(result, buffer)
    return buffer.getvalue()


def _unpack(packed: bytes) -> Any:
    return torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)


def _wrap(network: torch.nn.Module) -> torch.nn.Module:
    module: torch.nn.Module = prepare_model(network)
    return module


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
