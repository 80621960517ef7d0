"""Files on a local disk or in an object store, behind one URI.

A URI is a path, `file://…`, or `s3://bucket/key` (and whatever else pyarrow can open).
S3 obeys the usual AWS settings, AWS_ENDPOINT_URL included. This module does not know
what is in the files.
"""

import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import IO, Any, TypeVar

import pyarrow.fs as pafs

from cropscore_ray.errors import DataError, StorageError
from cropscore_ray.storage import retries, s3
from cropscore_ray.storage.disk import FILE_SCHEME, Disk
from cropscore_ray.storage.store import Store, explained

Result = TypeVar("Result")

_DISK, _S3, _OTHER = Disk(), s3.S3(), Store()


def store_of(uri: str) -> Store:
    """Return the store that a URI is of: here alone its scheme is looked at."""
    if uri.startswith(s3.SCHEME):
        return _S3
    return _OTHER if "://" in uri and not uri.startswith(FILE_SCHEME) else _DISK


def is_remote(uri: str) -> bool:
    """Return whether a URI names something other than a local path."""
    return store_of(uri).is_remote


def absolute_uri(uri: str) -> str:
    """Return the same location, independent of the working directory, without a last slash."""
    return store_of(uri).absolute_uri(uri)


def join(uri: str, *parts: str) -> str:
    """Return the URI of something inside a folder."""
    return "/".join([uri.rstrip("/"), *parts])


def persistently(uri: str, action: Callable[[], Result]) -> Result:
    """Do something with a file; in the midst of a run a store may be away, and come back.

    What fails on a disk is not tried again: a full one will not pass.
    """
    store = store_of(uri)

    def may_pass(error: Exception) -> bool:
        cause = error.__cause__ or error  # what is missing or denied will stay so
        is_unexplained = store.is_remote and isinstance(cause, StorageError)
        return is_unexplained or (isinstance(cause, Exception) and store.is_transient(cause))

    return retries.persistently(action, may_pass)


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a URI and the path inside it; StorageError if unknown."""
    return store_of(uri).filesystem(uri)


def exists(uri: str) -> bool:
    """Return whether a file or a folder is there."""
    with explained("look at", uri):
        return store_of(uri).exists(uri)


def is_folder(uri: str) -> bool:
    """Return whether a URI names a folder (on S3: a prefix with something below it)."""
    with explained("look at", uri):
        return store_of(uri).is_folder(uri)


def list_files(uri: str) -> list[str]:
    """Return the URIs of all files below a folder, sorted; an empty list if there is none."""
    return list(iter_files(uri))


def iter_files(uri: str, after: str = "") -> Iterator[str]:
    """Yield the URIs of all files below a folder in order, as they are found.

    `after` is a URI; files up to and with it are passed over. Nothing but a level of folders
    of a disk, and a few thousand names of S3, is in memory.
    """
    with explained("list", uri):
        yield from store_of(uri).iter_files(uri, after)


def file_names_in(uri: str) -> set[str]:
    """Return the names of the files directly below a folder; none if there is none."""
    with explained("list", uri):
        return store_of(uri).file_names_in(uri)


def iter_folders(uri: str) -> Iterator[str]:
    """Yield the names of the folders directly below a folder, as they are found.

    None if the first 10,000 entries of a prefix of S3 hold none: to find one far behind, all
    files of a flat prefix would have to be listed.
    """
    store = store_of(uri)
    with explained("list", uri):
        level = store.iter_level(uri)
        first = list(islice(level, store.most_entries or 0))
        if not first or any(is_folder for _, is_folder in first):
            yield from (name for name, is_folder in chain(first, level) if is_folder)


def read_bytes(uri: str) -> bytes:
    """Return a file's content; StorageError says why it could not be read."""
    with explained("read", uri):
        return store_of(uri).read(uri)


def open_file(uri: str, *, buffer_bytes: int | None = None) -> IO[bytes]:
    """Open a file to read any part of it; OSError of the usual kinds says why that fails.

    From a store, at least `buffer_bytes` come with each request.
    """
    return store_of(uri).open_file(uri, buffer_bytes)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file so that nobody sees half of it."""
    with store_of(uri).output(uri) as stream:
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


def delete_file(uri: str) -> None:
    """Delete a file; StorageError if there is none."""
    fs, path = filesystem(uri)
    with explained("delete", uri):
        fs.delete_file(path)


def delete_folder(uri: str) -> None:
    """Delete a folder and all below it; nothing happens if there is none."""
    fs, path = filesystem(uri)
    with explained("delete", uri):
        if exists(uri):
            fs.delete_dir(path)
