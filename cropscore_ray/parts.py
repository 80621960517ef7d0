"""One part of a bulk run on a worker: planned, fetched, scored, written.

A part is consecutive rows of the manifest. Between workers it is one row of a table, since a
table of many rows might be cut on its way, and be no part any more.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from cropscore_ray import fetch, retries, runtime, schema, storage
from cropscore_ray.attempts import Attempt
from cropscore_ray.bundle import load_bundle
from cropscore_ray.config import LocalizeConfig
from cropscore_ray.errors import ImageError, StorageError
from cropscore_ray.fetch import Fetched
from cropscore_ray.listing import GrowingManifest
from cropscore_ray.manifest import StoredManifest
from cropscore_ray.predict import ScoreStage
from cropscore_ray.run_folder import RunFolder
from cropscore_ray.runtime import Handle
from cropscore_ray.telemetry import WorkerTelemetry

Row = dict[str, Any]

_PROGRESS_S = 1.0
_FETCHED = pa.schema(
    [
        *schema.MANIFEST,
        pa.field("data", pa.large_binary()),
        pa.field("fetch_status", pa.string()),
        pa.field("fetch_error", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BulkRun:
    """What the workers of one run must know; travels with every task."""

    command: str
    manifest: StoredManifest | GrowingManifest
    part_images: int
    folder: RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """What an actor does with a part's images."""

    stage: type[ScoreStage]
    model_uri: str
    config: LocalizeConfig
    class_map: list[int | None]
    """The model's index of each of the manifest's classes, None where it has none."""


def as_row(number: int, rows: pa.Table) -> pa.Table:
    """Return a part as one row: a block of many rows might be cut, and no longer be a part."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    data = sink.getvalue()
    ends = pa.py_buffer(np.array([0, data.size], np.int64))
    data = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, data])  # without a copy
    return pa.table({"part": pa.array([number], pa.int64()), "rows": data})


def from_row(block: pa.Table) -> tuple[int, pa.Table]:
    """Return a part's number and rows."""
    [number], [data] = block["part"].to_pylist(), block["rows"]
    return number, pa.ipc.open_stream(data.as_buffer()).read_all()


def plan_parts(_: pa.Table, run: BulkRun, done: frozenset[int]) -> Iterator[pa.Table]:
    """Yield the parts that are not done: their numbers and rows of the manifest.

    The same whenever it is called with the same arguments, as Ray does when its node is lost.
    """
    for number, rows in enumerate(run.manifest.batches(run.part_images)):
        if number not in done:
            yield as_row(number, rows)


def fetch_part(block: pa.Table) -> pa.Table:
    """Return a part's rows with their images' bytes, or why there are none."""
    number, table = from_row(block)
    rows = table.to_pylist()
    fetched = fetch.fetch_images(row["image_uri"] for row in rows)
    _require_an_answer(number, fetched, rows)
    for row, one in zip(rows, fetched, strict=True):
        error = one if isinstance(one, ImageError) else None
        row |= {
            "data": None if error else one,
            "fetch_status": error.status if error else None,
            "fetch_error": str(error) if error else None,
        }
    return as_row(number, pa.Table.from_pylist(rows, schema=_FETCHED))


def _require_an_answer(number: int, fetched: list[Fetched], rows: list[Row]) -> None:
    """Raise StorageError if a store answered for no image of a part: that is no image's fault."""
    for row, one in zip(rows, fetched, strict=True):
        answered = not isinstance(one, ImageError) or one.status not in ("unreachable", "throttled")
        if answered or not storage.is_remote(row["image_uri"]):
            return
    raise StorageError(f"no image of part {number} could be had; the first: {fetched[0]!s}")


class StageActor:
    """One model on one GPU (or on one node's cores): a part's rows in, table rows out."""

    def __init__(self, scoring: Scoring, run_uri: str, queue: Handle, attempts: Handle) -> None:
        self.telemetry = WorkerTelemetry(queue, run_uri)
        self.attempts = attempts
        if not torch.cuda.is_available():
            torch.set_num_threads(os.cpu_count() or 1)  # Ray sets one thread a CPU asked for
        self.stage = scoring.stage(load_bundle(scoring.model_uri), scoring.config)
        self.class_map = scoring.class_map
        self.told_s = time.monotonic()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the part's rows of the run's table."""
        self._tell(0, busy=False)
        number, table = from_row(block)
        rows = table.to_pylist()
        for row in rows:
            index = row["class_index"]
            row["class_index"] = None if index is None else self.class_map[index]
        attempt: Attempt = runtime.ask(self.attempts.begin, number)
        fetched = [_fetched(row, attempt) for row in rows]
        seen = self._one_by_one if attempt.one_by_one else self._together
        found = list(self._counted(seen(number, rows, fetched), len(rows)))
        runtime.ask(self.attempts.end, number)
        found_rows = schema.rows_to_table(found, self.stage.schema)
        self.telemetry.did(images_by_status(found_rows))
        self._tell(0, busy=True)
        return as_row(number, found_rows)

    def _together(self, _: int, rows: list[Row], fetched: list[Fetched]) -> Iterator[list[Row]]:
        return self.stage.by_image(rows, fetched)

    def _one_by_one(
        self, number: int, rows: list[Row], fetched: list[Fetched]
    ) -> Iterator[list[Row]]:
        """Yield the same, after telling which image is next: it may be the last thing told."""
        for row, one in zip(rows, fetched, strict=True):
            runtime.ask(self.attempts.at, number, row["image_id"])
            yield from self.stage.by_image([row], [one])

    def _counted(self, images: Iterator[list[Row]], num_images: int) -> Iterator[Row]:
        """Yield the rows of the images, and tell now and then how many images they are."""
        told = 0
        for number, rows in enumerate(images, 1):
            yield from rows
            if number == num_images or time.monotonic() - self.told_s > _PROGRESS_S:
                self._tell(number - told, busy=True)
                told = number

    def _tell(self, num_images: int, *, busy: bool) -> None:
        """Tell of images and of the time since it was told of any."""
        since_s, self.told_s = time.monotonic() - self.told_s, time.monotonic()
        busy_s, idle_s = (since_s, 0.0) if busy else (0.0, since_s)
        self.telemetry.worked(num_images, busy_s=busy_s, idle_s=idle_s)


def _fetched(row: Row, attempt: Attempt) -> Fetched:
    if row["image_id"] in attempt.crashed:
        return ImageError("crashed", f"{row['image_uri']}: its process died at it, twice")
    if row["fetch_status"] is not None:
        return ImageError(row["fetch_status"], row["fetch_error"])
    data: bytes = row["data"]
    return data


def write_part(block: pa.Table, run: BulkRun) -> pa.Table:
    """Write a part's rows as its file; return a summary of one row."""
    number, rows = from_row(block)
    write_persistently(run.folder.part_uri(number), partial(storage.write_table, table=rows))
    by_status = images_by_status(rows)
    return pa.table({"rows": [len(rows)], "by_status": [json.dumps(by_status)]})


def write_persistently(uri: str, write: Callable[[str], None]) -> None:
    """Write a file of a part; a store may come back, a full disk will not pass."""
    retries.persistently(
        partial(write, uri),
        lambda error: isinstance(error, StorageError) and storage.is_remote(uri),
    )


def images_by_status(rows: pa.Table) -> dict[str, int]:
    """Count the images of a table's rows, an image once, by its status."""
    images = rows.group_by("image_id").aggregate([("status", "min")])
    counts = pc.value_counts(images["status_min"]).to_pylist()
    return {one["values"]: one["counts"] for one in counts}
