"""Parquet: a manifest, taken as it is, or any table of images; see `tables` for the columns.

A table may hold the images themselves: the one column with bytes in it, or with structs whose
`bytes` they are, takes the place of the column `image`.
"""

import posixpath
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from cropscore_ray import schema, storage
from cropscore_ray.datasets import manifest
from cropscore_ray.datasets.files import ReadProgress
from cropscore_ray.datasets.manifest import Manifest
from cropscore_ray.datasets.problems import ProblemLog
from cropscore_ray.datasets.records import Scan
from cropscore_ray.datasets.tables import Cells, scan_table
from cropscore_ray.errors import DataError
from cropscore_ray.images.archives import Cell


def scan(table_uri: str, log: ProblemLog, progress: ReadProgress | None = None) -> Scan | Manifest:
    """Read a Parquet file, or all below a folder; DataError if there is none.

    Relative image paths start at the folder of the file, or at the folder given. A
    manifest comes back with its ids and classes; nothing in it is checked again. Other
    tables of cropscore are refused with DataError.
    """
    fields = storage.table_schema(storage.table_files(table_uri, below=True)[0])
    if schema.VERSION_KEY in (fields.metadata or {}):
        # Ours: a manifest, or refused. Boxes of a predictions table are no ground truth.
        return manifest.read_manifest(table_uri)
    names = [field.name for field in fields if not _holds_images(field.type)]
    columns = [field.name for field in fields if _holds_images(field.type)]
    if columns and not {"image", "image_uri"} & set(names):
        return _scan_cells(table_uri, columns, names, log, progress)
    table = storage.read_table(table_uri, names, below=True)
    if progress:
        progress(table.num_rows, table.num_rows)
    folder_uri = table_uri if storage.is_folder(table_uri) else posixpath.dirname(table_uri)
    return scan_table(
        table.column_names, _rows(table), table_uri=table_uri, folder_uri=folder_uri, log=log
    )


def _holds_images(kind: pa.DataType) -> bool:
    """Return whether a column may hold encoded images: bytes, or structs with bytes."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _scan_cells(
    table_uri: str,
    columns: list[str],
    names: list[str],
    log: ProblemLog,
    progress: ReadProgress | None,
) -> Scan:
    """Scan a table that holds the images themselves; their column is not read."""
    if len(columns) > 1:
        raise DataError(
            f"{table_uri}: several columns hold bytes: {', '.join(columns)}",
            hint="leave the one with the images in the table",
        )
    files = storage.table_files(table_uri, below=True)

    def all_rows() -> Iterator[Cells]:
        for number, file in enumerate(files, 1):
            with storage.open_file(file) as stream:
                opened = pq.ParquetFile(stream)
                table = opened.read(columns=names)
                rows = _rows(table) if names else ({} for _ in range(opened.metadata.num_rows))
                for at, cells in enumerate(rows):
                    yield {**cells, "image": Cell(file, at, columns[0]).uri}
            if progress:
                progress(number, len(files))

    scan = scan_table(
        [*names, "image"], all_rows(), table_uri=table_uri, folder_uri=table_uri, log=log
    )
    return replace(scan, files_unseen=False)


def _rows(table: pa.Table) -> Iterator[Cells]:
    for batch in table.to_batches(max_chunksize=65_536):
        yield from batch.to_pylist()
