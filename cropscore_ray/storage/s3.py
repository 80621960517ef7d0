"""S3 as a store: read by boto3, written through pyarrow.

pyarrow's own S3 knows no buckets whose readers pay, and takes throttling for a missing file.
"""

import errno
import io
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import IO, Any

import boto3
import pyarrow.fs as pafs
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

from cropscore_ray.storage import retries
from cropscore_ray.storage.store import LockKind, Store

CONNECTIONS = 32
SCHEME = "s3://"
_BUFFER_BYTES = 2**18  # small tables are read at once, with their footer
_making = threading.Lock()  # in turn: threads that began together would each make one


def client() -> Any:
    """Return this process's client: thread-safe, obeys AWS_ENDPOINT_URL and the like."""
    with _making:
        return _client(os.getpid())


@cache
def _client(process_id: int) -> Any:
    """Make one client a process, not shared with forks."""
    del process_id
    # Who gets no answer from a cloud machine's own service would ask for ever without a signature.
    os.environ.setdefault("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "3")
    session = boto3.Session()
    # What is public can be read without credentials, but only without a signature.
    signature = UNSIGNED if session.get_credentials() is None else None
    config = Config(
        signature_version=signature,
        retries={"mode": "standard", "total_max_attempts": 2},  # storage.retries has more
        max_pool_connections=CONNECTIONS,
        connect_timeout=10,
        read_timeout=60,
    )
    ask_plainly()
    return session.client("s3", config=config)


def ask_plainly() -> None:
    """Have this process, and those that it starts, send no more checksums than they must.

    Stores other than Amazon's refuse the trailing ones that newer SDKs add by default.
    """
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_REQUIRED")


def payer() -> dict[str, str]:
    """Return what a read of a requester-pays bucket needs, if AWS_REQUEST_PAYER says so."""
    who = os.environ.get("AWS_REQUEST_PAYER")
    return {"RequestPayer": who} if who else {}


def code_of(error: ClientError) -> str:
    """Return the word or number that S3 answered with."""
    return str(error.response.get("Error", {}).get("Code", ""))


_PAGES = 10
_LISTERS = 16
_LARGE_FOLDER_KEYS = 64  # from so many on, a folder each for 16 is faster than page after page


def iter_keys(bucket: str, prefix: str, after: str = "") -> Iterator[str]:
    """Yield the keys below a prefix in order, from the one that follows `after` on.

    What looks like folders is listed side by side, ahead of its turn: the first pages of each;
    what has more pages than that is listed on in the same way when it is its turn.
    """
    with ThreadPoolExecutor(_LISTERS, thread_name_prefix="list") as pool:
        yield from _keys_below(pool, bucket, prefix, after)


def _keys_below(pool: ThreadPoolExecutor, bucket: str, prefix: str, after: str) -> Iterator[str]:
    ahead: deque[Callable[[], Iterator[str]]] = deque()
    for name, is_folder in iter_level(bucket, prefix, after):
        if is_folder:
            first = pool.submit(_first_keys, bucket, name, after)
            ahead.append(partial(_keys_of_folder, pool, bucket, name, first))
        else:
            ahead.append(partial(iter, [name]))
        if len(ahead) > 4 * _LISTERS:
            yield from ahead.popleft()()
    for keys in ahead:
        yield from keys()


def iter_level(bucket: str, prefix: str, after: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the keys and, as keys with a / at their end, the folders directly below a prefix.

    Those from `after` on, and the folder in which that lies.
    """
    # Of a folder that begins before the start of a listing, stores show nothing.
    inside, slash, _ = after.removeprefix(prefix).partition("/")
    start = f"{prefix}{inside}" if slash else after
    for page in _pages(bucket, prefix, start, one_level=True):
        keys = [(entry["Key"], False) for entry in page.get("Contents", [])]
        folders = [(entry["Prefix"], True) for entry in page.get("CommonPrefixes", [])]
        for name, is_folder in sorted(keys + folders):
            if name > after or (is_folder and after.startswith(name)):
                yield name, is_folder


def _keys_of_folder(
    pool: ThreadPoolExecutor, bucket: str, prefix: str, first: Future[tuple[list[str], bool]]
) -> Iterator[str]:
    keys, has_more = first.result()
    yield from keys
    if has_more and _has_large_folders(prefix, keys):
        yield from _keys_below(pool, bucket, prefix, keys[-1])
    elif has_more:
        for page in _pages(bucket, prefix, keys[-1]):
            yield from (entry["Key"] for entry in page.get("Contents", []))


def _has_large_folders(prefix: str, keys: list[str]) -> bool:
    """Return whether the folders of a folder are worth a request each, by its first keys."""
    inside = [key.removeprefix(prefix).partition("/") for key in keys]
    folders = {name for name, slash, _ in inside if slash}
    return len(folders) * _LARGE_FOLDER_KEYS <= len(keys)


def _first_keys(bucket: str, prefix: str, after: str) -> tuple[list[str], bool]:
    """Return the keys of the first pages below a prefix, and whether there are more."""
    keys: list[str] = []
    for page in itertools.islice(_pages(bucket, prefix, after), _PAGES):
        keys += [entry["Key"] for entry in page.get("Contents", [])]
    return keys, bool(page.get("IsTruncated")) and bool(keys)


def _pages(
    bucket: str, prefix: str, after: str, *, one_level: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield the pages of a listing; a page that the store has no time for is asked for again."""
    where = {"Bucket": bucket, "Prefix": prefix, "StartAfter": after, **payer()}
    where |= {"Delimiter": "/"} if one_level else {}
    while True:
        ask = partial(client().list_objects_v2, **where)
        page: dict[str, Any] = retries.persistently(ask, is_transient)
        yield page
        if not page.get("IsTruncated"):
            return
        where["ContinuationToken"] = page["NextContinuationToken"]


def num_bytes(bucket: str, key: str) -> int:
    """Return an object's size; OSError of the usual kinds."""
    with _as_on_a_disk(bucket, key):
        return int(client().head_object(Bucket=bucket, Key=key, **payer())["ContentLength"])


def read(
    bucket: str, key: str, start: int = 0, stop: int | None = None, *, most: int | None = None
) -> bytes:
    """Return an object's bytes, or those of a part of it, which may be fewer at the end.

    Raises:
        OSError: as a disk would: FileNotFoundError, PermissionError; errno EBUSY where the store
            asks for fewer requests, EFBIG where there are more than `most` bytes, else EIO.
    """
    last = "" if stop is None else stop - 1
    part = {"Range": f"bytes={start}-{last}"} if start or stop is not None else {}
    with _as_on_a_disk(bucket, key):
        try:
            answer = client().get_object(Bucket=bucket, Key=key, **part, **payer())
        except ClientError as error:
            if code_of(error) in ("InvalidRange", "416"):
                return b""
            raise
        if most is not None and answer.get("ContentLength", 0) > most:
            answer["Body"].close()
            size = f"{answer['ContentLength']:,} bytes"
            raise OSError(errno.EFBIG, size, f"{SCHEME}{bucket}/{key}")
        return bytes(answer["Body"].read())


class Reader(io.RawIOBase):
    """An object as a file to be read, a request for each read; best with a buffer around it."""

    def __init__(self, bucket: str, key: str) -> None:
        self._bucket, self._key = bucket, key
        self._size = num_bytes(bucket, key)
        self._at = 0

    def readable(self) -> bool:
        """Return True, as `seekable` does."""
        return True

    seekable = readable

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, and return it."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, or what there is of it."""
        stop = min(self._at + len(buffer), self._size)
        data = read(self._bucket, self._key, self._at, stop) if self._at < stop else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


_CODES = {
    errno.ENOENT: "NoSuchKey NoSuchBucket 404 NotFound",
    errno.EBUSY: "SlowDown 503 429 Throttling TooManyRequests RequestLimitExceeded",
    errno.EIO: "InternalError 500 502 504 ServiceUnavailable RequestTimeout "
    "ExpiredToken InvalidToken TokenRefreshRequired RequestTimeTooSkewed",  # to be refreshed
}
_ERRNOS = {code: number for number, codes in _CODES.items() for code in codes.split()}


@contextmanager
def _as_on_a_disk(bucket: str, key: str) -> Iterator[None]:
    """Raise what a disk would in place of what S3 answers."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        code = f"{code_of(error)}: " if isinstance(error, ClientError) else ""
        raise OSError(_errno(error), f"{code}{error}", f"{SCHEME}{bucket}/{key}") from error


def _errno(error: Exception) -> int:
    if isinstance(error, ClientError):  # what is not listed was said of this object, and stands
        return _ERRNOS.get(code_of(error), errno.EACCES)
    passes = isinstance(error, (HTTPClientError, ConnectionError))
    return errno.EIO if passes else errno.EINVAL


def is_transient(error: Exception) -> bool:
    """Return whether the same request may succeed in a while."""
    if isinstance(error, (BotoCoreError, ClientError)):
        error = OSError(_errno(error), str(error))
    return retries.is_transient(error)


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Part `s3://bucket/key` into its two names."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    return bucket, key


class S3(Store):
    """The objects of S3; a folder is a prefix that something lies below."""

    lock: LockKind = "lease"
    numbers_errors = True
    most_entries: int | None = 10_000

    def filesystem(self, uri: str) -> tuple[pafs.FileSystem, str]:
        """Return pyarrow's file system, to write with, and the path inside it."""
        ask_plainly()
        return super().filesystem(uri)

    def exists(self, uri: str) -> bool:
        """Return whether an object is there, or below that prefix."""
        bucket, key = bucket_and_key(uri)
        with suppress(FileNotFoundError):
            if key:
                num_bytes(bucket, key)
                return True
        return self.is_folder(uri)

    def is_folder(self, uri: str) -> bool:
        """Return whether there is an object below a prefix."""
        bucket, prefix = _prefix(uri)
        with _as_on_a_disk(bucket, prefix):
            page = client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1, **payer())
        return bool(page.get("Contents"))

    def iter_files(self, uri: str, after: str) -> Iterator[str]:
        """Yield the URIs of all objects below a prefix in order; a few thousand are in memory."""
        bucket, prefix = _prefix(uri)
        start = bucket_and_key(after)[1] if after else ""
        for key in iter_keys(bucket, prefix, start):
            if not key.endswith("/"):  # an empty object in place of a folder
                yield f"{SCHEME}{bucket}/{key}"

    def file_names_in(self, uri: str) -> set[str]:
        """Return the names of the objects directly below a prefix."""
        return {name for name, is_folder in self.iter_level(uri) if not is_folder}

    def iter_level(self, uri: str) -> Iterator[tuple[str, bool]]:
        """Yield the names directly below a prefix, and whether each is a folder."""
        for key, is_folder in iter_level(*_prefix(uri)):
            yield (key.rstrip("/") if is_folder else key).rsplit("/", 1)[-1], is_folder

    def open_file(self, uri: str, buffer_bytes: int | None = None) -> IO[bytes]:
        """Open an object; at least `buffer_bytes` come with each request."""
        return io.BufferedReader(Reader(*bucket_and_key(uri)), buffer_bytes or _BUFFER_BYTES)

    def read(
        self, uri: str, start: int = 0, stop: int | None = None, *, most: int | None = None
    ) -> bytes:
        """Return an object's bytes, or those of a part of it, with one request."""
        return read(*bucket_and_key(uri), start, stop, most=most)

    def is_transient(self, error: Exception) -> bool:
        """Return whether the same request may succeed in a while."""
        return is_transient(error)


def _prefix(uri: str) -> tuple[str, str]:
    """Return the bucket of a folder, and what the keys below it begin with."""
    bucket, key = bucket_and_key(uri)
    return bucket, f"{key}/" if key else ""
