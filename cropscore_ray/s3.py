"""The S3 client for what pyarrow's file system cannot do: many small reads, conditional writes."""

import os
from functools import cache
from typing import Any

import boto3
from botocore.config import Config

CONNECTIONS = 32
SCHEME = "s3://"


def client() -> Any:
    """Return this process's client: thread-safe, obeys AWS_ENDPOINT_URL and the like."""
    return _client(os.getpid())


@cache
def _client(process_id: int) -> Any:
    """Make one client a process, not shared with forks."""
    del process_id
    retries = {"mode": "standard", "total_max_attempts": 6}  # backs off with jitter
    config = Config(
        retries=retries, max_pool_connections=CONNECTIONS, connect_timeout=10, read_timeout=60
    )
    # Non-AWS stores refuse the trailing checksums that newer SDKs add by default.
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_REQUIRED")
    return boto3.client("s3", config=config)


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Part `s3://bucket/key` into its two names."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    return bucket, key
