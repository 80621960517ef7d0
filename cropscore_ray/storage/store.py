"""What a store can do: the base of all stores, and whatever else pyarrow opens.

`disk` and `s3` replace what pyarrow does otherwise than they need it. A store knows no
table and no lock. What fails in it is an OSError, as on a disk; `explained` makes a message of it.
"""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import IO, Literal

import pyarrow as pa
import pyarrow.fs as pafs
from botocore.exceptions import BotoCoreError, ClientError

from cropscore_ray.errors import StorageError
from cropscore_ray.storage import retries

LockKind = Literal["file", "lease", "none"]


@contextmanager
def explained(action: str, uri: str) -> Iterator[None]:
    """Turn what a store raises in the block into a StorageError that says what to do."""
    try:
        yield
    except (OSError, pa.ArrowInvalid, BotoCoreError, ClientError) as error:
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0][:300]
        hint = "check the path, its permissions and, for s3://, the AWS settings"
        where = getattr(error, "filename", None) or uri  # a folder inside, say
        raise StorageError(f"cannot {action} {where}: {reason}", hint=hint) from error


@cache
def _filesystem(scheme_and_bucket: str) -> pafs.FileSystem:
    return pafs.FileSystem.from_uri(scheme_and_bucket)[0]


class Store:
    """A store that pyarrow opens."""

    is_remote = True
    lock: LockKind = "none"
    """How a folder is held for one run: by the kernel, by an object that is renewed, or not."""
    numbers_errors = False
    """Whether each of its OSErrors has an errno: one without is about a file's content then."""
    most_entries: int | None = None
    """So many entries of a folder are looked at to find a rare one; None: all."""

    def absolute_uri(self, uri: str) -> str:
        """Return the same location, independent of the working directory."""
        return uri.rstrip("/")

    def filesystem(self, uri: str) -> tuple[pafs.FileSystem, str]:
        """Return pyarrow's file system, and the path inside it."""
        scheme, _, path = uri.partition("://")
        with explained("open", uri):
            return _filesystem(f"{scheme}://{path.split('/')[0]}"), path.rstrip("/")

    def exists(self, uri: str) -> bool:
        """Return whether a file or a folder is there."""
        return bool(self._type(uri) != pafs.FileType.NotFound)

    def is_folder(self, uri: str) -> bool:
        """Return whether a folder is there."""
        return bool(self._type(uri) == pafs.FileType.Directory)

    def _type(self, uri: str) -> pafs.FileType:
        fs, path = self.filesystem(uri)
        return fs.get_file_info(path).type

    def iter_files(self, uri: str, after: str) -> Iterator[str]:
        """Yield the URIs of all files below a folder in order, those that follow `after`."""
        fs, path = self.filesystem(uri)
        selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
        scheme = uri.partition("://")[0]
        files = [info.path for info in fs.get_file_info(selector) if info.is_file]
        yield from sorted(file for path in files if (file := f"{scheme}://{path}") > after)

    def file_names_in(self, uri: str) -> set[str]:
        """Return the names of the files directly in a folder; none if there is no folder."""
        fs, path = self.filesystem(uri)
        entries = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return {entry.base_name for entry in entries if entry.is_file}

    def iter_level(self, uri: str) -> Iterator[tuple[str, bool]]:
        """Yield the names directly in a folder, in no order, and whether each is a folder."""
        fs, path = self.filesystem(uri)
        for entry in fs.get_file_info(pafs.FileSelector(path)):
            is_folder = entry.type == pafs.FileType.Directory
            if is_folder or entry.is_file:
                yield entry.base_name, is_folder

    def open_file(self, uri: str, buffer_bytes: int | None = None) -> IO[bytes]:
        """Open a file to read any part of it."""
        fs, path = self.filesystem(uri)
        stream: IO[bytes] = fs.open_input_file(path)
        return io.BufferedReader(stream, buffer_bytes) if buffer_bytes else stream  # type: ignore[type-var]

    def read(
        self, uri: str, start: int = 0, stop: int | None = None, *, most: int | None = None
    ) -> bytes:
        """Return a file's bytes, or those of a part of it, which may be fewer at the end.

        Raises:
            OSError: of errno EFBIG where there are more than `most` bytes.
        """
        with self.open_file(uri) as file:
            if most is not None:
                size = file.seek(0, os.SEEK_END)
                if (stop or size) - start > most:
                    raise OSError(errno.EFBIG, f"{size:,} bytes", uri)
            if start or most is not None:
                file.seek(start)
            return bytes(file.read() if stop is None else file.read(stop - start))

    @contextmanager
    def output(self, uri: str) -> Iterator[IO[bytes]]:
        """Open a file that appears whole or not at all: a store shows an upload that ended."""
        fs, path = self.filesystem(uri)
        whole = io.BytesIO()  # closing the store's own stream, as an error does, publishes half
        yield whole
        with explained("write", uri), fs.open_output_stream(path) as stream:
            stream.write(whole.getbuffer())

    def is_transient(self, error: Exception) -> bool:
        """Return whether the same request may succeed in a while; on a disk, none does."""
        return self.is_remote and retries.is_transient(error)

    def is_damage(self, error: Exception) -> bool:
        """Return whether an error says that a file was read, but makes no sense."""
        if isinstance(error, OSError):  # pyarrow's own have no errno
            return self.numbers_errors and error.errno is None
        return isinstance(error, (pa.ArrowException, KeyError))
