"""Ray Train around the trainings: workers, checkpoints, resume, and events of the steps.

A training is a function of a `Worker`; `fit` runs it on Ray workers and returns what
rank 0 returned. Checkpoints go below the bundle, so that the same command started again
goes on where it stopped.
"""

import io
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray.train
import torch
from ray.exceptions import RayError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from cropscore_ray import storage
from cropscore_ray.clusters import events, resources, session
from cropscore_ray.errors import CropscoreError, StorageError
from cropscore_ray.training.loop import Worker, ignore
from cropscore_ray.training.ray_worker import worker_loop

logger = logging.getLogger(__name__)

StepProgress = Callable[[str, int, int, str], None]
Training = Callable[[Worker], Any]

_SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"  # Ray Train's
_MAX_FAILURES = 3  # from one checkpoint to the next
_SILENCE_S = 30.0
_GO_ON = "start the same command again to go on from its last checkpoint"
# glibc hands the pages of every large tensor back, and touching fresh ones is slow. Measured on
# two cores, fine-tuning Inception-BN with 32 crops a step: 24 crops/s, with these 42.
_KEEP_PAGES = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """How a training runs on Ray, and where its checkpoints go."""

    name: str
    """The same name and storage go on from the last checkpoint."""
    storage_uri: str
    """A folder that all nodes can write."""
    num_workers: int
    min_workers: int | None = None
    """The fewest to go on with while nodes are missing; None: num_workers."""
    use_gpu: bool | None = None
    """One GPU each; None: see `resources.takes_gpus`."""
    checkpoint_steps: int = 0
    """Steps between checkpoints besides those at the ends of epochs."""
    may_write: Callable[[], None] = ignore
    """Called in rank 0 before each checkpoint; raises if there must be none."""


def fit(training: Training, config: FitConfig, progress: StepProgress = ignore) -> Any:
    """Run a training on Ray Train workers and return rank 0's result.

    A lost worker or node costs the steps since the last checkpoint that arrived. The training
    gives up when it fails four times without a new one, and at once on an error that would come
    again.

    Args:
        training: called in every worker; must be picklable.
        config: how, and where.
        progress: called in this process as steps are taken.

    Raises:
        CropscoreError: it failed four times without a new checkpoint, or what a worker raised.
        ConfigError: this machine is too small for so many workers.
    """
    # A checkpoint counts once the controller has seen it, by default every two seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    session.connect()
    scaling = scaling_config(config.num_workers, config.min_workers, config.use_gpu)
    fs, path = storage.filesystem(config.storage_uri)
    run = RunConfig(
        name=config.name,
        storage_path=path,
        storage_filesystem=fs,
        failure_config=FailureConfig(max_failures=_MAX_FAILURES),
        checkpoint_config=CheckpointConfig(num_to_keep=1),
        callbacks=[_EndAtOnce()],
        worker_runtime_env={"env_vars": {} if scaling.use_gpu else _KEEP_PAGES},
    )
    ear = _Ear(progress, config, on_gpu=scaling.use_gpu)
    with events.queue(ear.hear, ear.hear_nothing) as queue:
        loop_config = {
            "training": training,
            "queue": queue,
            "checkpoint_steps": config.checkpoint_steps,
            "may_write": partial(storage.persistently, config.storage_uri, config.may_write),
        }
        make_trainer = partial(
            TorchTrainer,
            worker_loop,
            train_loop_config=loop_config,
            scaling_config=scaling,
            run_config=run,
        )
        return _run_to_the_end(make_trainer, config.name, config.storage_uri)


class _Ear:
    """Passes steps on; warns why there are none where the cluster is too small for the workers."""

    def __init__(self, hear: StepProgress, config: FitConfig, *, on_gpu: bool) -> None:
        self._hear, self._on_gpu = hear, on_gpu
        self._name, self._fewest = config.name, config.min_workers or config.num_workers
        self._since_s = time.monotonic()

    def hear(self, *event: Any) -> None:
        self._since_s = time.monotonic()
        self._hear(*event)

    def hear_nothing(self) -> None:
        if time.monotonic() - self._since_s < _SILENCE_S:
            return
        self._since_s = time.monotonic()
        up = int(sum(resources.by_node("GPU" if self._on_gpu else "CPU")))
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
    on_gpu = resources.takes_gpus(fewest, "--set use_gpu=true") if use_gpu is None else use_gpu
    resources.check_workers(fewest, on_gpu)
    return ScalingConfig(
        num_workers=num_workers if fewest == num_workers else (fewest, num_workers),
        use_gpu=on_gpu,
        # GPUs are near each other on one node; on CPUs a worker takes its share of a node's cores.
        placement_strategy="PACK" if on_gpu else "SPREAD",
    )


def _run_to_the_end(make_trainer: Callable[[], TorchTrainer], name: str, storage_uri: str) -> Any:
    """Run a training, and again as long as it fails but gets further; return its result."""
    find = partial(storage.persistently, storage_uri, lambda: _last_checkpoint(storage_uri, name))
    while True:
        before = find()
        try:
            with _as_keyboard_interrupt():
                packed = io.BytesIO(make_trainer().fit().return_value)
                return torch.load(packed, map_location="cpu", weights_only=True)
        except RayError as error:  # with the node of this process goes that of the controller
            lost = f"training {name} was lost: {events.innermost(error)}"
            raise CropscoreError(lost, hint=_GO_ON) from error
        except ray.train.TrainingFailedError as error:
            own = _own_error(error)
            if not _would_come_again(own) and find() != before:
                continue  # these failures were not all at one place
            failed = f"training {name} failed: {events.innermost(error)}"
            raise own or CropscoreError(failed, hint=_GO_ON) from error


def _own_error(error: ray.train.TrainingFailedError) -> CropscoreError | None:
    """Return what a worker raised on purpose, with its hint."""
    failures = [getattr(error, "controller_failure", None)]
    failures += getattr(error, "worker_failures", {}).values()
    return next((failure for failure in failures if isinstance(failure, CropscoreError)), None)


def _would_come_again(error: Exception | None) -> bool:
    """Return whether it is an error of settings, images or models; a storage may be back."""
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
