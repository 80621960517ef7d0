"""A local Ray, started in a process of its own as commands start it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ASKED = """
import os
from cropscore_ray import runtime
runtime.connect()
print(os.environ["RAY_AUTH_MODE"])
"""


STOPPED = """
import os, signal, time
from cropscore_ray import runtime
runtime.connect()
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
except KeyboardInterrupt:
    print("stopped")
"""


PLAIN = """
import os, ray
from cropscore_ray import runtime
runtime.connect()
find = ray.remote(lambda: os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"])
print(ray.get(find.remote()))
"""


JOINED = """
from cropscore_ray import runtime
from cropscore_ray.errors import ClusterError
try:
    runtime.connect()
except ClusterError as error:
    print(error, error.hint, sep="|")
"""


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "127.0.0.1:1", "nowhere.invalid:1"])
def test_an_address_at_which_there_is_no_cluster_is_named(address: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", JOINED],
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith(f"no Ray cluster can be joined at '{address}': "), done.stderr
    assert "|RAY_ADDRESS is" in done.stdout


@pytest.mark.parametrize("home", ["writable", "missing"])
def test_a_local_ray_asks_for_a_token_that_only_its_owner_can_read(
    tmp_path: Path, home: str
) -> None:
    folder = tmp_path if home == "writable" else Path("/proc/nowhere")
    environment = {name: os.environ[name] for name in os.environ if name != "RAY_AUTH_MODE"}
    done = subprocess.run(
        [sys.executable, "-c", ASKED],
        env={**environment, "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "token\n"
    if home == "writable":
        assert (tmp_path / ".ray/auth_token").stat().st_mode & 0o777 == 0o600


def test_sigterm_is_what_ctrl_c_is() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("stopped\n", 0)
    assert "SIGTERM" not in done.stderr


def test_rays_own_processes_ask_stores_plainly() -> None:
    """Ray Train's controller writes to the store without any code of ours before it."""
    name = "AWS_REQUEST_CHECKSUM_CALCULATION"
    environment = {key: value for key, value in os.environ.items() if key != name}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "WHEN_REQUIRED\n", done.stderr


def test_a_cluster_that_left_a_trace_here_is_not_joined() -> None:
    with tempfile.TemporaryDirectory(prefix="trace-") as folder:  # short, for Ray's sockets
        Path(folder, "ray").mkdir()
        Path(folder, "ray/ray_current_cluster").write_text("127.0.0.1:6379")
        done = subprocess.run(
            [sys.executable, "-c", PLAIN],
            env={**os.environ, "RAY_TMPDIR": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
