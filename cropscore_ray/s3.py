"""The S3 client for what pyarrow's file system cannot do: many small reads, conditional writes."""

import os
from functools import cache
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

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
    # Non-AWS stores refuse the trailing checksums that newer SDKs add by default.
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_REQUIRED")
    return session.client("s3", config=config)


def payer() -> dict[str, str]:
    """Return what a read of a requester-pays bucket needs, if AWS_REQUEST_PAYER says so."""
    who = os.environ.get("AWS_REQUEST_PAYER")
    return {"RequestPayer": who} if who else {}


def code_of(error: ClientError) -> str:
    """Return the word or number that S3 answered with."""
    return str(error.response.get("Error", {}).get("Code", ""))


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
