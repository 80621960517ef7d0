"""Settings and fixtures that all tests share."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("cropscore", deadline=None)  # a busy machine is no fault
settings.load_profile("cropscore")


def _free_port() -> int:
    # Below the ports that the kernel and Ray give out, so that it stays free until it is used.
    for port in range(20_000 + os.getpid() % 2_000, 23_000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no free port from 20000 to 23000")


S3_PORT = _free_port()

# Ray reads these once, when it is imported: a quiet local session without a token.
os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_BACKEND_LOG_LEVEL="fatal",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_DATA_LOG_LEVEL="ERROR",
    RAY_USAGE_STATS_ENABLED="0",
)

# Where tests/s3 starts its server. Set for the whole run, so that Ray's workers have it
# whichever test started them, and no test can reach a real account.
os.environ.update(
    AWS_ENDPOINT_URL=f"http://127.0.0.1:{S3_PORT}",
    AWS_ACCESS_KEY_ID="testkey",
    AWS_SECRET_ACCESS_KEY="testsecret",
    AWS_REGION="us-east-1",
    AWS_DEFAULT_REGION="us-east-1",
    AWS_EC2_METADATA_DISABLED="true",
    AWS_REQUEST_CHECKSUM_CALCULATION="WHEN_REQUIRED",
)
for variable in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
    os.environ.pop(variable, None)

RADOSGW_PROGRAMS = ("ceph-mon", "ceph-osd", "ceph", "radosgw", "radosgw-admin", "curl")
HAS_RADOSGW = all(shutil.which(program) for program in RADOSGW_PROGRAMS)
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_report_header() -> str:
    if HAS_RADOSGW:
        return "s3 server: Ceph RADOS Gateway"
    return "s3 server: moto, because Ceph's programs (see .ci/run) are not installed"


@pytest.fixture(scope="session")
def has_radosgw() -> bool:
    """Tell whether the S3 server is Ceph's, which checks signatures, and not moto."""
    return HAS_RADOSGW


@pytest.fixture(scope="session")
def s3_port() -> int:
    """The port that AWS_ENDPOINT_URL names."""
    return S3_PORT


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of real images and weights beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs the real images and weights in ../shared, which is not here")
    return SHARED


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray session in this process, with more logical CPUs than most machines have cores."""
    import ray
    import ray.data

    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        configure_logging=False,
        object_store_memory=200 * 2**20,
    )
    ray.data.DataContext.get_current().print_on_execution_start = False
    yield
    ray.shutdown()


@pytest.fixture
def train_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings take their steps in this process, and not on Ray Train."""
    from cropscore_ray.training import on_ray
    from cropscore_ray.training.loop import Worker

    monkeypatch.setattr(on_ray, "fit", lambda training, *_: training(Worker()))


@pytest.fixture
def bulk_here() -> Iterator[None]:
    """Bulk runs do their parts in this process, and not on Ray."""
    from plain import without_ray

    with without_ray():
        yield
