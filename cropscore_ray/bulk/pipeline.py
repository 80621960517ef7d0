"""The bulk run on Ray Data: plan -> fetch -> score, box and write, as one chain.

The unit that travels is a part: consecutive rows of the manifest, one row of a block from the
plan to the actor that writes its file (run_folder). The file has the part's number for a name,
so a part that is done twice leaves one file, and a restart does the parts that have none. No
process holds more of the manifest than a batch.
"""

import json
import logging
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.exceptions import RayError

from cropscore_ray import storage
from cropscore_ray.bulk import part_sizes
from cropscore_ray.bulk.crashes import Crashes
from cropscore_ray.bulk.packing import pack_part
from cropscore_ray.bulk.parts import BulkRun, fetch_part, images_by_status, plan_parts
from cropscore_ray.bulk.run_progress import RunProgress
from cropscore_ray.bulk.score_actor import CALLS_AT_ONCE, Scoring, StageActor
from cropscore_ray.bulk.telemetry import RunTelemetry
from cropscore_ray.bulk.workers import Pool, pool
from cropscore_ray.clusters import events, session
from cropscore_ray.clusters.events import Handle
from cropscore_ray.config.bulk import WorkerConfig
from cropscore_ray.errors import CropscoreError, StorageError
from cropscore_ray.terminal.progress import Snapshot

logger = logging.getLogger(__name__)

_FETCH_CPUS = 0.1  # fetching is waiting for the store most of the time
_COUNTED_AT_ONCE = 64  # files

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
    """What is left of a run, the workers, and the queue of their reports."""

    run: BulkRun
    done: frozenset[int]
    """Numbers of the parts that are written."""
    num_left: int | None
    """Parts to be done; None while that is not known."""
    pool: Pool
    queue: Handle

    def at_most(self, number: int) -> int:
        """Return the number, or that of the parts to be done if they are fewer."""
        return number if self.num_left is None else min(number, self.num_left)


def run_parts(
    run: BulkRun,
    link: Link,
    count: Count,
    *,
    workers: WorkerConfig | None = None,
    show: Callable[[Snapshot], None] | None = None,
) -> None:
    """Do every part of a run that is not done yet, and keep its run.json.

    Args:
        run: what to do.
        link: what is done with a part that is fetched.
        count: how what earlier starts wrote is counted.
        workers: how many processes, and what each takes.
        show: called as images are scored and parts are written.

    Raises:
        CropscoreError: a worker failed; what is written stays, the same command goes on.
        RunConflictError: another run took the folder over.
    """
    done, num_left = frozenset(run.folder.written_parts() - run.folder.unreached), None
    num_images = run.manifest.num_images
    if num_images is not None:
        num_parts = part_sizes.num_parts(run.part_images, num_images)
        done = frozenset(number for number in done if number < num_parts)
        num_left = num_parts - len(done)
    progress = RunProgress(
        folder=run.folder,
        ask_num_images=lambda: run.manifest.num_images,
        num_before=part_sizes.images_in(done, run.part_images, num_images),
        shows=[show] if show else [],
    )
    uncounted = [run.folder.part_uri(number) for number in done]
    # A daemon: the end of the run need not wait for it.
    beside = threading.Thread(target=_try_to_count, args=(uncounted, count, progress), daemon=True)
    beside.start()
    with progress.kept():
        try:
            if num_left != 0:
                _do_parts(run, link, done, num_left, workers or WorkerConfig(), progress)
        except RayError as error:
            raise CropscoreError(
                f"{run.command} into {run.folder.uri} failed: {events.innermost(error)}",
                hint="what is written stays; the same command goes on from there",
            ) from error
        beside.join()
    _complete(run, uncounted, count, progress)
    logger.info("%s: %.2f images/s", run.command, progress.rate())


def _do_parts(
    run: BulkRun,
    link: Link,
    done: frozenset[int],
    num_left: int | None,
    workers: WorkerConfig,
    progress: RunProgress,
) -> None:
    session.connect()
    progress.shows.append(RunTelemetry(run.folder.uri).show)
    with events.queue(progress.worked, progress.tick) as queue, warnings.catch_warnings():
        # Ray warns where a folder, whose size is not known yet, is a single part.
        warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")
        todo = Todo(run=run, done=done, num_left=num_left, pool=pool(workers), queue=queue)
        for summary in link(_fetched_parts(todo), todo).iter_rows():
            progress.wrote(json.loads(summary["by_status"]), summary["rows"])


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
            num_cpus=_FETCH_CPUS,
            compute=TaskPoolStrategy(size=todo.at_most(todo.pool.num_fetches)),
        )
    )


def scored(scoring: Scoring, fetched: ray.data.Dataset, todo: Todo) -> ray.data.Dataset:
    """Add what actors with the model do with the images."""
    crashes = ray.remote(Crashes).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
    most = todo.pool.most
    return fetched.map_batches(
        StageActor,
        fn_constructor_args=(scoring, todo.run.folder, todo.pool, todo.queue, crashes.remote()),
        batch_size=1,  # a part; Ray wants it said for GPUs
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            min_size=todo.at_most(todo.pool.num_now),
            max_size=None if most is None else todo.at_most(most),
            max_concurrent_calls_per_actor=CALLS_AT_ONCE,
            enable_true_multi_threading=True,
        ),
        num_gpus=todo.pool.num_gpus,
        num_cpus=todo.pool.num_cpus,
    )


def packed(fetched: ray.data.Dataset, todo: Todo) -> ray.data.Dataset:
    """Add the writing of archives and of the manifest that finds images there."""
    return fetched.map_batches(
        pack_part, fn_args=(todo.run,), batch_size=None, batch_format="pyarrow", num_cpus=0.5
    )


def _try_to_count(uncounted: list[str], count: Count, progress: RunProgress) -> None:
    """Count beside the work; what cannot be read now is left for the end."""
    with suppress(Exception):
        _count(uncounted, count, progress)


def _count(uncounted: list[str], count: Count, progress: RunProgress) -> None:
    """Count the images of parts that earlier starts wrote, and take what is counted off the list.

    Raises:
        StorageError: a part cannot be read, nor after a while.
    """
    while uncounted:
        files = uncounted[-_COUNTED_AT_ONCE:]
        read = partial(_read, files, count.columns)
        for rows in storage.persistently(files[0], read):
            progress.wrote(count.by_status(rows), len(rows), before=True)
        del uncounted[-len(files) :]


def _read(files: list[str], columns: list[str]) -> list[pa.Table]:
    return list(storage.read_files(files, columns))


def _complete(run: BulkRun, uncounted: list[str], count: Count, progress: RunProgress) -> None:
    """Check that the run is complete, and say so in run.json."""
    try:
        _count(uncounted, count, progress)
    except StorageError as error:
        raise StorageError(
            f"all parts are written, but some could not be counted: {error}",
            hint="the same command counts again; a damaged file, once deleted, is made again",
        ) from error
    num_images = storage.persistently(run.manifest.uri, lambda: run.manifest.num_images)
    assert num_images is not None, "all parts are done, so all images were listed"
    num_parts = part_sizes.num_parts(run.part_images, num_images)
    num_counted = progress.by_status.total()
    written = storage.persistently(run.folder.uri, run.folder.written_parts)
    num_written = sum(number < num_parts for number in written)
    if (num_written, num_counted) != (num_parts, num_images):
        raise StorageError(
            f"{run.folder.table_uri} has rows of {num_counted} images in {num_written} files, "
            f"not of {num_images} in {num_parts}",
            hint="if files were taken away, the same command makes them again",
        )
    progress.complete()
