"""Files and tables on a local disk or in an object store, behind one URI.

A URI is a path, `file://…`, or `s3://bucket/key` (and whatever else pyarrow can open).
S3 obeys the usual AWS settings, AWS_ENDPOINT_URL included. This module does not know
what the tables mean.
"""

import io
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError, ClientError

from cropscore_ray.errors import DataError, StorageError
from cropscore_ray.storage import disk, retries, s3

FILE_SCHEME = "file://"
_READERS = 16
_FIRST_ENTRIES = 10_000
_BUFFER_BYTES = 2**18  # small tables are read at once, with their footer

Result = TypeVar("Result")


def is_remote(uri: str) -> bool:
    """Tell whether a URI names something other than a local path."""
    return "://" in uri and not uri.startswith(FILE_SCHEME)


def absolute_uri(uri: str) -> str:
    """Return the same location, independent of the working directory, without a last slash."""
    if is_remote(uri):
        return uri.rstrip("/")
    return os.path.abspath(uri.removeprefix(FILE_SCHEME))


def join(uri: str, *parts: str) -> str:
    """Return the URI of something inside a folder."""
    return "/".join([uri.rstrip("/"), *parts])


def persistently(uri: str, action: Callable[[], Result]) -> Result:
    """Do something with a file; in the midst of a run a store may be away, and come back.

    What fails on a disk is not tried again: a full one will not pass.
    """
    return retries.persistently(action, lambda error: is_remote(uri) and _may_pass(error))


def _may_pass(error: BaseException) -> bool:
    cause = error.__cause__ or error  # what is missing or denied will stay so
    return isinstance(cause, StorageError) or (
        isinstance(cause, Exception) and s3.is_transient(cause)
    )


@contextmanager
def _explained(action: str, uri: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowInvalid, BotoCoreError, ClientError) as error:
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0][:300]
        hint = "check the path, its permissions and, for s3://, the AWS settings"
        where = getattr(error, "filename", None) or uri  # a folder inside, say
        raise StorageError(f"cannot {action} {where}: {reason}", hint=hint) from error


@cache
def _remote_filesystem(scheme_and_bucket: str) -> pafs.FileSystem:
    s3.ask_plainly()
    return pafs.FileSystem.from_uri(scheme_and_bucket)[0]


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a URI and the path inside it; StorageError if unknown."""
    if not is_remote(uri):
        return pafs.LocalFileSystem(), absolute_uri(uri)
    scheme, _, path = uri.partition("://")
    with _explained("open", uri):
        return _remote_filesystem(f"{scheme}://{path.split('/')[0]}"), path.rstrip("/")


def exists(uri: str) -> bool:
    """Tell whether a file or a folder is there."""
    if uri.startswith(s3.SCHEME):
        with _explained("look at", uri):
            bucket, key = s3.bucket_and_key(uri)
            return bool(key and s3.has_object(bucket, key)) or s3.has_any(*_prefix(uri))
    fs, path = filesystem(uri)
    with _explained("look at", uri):
        return bool(fs.get_file_info(path).type != pafs.FileType.NotFound)


def _prefix(uri: str) -> tuple[str, str]:
    """Return the bucket of an S3 folder, and what the keys below it begin with."""
    bucket, key = s3.bucket_and_key(uri)
    return bucket, f"{key}/" if key else ""


def is_folder(uri: str) -> bool:
    """Tell whether a URI names a folder (on S3: a prefix with something below it)."""
    if uri.startswith(s3.SCHEME):
        with _explained("look at", uri):
            return s3.has_any(*_prefix(uri))
    fs, path = filesystem(uri)
    with _explained("look at", uri):
        return bool(fs.get_file_info(path).type == pafs.FileType.Directory)


def list_files(uri: str) -> list[str]:
    """Return the URIs of all files below a folder, sorted; an empty list if there is none."""
    if uri.startswith(s3.SCHEME):
        return list(iter_files(uri))
    fs, path = filesystem(uri)
    with _explained("list", uri):
        if not is_remote(uri):
            return list(disk.iter_files(path))
        selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
        scheme = uri.partition("://")[0]
        files = [info.path for info in fs.get_file_info(selector) if info.is_file]
        return sorted(f"{scheme}://{file}" for file in files)


def iter_files(uri: str, after: str = "") -> Iterator[str]:
    """Yield the URIs of all files below a folder in order, as they are found.

    `after` is a URI; files up to and with it are passed over. Nothing but a level of folders
    of a disk, and a few thousand names of S3, is in memory.
    """
    with _explained("list", uri):
        if uri.startswith(s3.SCHEME):
            bucket, prefix = _prefix(uri)
            start = s3.bucket_and_key(after)[1] if after else ""
            for key in s3.iter_keys(bucket, prefix, start):
                if not key.endswith("/"):  # an empty object in place of a folder
                    yield f"{s3.SCHEME}{bucket}/{key}"
        elif is_remote(uri):
            yield from (file for file in list_files(uri) if file > after)
        else:
            yield from (file for file in disk.iter_files(absolute_uri(uri)) if file > after)


def file_names_in(uri: str) -> set[str]:
    """Return the names of the files directly below a folder; none if there is none."""
    with _explained("list", uri):
        if uri.startswith(s3.SCHEME):
            bucket, prefix = _prefix(uri)
            level = s3.iter_level(bucket, prefix)
            return {key.removeprefix(prefix) for key, is_folder in level if not is_folder}
        fs, path = filesystem(uri)
        found = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return {one.base_name for one in found if one.is_file}


def iter_folders(uri: str) -> Iterator[str]:
    """Yield the names of the folders directly below a folder, as they are found.

    None if the first 10,000 entries of a prefix of S3 hold none: to find one far behind, all
    files of a flat prefix would have to be listed.
    """
    with _explained("list", uri):
        if uri.startswith(s3.SCHEME):
            level = s3.iter_level(*_prefix(uri))
            first = list(islice(level, _FIRST_ENTRIES))
            if any(is_folder for _, is_folder in first):
                folders = (name for name, is_folder in chain(first, level) if is_folder)
                yield from (name.rstrip("/").rsplit("/", 1)[-1] for name in folders)
        elif is_remote(uri):
            fs, path = filesystem(uri)
            found = fs.get_file_info(pafs.FileSelector(path))
            yield from (one.base_name for one in found if one.type == pafs.FileType.Directory)
        else:
            level = disk.iter_level(absolute_uri(uri))
            yield from (name for name, is_folder in level if is_folder)


def read_bytes(uri: str) -> bytes:
    """Return a file's content; StorageError says why it could not be read."""
    with _explained("read", uri):
        if uri.startswith(s3.SCHEME):
            return s3.read(*s3.bucket_and_key(uri))
        with open_file(uri) as stream:
            return bytes(stream.read())


def open_file(uri: str, *, buffer_bytes: int | None = None) -> IO[bytes]:
    """Open a file to read any part of it; OSError of the usual kinds says why that fails.

    From a store, at least `buffer_bytes` come with each request.
    """
    if not is_remote(uri):
        return open(absolute_uri(uri), "rb")
    if uri.startswith(s3.SCHEME):
        return io.BufferedReader(s3.Reader(*s3.bucket_and_key(uri)), buffer_bytes or _BUFFER_BYTES)
    fs, path = filesystem(uri)
    stream = fs.open_input_file(path)
    found: IO[bytes] = io.BufferedReader(stream, buffer_bytes) if buffer_bytes else stream
    return found


@contextmanager
def _atomic_output(uri: str) -> Iterator[Any]:
    """Open a file that appears whole or not at all.

    An object store shows an object when its upload ends; on a disk the same comes from
    writing beside the target, under a name that Parquet readers pass over, and renaming.
    """
    fs, path = filesystem(uri)
    if is_remote(uri):
        whole = io.BytesIO()  # closing the store's own stream, as an error does, publishes half
        yield whole
        with _explained("write", uri), fs.open_output_stream(path) as stream:
            stream.write(whole.getbuffer())
        return
    target = Path(path)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    with _explained("write", uri):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as stream:
                yield stream
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file so that nobody sees half of it."""
    with _atomic_output(uri) as stream:
        stream.write(data)


def read_json(uri: str) -> Any:
    """Return the value of a JSON file; DataError if it is not JSON."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise DataError(f"{uri}: not JSON: {error}") from error


def write_json(uri: str, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_bytes(uri, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_table(uri: str, table: pa.Table, *, row_group_rows: int | None = None) -> None:
    """Write one Parquet file so that nobody sees half of it."""
    with _atomic_output(uri) as stream:
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
    with _explained("read", file), open_file(file) as stream:
        return pq.read_schema(stream)


def _first_table_in(uri: str) -> str | None:
    level: Iterable[tuple[str, bool]]
    with _explained("list", uri):
        if uri.startswith(s3.SCHEME):
            level = islice(s3.iter_level(*_prefix(uri)), _FIRST_ENTRIES)
        elif is_remote(uri):
            level = ((name, False) for name in file_names_in(uri))
        else:
            level = disk.iter_level(absolute_uri(uri))
        names = (where.rsplit("/", 1)[-1] for where, is_folder in level if not is_folder)
        tables = [name for name in names if name.endswith(".parquet") and name[0] != "."]
        return join(uri, min(tables)) if tables else None


def read_table(uri: str, columns: list[str] | None = None, *, below: bool = False) -> pa.Table:
    """Return a whole Parquet table: the files of `table_files`, in their order."""
    return _joined(uri, read_files(table_files(uri, below=below), columns))


def read_files(files: list[str], columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield columns, all for None, of Parquet files in their order; dozens as one table."""

    def read(file: str) -> pa.Table:
        with _explained("read", file), open_file(file) as stream:
            return pq.ParquetFile(stream).read(columns, use_threads=False)

    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(files), 4 * _READERS):
            some = files[start : start + 4 * _READERS]
            yield _joined(some[0], pool.map(read, some))


def _joined(uri: str, tables: Iterable[pa.Table]) -> pa.Table:
    """Return tables as one; DataError if their columns differ."""
    found = list(tables)
    try:
        return pa.concat_tables(found)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{uri}: its Parquet files have different columns",
            hint="a folder of a table may hold files of that table alone",
        ) from error


def delete_file(uri: str) -> None:
    """Delete a file; StorageError if there is none."""
    fs, path = filesystem(uri)
    with _explained("delete", uri):
        fs.delete_file(path)


def delete_folder(uri: str) -> None:
    """Delete a folder and all below it; nothing happens if there is none."""
    fs, path = filesystem(uri)
    with _explained("delete", uri):
        if exists(uri):
            fs.delete_dir(path)
