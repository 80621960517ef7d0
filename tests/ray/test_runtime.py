"""A local Ray, started in a process of its own as commands start it."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
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


LIVES = """
import ray
from ray.train.v2._internal.state.util import is_actor_alive
from cropscore_ray import runtime
runtime.connect()

def controller_lives():
    try:
        return is_actor_alive("383f531b8b8182230b15e3e701000000", timeout=5)
    except ray.util.state.exception.RayStateApiException:
        return "nobody knows"

print(ray.get(ray.remote(controller_lives).remote()))
"""


JOINED = """
from cropscore_ray import runtime
from cropscore_ray.errors import ClusterError
try:
    runtime.connect()
except ClusterError as error:
    print(error, error.hint, sep="|")
"""


def alone(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "127.0.0.1:1", "nowhere.invalid:1"])
def test_an_address_at_which_there_is_no_cluster_is_named(address: str) -> None:
    done = alone(JOINED, {**os.environ, "RAY_ADDRESS": address})
    assert done.stdout.startswith(f"no Ray cluster can be joined at '{address}': "), done.stderr
    assert "|RAY_ADDRESS is" in done.stdout


@pytest.mark.parametrize("home", ["writable", "missing"])
def test_a_local_ray_asks_for_a_token_that_only_its_owner_can_read(
    tmp_path: Path, home: str
) -> None:
    folder = tmp_path if home == "writable" else Path("/proc/nowhere")
    environment = {name: os.environ[name] for name in os.environ if name != "RAY_AUTH_MODE"}
    done = alone(ASKED, {**environment, "HOME": str(folder)})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "token\n"
    if home == "writable":
        assert (tmp_path / ".ray/auth_token").stat().st_mode & 0o777 == 0o600


def test_sigterm_is_what_ctrl_c_is() -> None:
    done = alone(STOPPED, dict(os.environ))
    assert (done.stdout, done.returncode) == ("stopped\n", 0)
    assert "SIGTERM" not in done.stderr


def test_rays_own_processes_ask_stores_plainly() -> None:
    """Ray Train's controller writes to the store without any code of ours before it."""
    name = "AWS_REQUEST_CHECKSUM_CALCULATION"
    environment = {key: value for key, value in os.environ.items() if key != name}
    done = alone(PLAIN, environment)
    assert done.stdout == "WHEN_REQUIRED\n", done.stderr


def test_no_other_cluster_is_asked_whether_a_training_of_this_one_lives() -> None:
    """It would say no, and Ray Train kill the training's workers."""

    class KnowsNothing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = {"total": 0, "num_after_truncation": 0, "num_filtered": 0, "result": []}
            body = json.dumps({"result": True, "msg": "", "data": {"result": found}}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

    with HTTPServer(("127.0.0.1", 0), KnowsNothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        other = f"http://127.0.0.1:{server.server_port}"
        done = alone(LIVES, {**os.environ, "RAY_API_SERVER_ADDRESS": other})
        server.shutdown()
    assert done.stdout == "nobody knows\n", done.stderr


def test_a_cluster_that_left_a_trace_here_is_not_joined() -> None:
    with tempfile.TemporaryDirectory(prefix="trace-") as folder:  # short, for Ray's sockets
        Path(folder, "ray").mkdir()
        Path(folder, "ray/ray_current_cluster").write_text("127.0.0.1:6379")
        done = alone(PLAIN, {**os.environ, "RAY_TMPDIR": folder})
    assert done.returncode == 0, done.stderr
