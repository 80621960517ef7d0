"""One part of a bulk run on its way: planned and fetched, and counted when it is written.

A part is consecutive rows of the manifest. Between workers it is one row of a table, since a
table of many rows might be cut on its way, and be no part any more.

Nothing here needs torch, which takes seconds to import: fetching has processes of its own.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cropscore_ray import schema, storage
from cropscore_ray.bulk import part_sizes
from cropscore_ray.bulk.run_folder import RunFolder
from cropscore_ray.datasets.listing import GrowingManifest
from cropscore_ray.datasets.manifest import StoredManifest
from cropscore_ray.errors import ImageError, StorageError
from cropscore_ray.images import fetch
from cropscore_ray.images.fetch import Fetched

Row = dict[str, Any]
Group = tuple[list[Row], list[Fetched]]
"""Rows of a part, and the images of each."""

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
    part_images: int | None
    """As `part_sizes.sizes` takes it."""
    folder: RunFolder

    def parts(self) -> Iterator[pa.Table]:
        """Yield each part's rows of the manifest."""
        return self.manifest.batches(part_sizes.sizes(self.part_images))


def as_row(number: int, rows: pa.Table, *, compression: str | None = None) -> pa.Table:
    """Return a part as one row: a block of many rows might be cut, and no longer be a part."""
    sink, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, rows.schema, options=options) as writer:
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
    Small, because Ray keeps them in the command's own memory until they are fetched, and plans
    far ahead of workers that are slow.
    """
    for number, rows in enumerate(_parts(run)):
        if number not in done:
            yield as_row(number, rows, compression="zstd")


def _parts(run: BulkRun) -> Iterator[pa.Table]:
    """Yield each part's rows; where the store was away, the manifest is read once more."""
    parts, num_read = run.parts(), 0

    def next_part() -> pa.Table | None:
        nonlocal parts
        try:
            return next(parts, None)
        except (StorageError, OSError):
            parts = islice(run.parts(), num_read, None)
            raise

    while (rows := storage.persistently(run.manifest.uri, next_part)) is not None:
        num_read += 1
        yield rows


def fetch_part(block: pa.Table) -> pa.Table:
    """Return a part's rows with their images' bytes, or why there are none.

    Rows whose images are too much to travel with the others have neither (`with_images`).
    """
    number, table = from_row(block)
    rows = table.to_pylist()
    fetched = fetch.fetch_group([row["image_uri"] for row in rows])
    _require_an_answer(number, fetched, rows)
    for row, image in zip_longest(rows, fetched):
        error = image if isinstance(image, ImageError) else None
        row |= {
            "data": None if error else image,
            "fetch_status": error.status if error else None,
            "fetch_error": str(error) if error else None,
        }
    return as_row(number, pa.Table.from_pylist(rows, schema=_FETCHED))


def with_images(rows: list[Row]) -> Iterator[Group]:
    """Yield a fetched part's rows and their images, group by group.

    First those that travelled with it, then those that were too much for that, each group
    fetched while that before is in use.
    """
    travelled = [image for image in map(_travelled, rows) if image is not None]
    for fetched in fetch.fetch_ahead([row["image_uri"] for row in rows], travelled):
        group, rows = rows[: len(fetched)], rows[len(fetched) :]
        yield group, fetched


def _travelled(row: Row) -> Fetched | None:
    if row["fetch_status"] is not None:
        return ImageError(row["fetch_status"], row["fetch_error"])
    data: bytes | None = row["data"]
    return data


def _require_an_answer(number: int, fetched: list[Fetched], rows: list[Row]) -> None:
    """Raise StorageError if a store answered for no image of those that travel.

    That is no image's fault. Where it goes away later, the others are rows, to be done again.
    """
    for row, image in zip(rows, fetched, strict=False):
        answered = not isinstance(image, ImageError) or image.status not in schema.UNREACHED
        if answered or not storage.is_remote(row["image_uri"]):
            return
    raise StorageError(f"no image of part {number} could be had; the first: {fetched[0]!s}")


def images_by_status(rows: pa.Table) -> dict[str, int]:
    """Count the images of a table's rows, an image once, by its status."""
    images = rows.group_by("image_id").aggregate([("status", "min")])
    counts = pc.value_counts(images["status_min"]).to_pylist()
    return {count["values"]: count["counts"] for count in counts}


def summary(rows: pa.Table, by_status: dict[str, int]) -> pa.Table:
    """Return what the run's command is to know of a part that is written, as one row."""
    return pa.table({"rows": [len(rows)], "by_status": [json.dumps(by_status)]})
