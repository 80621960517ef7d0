"""An S3 server for tests: Ceph RADOS Gateway where it is installed, else moto's."""

import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

START_RGW = Path(__file__).with_name("start-rgw.sh")


class Radosgw:
    """Ceph's RADOS Gateway; what it holds stays while it is away."""

    def __init__(self, port: int) -> None:
        # Not pytest's tmp_path: Ceph's sockets need a short path.
        self.folder = Path(tempfile.mkdtemp(prefix="rgw-"))
        subprocess.run([START_RGW, self.folder, str(port)], check=True, timeout=120)

    def go_away(self) -> None:
        """Die at once."""
        pid_file = self.folder / "client.rgw.pid"
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
        pid_file.unlink()

    def come_back(self) -> None:
        """Start again."""
        where = ["-c", str(self.folder / "ceph.conf"), "-n", "client.rgw"]
        subprocess.run(["radosgw", *where], check=True, timeout=120)

    def close(self) -> None:
        """Stop, and forget everything."""
        subprocess.run([START_RGW, "stop", self.folder], check=False, timeout=60)
        shutil.rmtree(self.folder, ignore_errors=True)


class Moto:
    """Moto's server in a thread; what it holds stays while it is away."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.come_back()

    def go_away(self) -> None:
        """Close the port."""
        self.server.stop()

    def come_back(self) -> None:
        """Open it."""
        from moto.server import ThreadedMotoServer

        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()

    def close(self) -> None:
        """Stop."""
        self.server.stop()


@pytest.fixture(scope="session")
def s3_server(has_radosgw: bool, s3_port: int) -> Iterator[Radosgw | Moto]:
    """A running server, which can go away and come back."""
    server = Radosgw(s3_port) if has_radosgw else Moto(s3_port)
    yield server
    server.close()


@pytest.fixture(scope="session")
def s3_endpoint(s3_server: Radosgw | Moto, s3_port: int) -> str:
    """The server's address: AWS_ENDPOINT_URL, which tests/conftest.py sets with the keys."""
    return f"http://127.0.0.1:{s3_port}"


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
