"""The S3 client for what pyarrow's file system cannot do: many small reads, conditional writes."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

from cropscore_ray import retries

CONNECTIONS = 32
SCHEME = "s3://"


def client() -> Any:
    """Return this process's client: thread-safe, obeys AWS_ENDPOINT_URL and the like."""
    return _client(os.getpid())


@cache
def _client(process_id: int) -> Any:
    """Make one client a process, not shared with forks."""
    del process_id
    session = boto3.Session()
    # What is public can be read without credentials, but only without a signature.
    signature = UNSIGNED if session.get_credentials() is None else None
    config = Config(
        signature_version=signature,
        retries={"mode": "standard", "total_max_attempts": 2},  # cropscore_ray.retries has more
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
_LARGE_FOLDER_KEYS = 64  # from so many on, a folder each for 16 is faster than pages for one


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
    for one in ahead:
        yield from one()


def iter_level(bucket: str, prefix: str, after: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the keys and, as keys with a / at their end, the folders directly below a prefix.

    Those from `after` on, and the folder in which that lies.
    """
    # Of a folder that begins before the start of a listing, stores show nothing.
    inside, slash, _ = after.removeprefix(prefix).partition("/")
    start = f"{prefix}{inside}" if slash else after
    for page in _pages(bucket, prefix, start, Delimiter="/"):
        keys = [(one["Key"], False) for one in page.get("Contents", [])]
        folders = [(one["Prefix"], True) for one in page.get("CommonPrefixes", [])]
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
            yield from (one["Key"] for one in page.get("Contents", []))


def _has_large_folders(prefix: str, keys: list[str]) -> bool:
    """Tell whether the folders of a folder are worth a request each, by its first keys."""
    inside = [key.removeprefix(prefix).partition("/") for key in keys]
    folders = {name for name, slash, _ in inside if slash}
    return len(folders) * _LARGE_FOLDER_KEYS <= len(keys)


def _first_keys(bucket: str, prefix: str, after: str) -> tuple[list[str], bool]:
    """Return the keys of the first pages below a prefix, and whether there are more."""
    found: list[str] = []
    for page in itertools.islice(_pages(bucket, prefix, after), _PAGES):
        found += [one["Key"] for one in page.get("Contents", [])]
    return found, bool(page.get("IsTruncated")) and bool(found)


def _pages(bucket: str, prefix: str, after: str, **how: str) -> Iterator[dict[str, Any]]:
    """Yield the pages of a listing; one that the store has no time for is asked for again."""
    where = {"Bucket": bucket, "Prefix": prefix, "StartAfter": after, **how, **payer()}
    while True:
        ask = partial(client().list_objects_v2, **where)
        page: dict[str, Any] = retries.persistently(ask, is_transient)
        yield page
        if not page.get("IsTruncated"):
            return
        where["ContinuationToken"] = page["NextContinuationToken"]


_THROTTLED = {"SlowDown", "503", "429", "Throttling", "TooManyRequests", "RequestLimitExceeded"}
_BUSY = {"InternalError", "500", "502", "504", "ServiceUnavailable", "RequestTimeout"}


def is_throttled(error: Exception) -> bool:
    """Tell whether S3 asks for fewer requests."""
    return isinstance(error, ClientError) and code_of(error) in _THROTTLED


def is_transient(error: Exception) -> bool:
    """Tell whether the same request may succeed in a while."""
    if isinstance(error, ClientError):
        return code_of(error) in _THROTTLED | _BUSY
    broken = isinstance(error, (HTTPClientError, ConnectionError))
    return broken or (isinstance(error, OSError) and not isinstance(error, BotoCoreError))


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Part `s3://bucket/key` into its two names."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    return bucket, key
