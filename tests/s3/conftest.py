"""An S3 server for tests: Ceph RADOS Gateway where it is installed, else moto's."""

import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

START_RGW = Path(__file__).with_name("start-rgw.sh")


@contextmanager
def _radosgw(port: int) -> Iterator[None]:
    # Not pytest's tmp_path: Ceph's sockets need a short path.
    folder = tempfile.mkdtemp(prefix="rgw-")
    try:
        subprocess.run([START_RGW, folder, str(port)], check=True, timeout=120)
        yield
    finally:
        subprocess.run([START_RGW, "stop", folder], check=False, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _moto(port: int) -> Iterator[None]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    yield
    server.stop()


@pytest.fixture(scope="session")
def s3_endpoint(has_radosgw: bool, s3_port: int) -> Iterator[str]:
    """A running server at AWS_ENDPOINT_URL, which tests/conftest.py sets with the keys."""
    with _radosgw(s3_port) if has_radosgw else _moto(s3_port):
        yield f"http://127.0.0.1:{s3_port}"


def _new_bucket(endpoint: str) -> str:
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
    return bucket


@pytest.fixture(scope="session")
def s3_bucket(s3_endpoint: str) -> str:
    """One bucket for the whole run, because making one takes seconds."""
    return _new_bucket(s3_endpoint)


@pytest.fixture
def new_bucket(s3_endpoint: str) -> str:
    """A bucket to which nothing in this process has a connection yet."""
    return _new_bucket(s3_endpoint)


@pytest.fixture
def s3_uri(s3_bucket: str) -> str:
    """A prefix of its own for one test, with nothing below it."""
    return f"s3://{s3_bucket}/{uuid.uuid4().hex[:12]}"
