"""The bulk run on Ray Data: plan -> fetch -> score -> box -> Parquet, as one chain.

The unit that travels is a part: consecutive rows of the manifest, one row of a block from the
plan to the file (run_folder). A part's file has the part's number for a name, so a part that
is done twice leaves one file, and a restart does the parts that have none. What a worker does
with a part is in parts.py. No process holds more of the manifest than a batch.
"""

import json
import logging
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.exceptions import RayError

from cropscore_ray import run_folder, runtime, storage
from cropscore_ray.attempts import Attempts
from cropscore_ray.errors import CropscoreError, StorageError
from cropscore_ray.packing import pack_part
from cropscore_ray.parts import (
    BulkRun,
    Scoring,
    StageActor,
    fetch_part,
    images_by_status,
    plan_parts,
    write_part,
)
from cropscore_ray.run_folder import RunFolder
from cropscore_ray.runtime import Handle

logger = logging.getLogger(__name__)

_ASK_S = 2.0

Progress = Callable[[int, int | None, Counter[str]], None]
"""Called with images done, images in all if that is known, and images by status so far."""


Link = Callable[[ray.data.Dataset, "Todo"], ray.data.Dataset]
"""Adds to a chain of fetched parts what is done with them: `scored` with its scoring, or `packed`.
The rows of what it returns are summaries of written parts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """How the images of a written table are counted by status."""

    columns: list[str]
    """What must be read for that."""
    by_status: Callable[[pa.Table], dict[str, int]]


SCORED = Count(columns=["image_id", "status"], by_status=images_by_status)


@dataclass(frozen=True, kw_only=True, slots=True)
class Todo:
    """What is left of a run, and whom workers tell how it goes."""

    run: BulkRun
    done: frozenset[int]
    """Numbers of the parts that are written."""
    num_left: int | None
    """Parts to be done; None while nobody knows."""
    queue: Handle

    def at_most(self, number: int) -> int:
        """Return the number, or that of the parts to be done if they are fewer."""
        return number if self.num_left is None else min(number, self.num_left)


def run_parts(
    run: BulkRun,
    link: Link,
    count: Count,
    *,
    progress: Progress | None = None,
) -> None:
    """Do every part of a run that is not done yet, and complete its run.json.

    Args:
        run: what to do.
        link: what is done with a part that is fetched.
        count: how what is written is counted in the end.
        progress: told as images are scored and parts are written.

    Raises:
        CropscoreError: a worker failed; what is written stays, the same command goes on.
    """
    began = time.monotonic()
    size, num_images = run.part_images, run.manifest.num_images
    done, num_left = frozenset(run.folder.done_parts()), None
    num_done = len(done) * size
    if num_images is not None:
        num_parts = -(-num_images // size)
        done &= frozenset(range(num_parts))
        num_left = num_parts - len(done)
        num_done = sum(min(size, num_images - number * size) for number in done)
    tally = _Tally(run=run, num_done=num_done, progress=progress)
    try:
        if num_left != 0:
            runtime.connect()
            with runtime.events(tally.count_images) as queue, warnings.catch_warnings():
                # Ray says so where a folder, whose size nobody knows yet, is a single part.
                warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")
                todo = Todo(run=run, done=done, num_left=num_left, queue=queue)
                for summary in link(_fetched_parts(todo), todo).iter_rows():
                    tally.count_part(json.loads(summary["by_status"]))
    except RayError as error:
        raise CropscoreError(
            f"{run.command} into {run.folder.uri} failed: {runtime.innermost(error)}",
            hint="what is written stays; the same command goes on from there",
        ) from error
    finally:
        wall_s = time.monotonic() - began
        times = run.folder.record["times"]
        run.folder.update(times={**times, "wall_s": round(times["wall_s"] + wall_s, 3)})
    num_images = run.manifest.num_images
    assert num_images is not None, "all parts are done, so all images were listed"
    _complete(run.folder, num_images, count)
    rate = (num_images - num_done) / max(wall_s, 1e-9)
    logger.info("%s: %d images, %.2f images/s", run.command, num_images - num_done, rate)


@dataclass
class _Tally:
    """Images done: by status where their part is written, and by number as they are scored."""

    run: BulkRun
    num_done: int
    progress: Progress | None
    num_scored: int = 0
    num_images: int | None = None
    asked_s: float = -_ASK_S
    by_status: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count_images(self, number: int) -> None:
        with self.lock:
            self.num_scored += number
            self._tell()

    def count_part(self, by_status: dict[str, int]) -> None:
        with self.lock:
            self.by_status.update(by_status)
            self._tell()

    def _tell(self) -> None:
        if not self.progress:
            return
        # A part that is done twice is scored twice; only what is written can be the end.
        written, ahead = self.by_status.total(), self.num_scored
        num_images = self._num_images()
        if num_images is not None:
            ahead = min(ahead, num_images - self.num_done - 1)
        self.progress(self.num_done + max(written, ahead), num_images, self.by_status)

    def _num_images(self) -> int | None:
        """Return how many there are, asked for now and then while nobody knows."""
        if self.num_images is None and time.monotonic() - self.asked_s > _ASK_S:
            self.num_images, self.asked_s = self.run.manifest.num_images, time.monotonic()
        return self.num_images


def _fetched_parts(todo: Todo) -> ray.data.Dataset:
    """Return the lazy chain of the parts that are left, with their images' bytes."""
    context = DataContext.get_current()
    context.execution_options.verbose_progress = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # waiting for GPU nodes is no failure
    # Each row is handed on as it comes, a block of its own: the plan would else be one block.
    context.target_max_block_size = 1
    return (
        ray.data.from_items([{"plan": 0}])
        .map_batches(plan_parts, fn_args=(todo.run, todo.done), batch_format="pyarrow", num_cpus=0)
        .map_batches(
            fetch_part,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0.5,
            # A part may be large, so no more than two for each that works on one.
            compute=TaskPoolStrategy(size=todo.at_most(2 * _num_workers())),
        )
    )


def _num_workers() -> int:
    return runtime.num_gpus() or runtime.num_nodes()


def scored(scoring: Scoring, fetched: ray.data.Dataset, todo: Todo) -> ray.data.Dataset:
    """Add what actors with the model do with the images, and the writing of their table."""
    attempts = ray.remote(Attempts).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
    on_gpu = runtime.num_gpus() > 0
    return fetched.map_batches(
        StageActor,
        fn_constructor_args=(scoring, todo.queue, attempts.remote()),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=todo.at_most(_num_workers())),
        num_gpus=1 if on_gpu else 0,
        num_cpus=0 if on_gpu else 1,
    ).map_batches(
        write_part, fn_args=(todo.run,), batch_size=None, batch_format="pyarrow", num_cpus=0.5
    )


def packed(fetched: ray.data.Dataset, todo: Todo) -> ray.data.Dataset:
    """Add the writing of archives and of the manifest that finds images there."""
    return fetched.map_batches(
        pack_part, fn_args=(todo.run,), batch_size=None, batch_format="pyarrow", num_cpus=0.5
    )


def _complete(folder: RunFolder, num_images: int, count: Count) -> None:
    """Count what is written, file by file, and say in run.json that the run is complete."""
    by_status: Counter[str] = Counter()
    num_rows = 0
    for rows in storage.read_tables(folder.table_uri, count.columns):
        by_status.update(count.by_status(rows))
        num_rows += len(rows)
    if by_status.total() != num_images:
        raise StorageError(
            f"{folder.table_uri} has rows of {by_status.total()} images, not {num_images}",
            hint="if files were taken away, the same command makes them again",
        )
    folder.update(
        counts={"images": num_images, "rows": num_rows, "by_status": dict(by_status)},
        times={**folder.record["times"], "finished_at": run_folder.now()},
        complete=True,
    )
