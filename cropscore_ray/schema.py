"""The tables that stages hand to one another, and the words in their columns.

A table is Parquet with the schema below; the schema version stands in the file's
metadata, so that a reader can refuse what it does not understand.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cropscore_ray.errors import DataError
from cropscore_ray.grid import NUM_SQUARES

SCHEMA_VERSION = "1"
VERSION_KEY = b"cropscore_schema"
CLASSES_KEY = b"classes"

OK = "ok"
STATUSES = {
    OK: "the image was read",
    "missing": "no object at the URI",
    "denied": "the storage refused to hand it out",
    "unreachable": "the storage did not answer, after retries",
    "throttled": "the storage asked for fewer requests, after retries",
    "empty": "the file has no bytes",
    "undecodable": "the bytes are not a whole image",
    "unsupported": "an image or document of a format that is not read",
    "too_large": "more pixels, or bytes, than are safe to decode",
    "crashed": "the process that worked on it died, and again when it was tried alone",
    "no_label": "the class was asked from the manifest, which has none for this image",
}

UNREACHED = frozenset({"unreachable", "throttled"})
"""Nothing was said of the image itself: it may be had another time."""

SIDES = ("xmin", "ymin", "xmax", "ymax")
"""The columns of a box, where each side has a column."""

MANIFEST = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("width_px", pa.int32()),
        pa.field("height_px", pa.int32()),
        pa.field("class_index", pa.int32()),
        pa.field("gt_boxes", pa.list_(pa.list_(pa.float32(), 4))),
        pa.field("split", pa.string()),
    ],
    metadata={VERSION_KEY: SCHEMA_VERSION.encode()},
)

SCORES = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("class_index", pa.int32()),
        pa.field("class_rank", pa.int32()),
        pa.field("scores", pa.list_(pa.float32(), NUM_SQUARES)),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
    ],
    metadata={VERSION_KEY: SCHEMA_VERSION.encode()},
)

PREDICTIONS = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("width_px", pa.int32()),
        pa.field("height_px", pa.int32()),
        pa.field("class_rank", pa.int32()),
        pa.field("class_index", pa.int32()),
        pa.field("class_name", pa.string()),
        pa.field("class_score", pa.float32()),
        *(pa.field(side, pa.float32()) for side in SIDES),
        pa.field("confidence", pa.float32()),
        pa.field("cam_xyxy", pa.list_(pa.float32(), 4)),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
    ],
    metadata={VERSION_KEY: SCHEMA_VERSION.encode()},
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageClass:
    """One class: `id` is the WordNet id or the folder's name, `name` is for people."""

    id: str
    name: str


def with_classes(schema: pa.Schema, classes: list[ImageClass]) -> pa.Schema:
    """Return the schema with the list of classes in its metadata."""
    text = json.dumps([asdict(known) for known in classes], ensure_ascii=False)
    return schema.with_metadata({**(schema.metadata or {}), CLASSES_KEY: text.encode()})


def read_classes(schema: pa.Schema) -> list[ImageClass]:
    """Return the classes that `with_classes` wrote; an empty list where there are none."""
    text = (schema.metadata or {}).get(CLASSES_KEY, b"[]")
    return [ImageClass(id=known["id"], name=known["name"]) for known in json.loads(text)]


def check_table(schema: pa.Schema, expected: pa.Schema, where: str) -> None:
    """Raise DataError unless a table has the expected columns, types and version."""
    version = (schema.metadata or {}).get(VERSION_KEY, b"").decode()
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{where}: this is not a table of cropscore schema {SCHEMA_VERSION}"
            + (f" but of schema {version}" if version else ""),
            hint="make it again with this version of cropscore",
        )
    for field in expected:
        at = schema.get_field_index(field.name)
        kind = schema.field(at).type if at >= 0 else None
        if kind != field.type:
            raise DataError(f"{where}: column {field.name!r} is {kind}, not {field.type}")


def rows_to_table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Build a table of exactly this schema; absent keys become nulls."""
    return pa.Table.from_pylist(rows, schema=schema)


def boxes(table: pa.Table) -> NDArray[np.float64]:
    """Return the boxes in a table's SIDES, (N, 4); NaN where a row has none."""
    return np.stack([table[side].to_numpy() for side in SIDES], axis=1).astype(np.float64)
