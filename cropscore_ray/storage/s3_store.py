"""S3 as a store: read by boto3 (`s3`), written through pyarrow."""

import io
from collections.abc import Iterator
from typing import IO

import pyarrow.fs as pafs

from cropscore_ray.storage import s3
from cropscore_ray.storage.store import LockKind, Store

_BUFFER_BYTES = 2**18  # small tables are read at once, with their footer


class S3(Store):
    """The objects of S3; a folder is a prefix that something lies below."""

    lock: LockKind = "lease"
    numbers_errors = True
    most_entries: int | None = 10_000

    def filesystem(self, uri: str) -> tuple[pafs.FileSystem, str]:
        """Return pyarrow's file system, to write with, and the path inside it."""
        s3.ask_plainly()
        return super().filesystem(uri)

    def exists(self, uri: str) -> bool:
        """Return whether there is an object, or one below that prefix."""
        bucket, key = s3.bucket_and_key(uri)
        return bool(key and s3.has_object(bucket, key)) or self.is_folder(uri)

    def is_folder(self, uri: str) -> bool:
        """Return whether there is an object below a prefix."""
        return s3.has_any(*_prefix(uri))

    def iter_files(self, uri: str, after: str) -> Iterator[str]:
        """Yield the URIs of all objects below a prefix in order; a few thousand are in memory."""
        bucket, prefix = _prefix(uri)
        start = s3.bucket_and_key(after)[1] if after else ""
        for key in s3.iter_keys(bucket, prefix, start):
            if not key.endswith("/"):  # an empty object in place of a folder
                yield f"{s3.SCHEME}{bucket}/{key}"

    def file_names_in(self, uri: str) -> set[str]:
        """Return the names of the objects directly below a prefix."""
        return {name for name, is_folder in self.iter_level(uri) if not is_folder}

    def iter_level(self, uri: str) -> Iterator[tuple[str, bool]]:
        """Yield the names directly below a prefix, and whether each is a folder."""
        for key, is_folder in s3.iter_level(*_prefix(uri)):
            yield (key.rstrip("/") if is_folder else key).rsplit("/", 1)[-1], is_folder

    def open_file(self, uri: str, buffer_bytes: int | None = None) -> IO[bytes]:
        """Open an object; at least `buffer_bytes` come with each request."""
        return io.BufferedReader(s3.Reader(*s3.bucket_and_key(uri)), buffer_bytes or _BUFFER_BYTES)

    def read(
        self, uri: str, start: int = 0, stop: int | None = None, *, most: int | None = None
    ) -> bytes:
        """Return an object's bytes, or those of a part of it, with one request."""
        return s3.read(*s3.bucket_and_key(uri), start, stop, most=most)

    def is_transient(self, error: Exception) -> bool:
        """Return whether the same request may succeed in a while."""
        return s3.is_transient(error)


def _prefix(uri: str) -> tuple[str, str]:
    """Return the bucket of a folder, and what the keys below it begin with."""
    bucket, key = s3.bucket_and_key(uri)
    return bucket, f"{key}/" if key else ""
