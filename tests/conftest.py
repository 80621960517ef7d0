"""Settings and fixtures that all tests share, and how two processes share the tests."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("cropscore", deadline=None)  # a busy machine is no fault
settings.load_profile("cropscore")


def _free_port() -> int:
    # Below the ports that the kernel and Ray give out, so that it stays free until it is used.
    # Processes that share the tests look at different ones: their number is the last digit.
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for port in range(20_000 + os.getpid() % 200 * 10 + number % 10, 23_000, 10):
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
BROWSERS = ("chromium", "chromium-browser", "chrome")
HAS_BROWSER = any(shutil.which(program) for program in BROWSERS)
SHARED = Path(__file__).resolve().parents[2] / "shared"
INSTALL = "apt-get install --no-install-recommends"


def pytest_report_header() -> list[str]:
    """Say which S3 server and browser tests use, and how to get one that is missing."""
    server, browser = "s3 server: Ceph RADOS Gateway", "browser: chromium"
    if not HAS_RADOSGW:
        packages = "ceph-mon ceph-osd radosgw ceph-common curl"
        server = f"s3 server: moto, which skips two tests: {INSTALL} {packages}"
    if not HAS_BROWSER:
        browser = f"browser: none, so tests/browser is skipped: {INSTALL} chromium"
    return [server, browser]


# What takes longest begins first. A group is done by one process, in one session of Ray and with
# one S3 server; other files are groups of their own.
GROUPS = {
    "tests/s3/test_training_kills_s3.py": "kills of trainings",
    "tests/s3/test_kills_s3.py": "kills of runs",
    "tests/ray/test_bulk_cluster.py": "a cluster that grows",
    "tests/ray/test_submit.py": "a head",
    "tests/ray/test_runtime.py": "sessions of Ray",
    "tests/s3/": "S3",
    "tests/ray/": "Ray",
}


def _group(nodeid: str) -> str:
    file = nodeid.partition("::")[0]
    return next((GROUPS[start] for start in GROUPS if file.startswith(start)), file)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest groups first, where several processes (`-n`) share the tests."""
    if hasattr(config, "workerinput"):
        order = {group: place for place, group in enumerate(GROUPS.values())}
        items.sort(key=lambda item: order.get(_group(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process whole groups, in the order of the tests."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)


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
        address="local",  # whatever other Ray runs here, or left a trace
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
