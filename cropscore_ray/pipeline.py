"""The bulk run on Ray Data: plan -> fetch -> score -> box -> Parquet, as one chain.

The unit that travels is a part: consecutive rows of the manifest, one row of a block from the
plan to the file (run_folder). A part's file has the part's number for a name, so a part that
is done twice leaves one file, and a restart does the parts that have none. Nothing here
computes: the stages of predict.py do. No process holds more of the manifest than a batch.
"""

import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.exceptions import RayError
from ray.util.queue import Queue

from cropscore_ray import fetch, run_folder, runtime, schema, storage
from cropscore_ray.bundle import load_bundle
from cropscore_ray.config import LocalizeConfig
from cropscore_ray.errors import CropscoreError, ImageError, StorageError
from cropscore_ray.manifest import StoredManifest
from cropscore_ray.predict import STAGES
from cropscore_ray.run_folder import RunFolder

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, Counter[str]], None]
"""Called with images done, images in all, and images by status so far."""

_PROGRESS_S = 1.0
_ROW_COLUMNS = ["image_id", "image_uri", "width_px", "height_px", "class_index"]
_FETCHED = pa.schema(
    [
        *(schema.MANIFEST.field(name) for name in _ROW_COLUMNS),
        pa.field("data", pa.large_binary()),
        pa.field("fetch_status", pa.string()),
        pa.field("fetch_error", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BulkRun:
    """What the workers of one run must know; travels with every task."""

    command: str
    """A key of predict.STAGES."""
    model_uri: str
    manifest: StoredManifest
    config: LocalizeConfig
    class_map: list[int | None]
    """The model's index of each of the manifest's classes, None where it has none."""
    folder: RunFolder


def run_parts(run: BulkRun, *, progress: Progress | None = None) -> None:
    """Do every part of a run that is not done yet, and complete its run.json.

    Args:
        run: what to do.
        progress: told as images are scored and parts are written.

    Raises:
        CropscoreError: a worker failed; what is written stays, the same command goes on.
    """
    began = time.monotonic()
    num_images, size = run.manifest.num_images, run.config.part_images
    num_parts = -(-num_images // size)
    done = frozenset(run.folder.done_parts())
    num_done = sum(min(size, num_images - number * size) for number in done if number < num_parts)
    tally = _Tally(num_done=num_done, num_images=num_images, progress=progress)
    try:
        if len(done) < num_parts:
            runtime.connect()
            with runtime.events(tally.count_images) as queue:
                for summary in _chain(run, done, num_parts - len(done), queue).iter_rows():
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
    _complete(run.folder, num_images)
    rate = (num_images - num_done) / max(wall_s, 1e-9)
    logger.info("%s: %d images, %.2f images/s", run.command, num_images - num_done, rate)


@dataclass
class _Tally:
    """Images done: by status where their part is written, and by number as they are scored."""

    num_done: int
    num_images: int
    progress: Progress | None
    num_scored: int = 0
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
        if self.progress:
            written = self.by_status.total()
            # A part that is done twice is scored twice; only what is written can be the end.
            ahead = min(self.num_scored, self.num_images - self.num_done - 1)
            self.progress(self.num_done + max(written, ahead), self.num_images, self.by_status)


def _chain(run: BulkRun, done: frozenset[int], num_todo: int, queue: Queue) -> ray.data.Dataset:
    """Return the lazy chain over the parts; its rows are summaries of written parts."""
    context = DataContext.get_current()
    context.execution_options.verbose_progress = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # waiting for GPU nodes is no failure
    # Each row is handed on as it comes, a block of its own: the plan would else be one block.
    context.target_max_block_size = 1
    gpus = runtime.num_gpus()
    pool = min(num_todo, gpus or runtime.num_nodes())
    resources = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 1}
    return (
        ray.data.from_items([{"plan": 0}])
        .map_batches(plan_parts, fn_args=(run, done), batch_format="pyarrow", num_cpus=0)
        .map_batches(
            fetch_part,
            fn_args=(run,),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0.5,
            compute=TaskPoolStrategy(size=min(num_todo, 2 * pool)),  # parts may be large
        )
        .map_batches(
            StageActor,
            fn_constructor_args=(run, queue),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=pool),
            **resources,
        )
        .map_batches(
            write_part, fn_args=(run,), batch_size=None, batch_format="pyarrow", num_cpus=0.5
        )
    )


def _as_row(number: int, rows: pa.Table) -> pa.Table:
    """Return a part as one row: a block of many rows might be cut, and no longer be a part."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    data = sink.getvalue()
    ends = pa.py_buffer(np.array([0, data.size], np.int64))
    data = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, data])  # without a copy
    return pa.table({"part": pa.array([number], pa.int64()), "rows": data})


def _from_row(block: pa.Table) -> tuple[int, pa.Table]:
    [number], [data] = block["part"].to_pylist(), block["rows"]
    return number, pa.ipc.open_stream(data.as_buffer()).read_all()


def plan_parts(_: pa.Table, run: BulkRun, done: frozenset[int]) -> Iterator[pa.Table]:
    """Yield the parts that are not done: their numbers and rows of the manifest.

    The same whenever it is called with the same arguments, as Ray does when its node is lost.
    """
    for number, rows in enumerate(run.manifest.batches(run.config.part_images)):
        if number not in done:
            yield _as_row(number, rows.select(_ROW_COLUMNS))


def fetch_part(block: pa.Table, run: BulkRun) -> pa.Table:
    """Return a part's rows with their images' bytes, or why there are none."""
    number, table = _from_row(block)
    rows = table.to_pylist()
    fetched = fetch.fetch_images(row["image_uri"] for row in rows)
    for row, one in zip(rows, fetched, strict=True):
        error = one if isinstance(one, ImageError) else None
        index = row["class_index"]
        row |= {
            "class_index": None if index is None else run.class_map[index],
            "data": None if error else one,
            "fetch_status": error.status if error else None,
            "fetch_error": str(error) if error else None,
        }
    return _as_row(number, pa.Table.from_pylist(rows, schema=_FETCHED))


class StageActor:
    """One model on one GPU (or on one node's cores): a part's rows in, table rows out."""

    def __init__(self, run: BulkRun, queue: Queue) -> None:
        self.queue = queue
        if not torch.cuda.is_available():
            torch.set_num_threads(os.cpu_count() or 1)  # Ray sets one thread a CPU asked for
        self.stage = STAGES[run.command](load_bundle(run.model_uri), run.config)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the part's rows of the run's table."""
        number, table = _from_row(block)
        rows = table.to_pylist()
        fetched = [
            row["data"]
            if row["fetch_status"] is None
            else ImageError(row["fetch_status"], row["fetch_error"])
            for row in rows
        ]
        found = schema.rows_to_table(list(self._rows(rows, fetched)), self.stage.schema)
        return _as_row(number, found)

    def _rows(
        self, rows: list[dict[str, Any]], fetched: list[bytes | ImageError]
    ) -> Iterator[dict[str, Any]]:
        """Yield the part's rows, and tell now and then how many images they are."""
        told, told_s = 0, time.monotonic()
        for number, image in enumerate(self.stage.by_image(rows, fetched), 1):
            yield from image
            if number == len(rows) or time.monotonic() - told_s > _PROGRESS_S:
                runtime.tell(self.queue, number - told)
                told, told_s = number, time.monotonic()


def write_part(block: pa.Table, run: BulkRun) -> pa.Table:
    """Write a part's rows as its file; return a summary of one row."""
    number, rows = _from_row(block)
    storage.write_table(run.folder.part_uri(number), rows)
    by_status = _images_by_status(rows)
    return pa.table({"images": [sum(by_status.values())], "by_status": [json.dumps(by_status)]})


def _images_by_status(rows: pa.Table) -> dict[str, int]:
    images = rows.group_by("image_id").aggregate([("status", "min")])
    counts = pc.value_counts(images["status_min"]).to_pylist()
    return {one["values"]: one["counts"] for one in counts}


def _complete(folder: RunFolder, num_images: int) -> None:
    rows = storage.read_table(folder.table_uri, columns=["image_id", "status"])
    by_status = _images_by_status(rows)
    if sum(by_status.values()) != num_images:
        raise StorageError(
            f"{folder.table_uri} has rows of {sum(by_status.values())} images, not {num_images}",
            hint="if files were taken away, the same command makes them again",
        )
    folder.update(
        counts={"images": sum(by_status.values()), "rows": len(rows), "by_status": by_status},
        times={**folder.record["times"], "finished_at": run_folder.now()},
        complete=True,
    )
