"""Tables in Parquet files, of one file or of a folder of them.

This module does not know what the tables mean.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from cropscore_ray.errors import DataError
from cropscore_ray.storage.files import exists, file_names_in, is_folder, join, list_files, store_of
from cropscore_ray.storage.store import explained

_READERS = 16


def write_table(uri: str, table: pa.Table, *, row_group_rows: int | None = None) -> None:
    """Write one Parquet file so that nobody sees half of it."""
    with store_of(uri).output(uri) as stream:
        pq.write_table(table, stream, row_group_size=row_group_rows, compression="zstd")


def table_files(uri: str, *, below: bool = False) -> list[str]:
    """Return the URIs of a table's Parquet files, sorted: the file itself, or those in a folder.

    With `below`, those in folders of the folder too, which others write.
    """
    files = [uri]
    if is_folder(uri):
        files = list_files(uri) if below else sorted(join(uri, name) for name in file_names_in(uri))
    files = [file for file in files if file.endswith(".parquet") and "/." not in file[len(uri) :]]
    if not files or not exists(files[0]):
        raise DataError(f"{uri}: no Parquet table here", hint="check the path")
    return files


def table_schema(uri: str) -> pa.Schema:
    """Return the schema of a Parquet file, or of the first one that lies directly in a folder.

    Only the first 10,000 entries of a prefix of S3 are looked at.

    Raises:
        DataError: there is none.
    """
    file = uri if not is_folder(uri) else _first_table_in(uri)
    if file is None or not file.endswith(".parquet") or not exists(file):
        raise DataError(f"{uri}: no Parquet table here", hint="check the path")
    with explained("read", file), store_of(file).open_file(file) as stream:
        return pq.read_schema(stream)


def _first_table_in(uri: str) -> str | None:
    store = store_of(uri)
    with explained("list", uri):
        level = islice(store.iter_level(uri), store.most_entries)
        names = [name for name, is_folder in level if not is_folder and name.endswith(".parquet")]
        return min((join(uri, name) for name in names if name[0] != "."), default=None)


def read_table(uri: str, columns: list[str] | None = None, *, below: bool = False) -> pa.Table:
    """Return a whole Parquet table: the files of `table_files`, in their order."""
    return _joined(uri, read_files(table_files(uri, below=below), columns))


def read_files(files: list[str], columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield columns, all for None, of Parquet files in their order; dozens as one table."""

    def read(file: str) -> pa.Table:
        with explained("read", file), store_of(file).open_file(file) as stream:
            return pq.ParquetFile(stream).read(columns, use_threads=False)

    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(files), 4 * _READERS):
            some = files[start : start + 4 * _READERS]
            yield _joined(some[0], pool.map(read, some))


def _joined(uri: str, parts: Iterable[pa.Table]) -> pa.Table:
    """Return tables as one; DataError if their columns differ."""
    tables = list(parts)
    try:
        return pa.concat_tables(tables)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{uri}: its Parquet files have different columns",
            hint="a folder of a table may hold files of that table alone",
        ) from error
