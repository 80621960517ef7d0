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

FOUND = """
import json, os, ray
from ray.train.v2._internal.state.util import is_actor_alive
from cropscore_ray.clusters import session
session.connect()

def controller_lives():
    try:
        return is_actor_alive("383f531b8b8182230b15e3e701000000", timeout=5)
    except ray.util.state.exception.RayStateApiException:
        return "nobody knows"

def find():
    return os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"], controller_lives()

print(json.dumps([os.environ["RAY_AUTH_MODE"], *ray.get(ray.remote(find).remote())]), flush=True)
"""


STOPPED = (
    FOUND
    + """
import signal, time
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
except KeyboardInterrupt:
    print("stopped")
"""
)


JOINED = """
from cropscore_ray.clusters import session
from cropscore_ray.errors import ClusterError
try:
    session.connect()
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


class KnowsNothing(BaseHTTPRequestHandler):
    """A dashboard of another cluster, asked for an actor."""

    def do_GET(self) -> None:
        found = {"total": 0, "num_after_truncation": 0, "num_filtered": 0, "result": []}
        body = json.dumps({"result": True, "msg": "", "data": {"result": found}}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)


def test_a_local_ray_is_apart_from_others_and_ends_as_commands_do(tmp_path: Path) -> None:
    environment = {
        name: os.environ[name]
        for name in os.environ.keys() - {"RAY_AUTH_MODE", "AWS_REQUEST_CHECKSUM_CALCULATION"}
    }
    with HTTPServer(("127.0.0.1", 0), KnowsNothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        other = f"http://127.0.0.1:{server.server_port}"
        more = {"HOME": str(tmp_path), "RAY_API_SERVER_ADDRESS": other}
        done = alone(STOPPED, environment | more)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    found, stopped = done.stdout.splitlines()
    # It asks for a token, which only its owner can read.
    # Ray Train's controller writes to stores before any code of ours, and must ask them plainly.
    # The other cluster would say that no training lives, and Ray Train kill its workers.
    assert json.loads(found) == ["token", "WHEN_REQUIRED", "nobody knows"]
    assert (tmp_path / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
    # SIGTERM is what Ctrl-C is.
    assert stopped == "stopped"
    assert "SIGTERM" not in done.stderr


def test_neither_a_home_nor_a_clean_temporary_folder_is_needed() -> None:
    """A cluster that left a trace there is not joined."""
    environment = {name: os.environ[name] for name in os.environ if name != "RAY_AUTH_MODE"}
    with tempfile.TemporaryDirectory(prefix="trace-") as folder:  # short, for Ray's sockets
        Path(folder, "ray").mkdir()
        Path(folder, "ray/ray_current_cluster").write_text("127.0.0.1:6379")
        done = alone(FOUND, {**environment, "HOME": "/proc/nowhere", "RAY_TMPDIR": folder})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0] == "token"
