"""A local disk as a store; a file's URI is its path, with or without `file://`."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow.fs as pafs

from cropscore_ray.storage.store import LockKind, Store, explained

FILE_SCHEME = "file://"


class Disk(Store):
    """A disk: what fails there is not tried again, as a full disk will not pass."""

    is_remote = False
    lock: LockKind = "file"
    numbers_errors = True

    def absolute_uri(self, uri: str) -> str:
        """Return the absolute path."""
        return os.path.abspath(uri.removeprefix(FILE_SCHEME))

    def filesystem(self, uri: str) -> tuple[pafs.FileSystem, str]:
        """Return pyarrow's file system, and the absolute path."""
        return pafs.LocalFileSystem(), self.absolute_uri(uri)

    def iter_files(self, uri: str, after: str) -> Iterator[str]:
        """Yield the files below a folder in the order of their whole names, as they are found.

        Links to nothing and odd names too. A level of folders is in memory.
        """
        folder = self.absolute_uri(uri)
        files = _files_below(folder, {os.path.realpath(folder)})
        yield from (file for file in files if file > after)

    def iter_level(self, uri: str) -> Iterator[tuple[str, bool]]:
        """Yield the names directly in a folder, as they are found; also odd ones."""
        with os.scandir(self.absolute_uri(uri)) as entries:
            yield from ((entry.name, _is_folder(entry)) for entry in entries)

    def open_file(self, uri: str, buffer_bytes: int | None = None) -> IO[bytes]:
        """Open a file to read any part of it; the buffer is Python's own."""
        del buffer_bytes
        return open(self.absolute_uri(uri), "rb")

    @contextmanager
    def output(self, uri: str) -> Iterator[IO[bytes]]:
        """Open a file beside the target, which is renamed at the end.

        Readers of Parquet pass over its name.
        """
        target = Path(self.absolute_uri(uri))
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        with explained("write", uri):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as stream:
                    yield stream
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)


def _files_below(folder: str, seen: set[str]) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                f"{entry.name}/" if _is_folder(entry) else entry.name for entry in entries
            )
    except FileNotFoundError:  # taken away since it was seen, as objects of S3 may be
        return
    for name in names:
        path = os.path.join(folder, name)
        if not name.endswith("/"):
            yield path
            continue
        real_path = os.path.realpath(path)
        if real_path not in seen:  # a link to a folder above would be walked for ever
            seen.add(real_path)
            yield from _files_below(path.rstrip("/"), seen)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere: its reader will say so
        return False
