"""Commands submitted to a real cluster with token authentication: sent, followed, refused."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import heads
import pytest
from heads import Head, errors, temporary
from models import random_model

from cropscore_ray import storage
from cropscore_ray.datasets.drawn import draw_image_set
from cropscore_ray.jobs import index

SECRET = "planted-secret-8f2c"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with temporary("head-") as folder:
        made = Head(folder=folder, more_environment={"AWS_SECRET_ACCESS_KEY": SECRET})
        yield made
        made.stop()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, their manifest and a model."""
    folder = tmp_path_factory.mktemp("work")
    draw_image_set(str(folder / "drawn"), num_train=8, num_val=0, seed=1)
    index.run(str(folder / "drawn"), str(folder / "manifest"))
    random_model(str(folder / "model"))
    return folder


def cropscore(
    head: Head, *arguments: str, folder: Path | None = None, token: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = head.environment(token) | {"AWS_SECRET_ACCESS_KEY": SECRET}
    return heads.cropscore(*arguments, env=environment, cwd=folder)


def test_a_bulk_run_is_submitted_and_followed_to_its_end(head: Head, work: Path) -> None:
    command = ["score", "manifest", "--model", "model", "--out", "run"]
    options = ["--address", head.address, "--id", "first", "--wait"]
    done = cropscore(head, "submit", *options, "--", *command, folder=work)
    assert done.returncode == 0, done.stderr
    assert "run: 8 images (8 ok)" in done.stdout
    assert storage.read_json(str(work / "run" / "run.json"))["complete"]
    again = cropscore(head, "submit", *options, "--", *command, folder=work)
    assert again.returncode == 0
    assert "submitted before: first" in again.stderr


def test_jobs_are_listed_told_of_and_their_logs_printed(head: Head, work: Path) -> None:
    cropscore(head, "cluster", "use", "here", "--address", head.address)
    listed = json.loads(cropscore(head, "jobs", "list", "--json").stdout)
    assert [(job["id"], job["status"], job["exit_status"]) for job in listed] == [
        ("first", "SUCCEEDED", 0)
    ]
    told = json.loads(cropscore(head, "jobs", "status", "first", "--json").stdout)
    assert told == listed[0]
    assert "8 images (8 ok)" in cropscore(head, "jobs", "logs", "first").stdout
    assert "8 images (8 ok)" in cropscore(head, "jobs", "logs", "-f", "first").stdout
    assert "first had ended" in cropscore(head, "jobs", "stop", "first").stdout
    missing = cropscore(head, "jobs", "status", "second")
    assert missing.returncode == 1
    assert errors(missing.stderr)[0] == f"error: {head.address} has no job second"


def test_a_jobs_exit_status_is_that_of_its_command(head: Head) -> None:
    wrong = cropscore(head, "submit", "--address", head.address, "--wait", "--", "score", "--x")
    assert wrong.returncode == 2


def test_a_job_is_stopped(head: Head, work: Path) -> None:
    (work / "pipe").touch()
    os.remove(work / "pipe")
    os.mkfifo(work / "pipe")  # nobody writes: the job reads for ever
    command = ["index", "csv:pipe", "--out", "never"]
    options = ["--address", head.address, "--id", "endless"]
    assert cropscore(head, "submit", *options, "--", *command, folder=work).returncode == 0
    assert "is being stopped" in cropscore(head, "jobs", "stop", "endless").stdout
    followed = cropscore(head, "jobs", "logs", "-f", "endless")
    assert followed.returncode == 1
    told = json.loads(cropscore(head, "jobs", "status", "endless", "--json").stdout)
    assert told["status"] == "STOPPED"


def test_no_secret_is_in_what_a_cluster_shows_or_a_run_writes(head: Head, work: Path) -> None:
    request = Request(
        f"{head.address}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"}
    )
    shown = urlopen(request, timeout=30).read().decode()
    assert "first" in shown
    assert "AWS_ENDPOINT_URL" in shown
    assert SECRET not in shown
    logs = [path.read_text(errors="replace") for path in Path(head.folder).rglob("*.log")]
    assert not any(SECRET in text for text in logs)
    written = [path.read_bytes() for path in (work / "run").rglob("*") if path.is_file()]
    assert len(written) > 1
    assert not any(SECRET.encode() in data or head.token.encode() in data for data in written)
    command = ["score", "s3://key:password@bucket/x", "--model", "m", "--out", "o"]
    done = cropscore(head, "submit", "--address", head.address, "--", *command)
    assert done.returncode == 2
    assert "password" in errors(done.stderr)[0]


@pytest.mark.parametrize("token", ["wrong-token"])
def test_another_token_is_one_clear_line(head: Head, token: str) -> None:
    with pytest.raises(HTTPError, match="403"):
        urlopen(Request(f"{head.address}/api/jobs/", headers={"Authorization": f"Bearer {token}"}))
    done = cropscore(head, "jobs", "list", "--address", head.address, token=token)
    assert done.returncode == 1
    assert "does not accept this machine's token" in errors(done.stderr)[0]
    assert "Traceback" not in done.stderr


def test_probes_of_a_nodes_health_need_no_token(head: Head) -> None:
    """What cluster/kuberay/raycluster.yaml lets Kubernetes ask."""
    url = f"http://127.0.0.1:{head.node.agent_port}/api/healthz"
    with urlopen(url, timeout=30) as answer:
        assert answer.status == 200
        assert "raylet: success" in answer.read().decode()


def test_a_token_that_is_remembered_with_a_name_is_enough(head: Head, tmp_path: Path) -> None:
    names = {"XDG_CONFIG_HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    environment = head.environment() | names
    del environment["RAY_AUTH_TOKEN"]
    token_file = tmp_path / "token"
    token_file.write_text(head.token)
    remembered = (
        "import sys, pathlib; from cropscore_ray.clusters import contexts; "
        "contexts.use('cloud', sys.argv[1], pathlib.Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", remembered, head.address, str(token_file)]
    subprocess.run(command, env=environment, check=True, timeout=60)

    for arguments in (["jobs", "list"], ["jobs", "logs", "-f", "first"]):
        done = heads.cropscore(*arguments, env=environment)
        assert done.returncode == 0, done.stderr
        assert head.token not in done.stdout + done.stderr


def test_a_cluster_that_goes_away_is_one_clear_line(head: Head, work: Path) -> None:
    """The last one: it takes the cluster away."""
    command = [*heads.COMMAND, "submit", "--address", head.address, "--wait"]
    command += ["--", "index", "csv:pipe", "--out", "never"]
    process = subprocess.Popen(
        command, env=head.environment(), cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline_s = time.monotonic() + 60
    while "RUNNING" not in cropscore(head, "jobs", "list", "--address", head.address).stdout:
        assert time.monotonic() < deadline_s
    head.stop()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    lines = [line for line in said.decode().splitlines() if line.startswith("error:")]
    assert lines == [f"error: no Ray cluster answers at {head.address}"]
    assert "Traceback" not in said.decode()
