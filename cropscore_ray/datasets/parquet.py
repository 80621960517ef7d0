"""Parquet: a manifest, taken as it is, or any table of images; see `tables` for the columns."""

import posixpath
from collections.abc import Iterator

import pyarrow as pa

from cropscore_ray import manifest, schema, storage
from cropscore_ray.datasets.files import Progress
from cropscore_ray.datasets.records import Scan
from cropscore_ray.datasets.report import ProblemLog
from cropscore_ray.datasets.tables import Cells, scan_table
from cropscore_ray.manifest import Manifest


def scan(table_uri: str, log: ProblemLog, progress: Progress | None = None) -> Scan | Manifest:
    """Read a Parquet file, or all below a folder; DataError if there is none.

    Relative image paths start at the folder of the file, or at the folder given. A
    manifest comes back with its ids and classes; nothing in it is checked again. Other
    tables of cropscore are refused with DataError.
    """
    if schema.VERSION_KEY in (storage.open_table(table_uri).schema.metadata or {}):
        # Ours: a manifest, or refused. Boxes of a predictions table are no ground truth.
        return manifest.read_manifest(table_uri)
    table = storage.read_table(table_uri)
    if progress:
        progress(table.num_rows, table.num_rows)
    folder_uri = table_uri if storage.is_folder(table_uri) else posixpath.dirname(table_uri)
    return scan_table(
        table.column_names, _rows(table), table_uri=table_uri, folder_uri=folder_uri, log=log
    )


def _rows(table: pa.Table) -> Iterator[Cells]:
    for batch in table.to_batches(max_chunksize=65_536):
        yield from batch.to_pylist()
