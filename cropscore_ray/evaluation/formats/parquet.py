"""Our own predictions table, wherever it lies: a run folder, its table, or one file."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cropscore_ray import schema, storage
from cropscore_ray.bulk import run_folder
from cropscore_ray.schema import ImageClass


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """A predictions table, with its classes in the metadata, and run.json where there is one."""

    table: pa.Table
    run: dict[str, Any] | None


def read_predictions(uri: str) -> Predictions:
    """Read predictions from a run folder, a folder of Parquet files, or a file.

    Raises:
        DataError: There is no table, or it is not one of predictions.
        StorageError: It cannot be read.
    """
    run = run_folder.read_record(uri) if storage.is_folder(uri) else None
    table_uri = uri if run is None else storage.join(uri, "predictions")
    table = storage.read_table(table_uri)
    schema.check_table(table.schema, schema.PREDICTIONS, table_uri)
    if run is not None and run.get("classes"):
        classes = [ImageClass(id=known["id"], name=known["name"]) for known in run["classes"]]
        table = table.cast(schema.with_classes(table.schema, classes))
    return Predictions(table=table, run=run)
