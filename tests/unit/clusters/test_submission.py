"""What goes along with a job: the code, where the store is, and nothing secret."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from cropscore_ray.clusters import submission
from cropscore_ray.errors import ClusterError, ConfigError


def test_the_environment_tells_where_the_store_is_and_no_key(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    found = submission.environment()
    assert found["AWS_ENDPOINT_URL"] == "http://store:9000"
    assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} & found.keys()


def test_an_endpoint_with_a_password_is_refused_without_showing_it(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:hunter2@store:9000")
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL holds a password") as caught:
        submission.environment()
    assert "hunter2" not in str(caught.value)


def test_the_copied_package_runs_by_itself_and_knows_its_version(tmp_path: Path):
    submission._copy_package(tmp_path)
    assert not list(tmp_path.rglob("__pycache__"))
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*"))
    assert size < 2**20
    code = (
        "import importlib.metadata as m, cropscore_ray.cli as c;"
        "print(m.version('cropscore-ray'), c.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [
        version("cropscore-ray"),
        str(tmp_path / "cropscore_ray" / "cli.py"),
    ]


@pytest.mark.parametrize("python", [sys.executable, "/no/such/python"], ids=["here", "elsewhere"])
def test_the_entrypoint_runs_here_with_the_package_that_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str
):
    """`python` of the PATH stands in where the cluster has no interpreter of that name."""
    sent, here, programs = tmp_path / "sent", tmp_path / "h e r e", tmp_path / "bin"
    for folder in (sent / "cropscore_ray", here, programs):
        folder.mkdir(parents=True)
    (sent / "cropscore_ray" / "__init__.py").touch()
    (sent / "cropscore_ray" / "cli.py").write_text(
        "import os, sys; print(os.getcwd(), sys.argv[1:])"
    )
    (programs / "python").symlink_to(sys.executable)
    monkeypatch.chdir(here)
    monkeypatch.setattr(submission.sys, "executable", python)
    command = submission.entrypoint(["score", "a b", "--out", "$HOME"])
    done = subprocess.run(
        command,
        shell=True,
        cwd=sent,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"{here} ['score', 'a b', '--out', '$HOME']"


@pytest.mark.parametrize(
    ("address", "is_here"),
    [
        ("http://127.0.0.1:8265", True),
        ("http://localhost:8265", True),
        ("http://[::1]:8265", True),
        ("http://10.0.0.1:8265", False),
        ("http://localhost.example:8265", False),
    ],
)
def test_which_addresses_are_of_this_machine(address, is_here):
    assert submission.is_loopback(address) is is_here


@dataclass
class ComingUp:
    """A Jobs API whose answers are given: an error is raised, all else returned."""

    answers: list[object]
    jobs: list[list[object]] = field(default_factory=list)
    """What it lists each time; nothing once that is used up."""

    def list_jobs(self) -> list[object]:
        return self.jobs.pop(0) if self.jobs else []

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        yield "begun\n"
        await asyncio.Event().wait()

    def submit_job(self, **job: object) -> object:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> submission.Cluster:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setattr(submission.time, "sleep", lambda seconds: None)
    client = ComingUp([])
    monkeypatch.setattr(submission, "JobSubmissionClient", lambda address, headers: client)
    return submission.Cluster("http://127.0.0.1:1")


def test_a_job_is_sent_again_until_the_cluster_has_come_up(cluster: submission.Cluster):
    no_agent = RuntimeError("status code 500: No available agent to submit job, please try again")
    cluster._client.answers = [no_agent, ConnectionError("refused"), "job"]
    assert cluster.submit(["index"], "job")
    assert cluster._client.answers == []


def test_what_a_cluster_refuses_is_not_sent_again(cluster: submission.Cluster):
    cluster._client.answers = [RuntimeError("status code 500: no space left"), "job"]
    with pytest.raises(ClusterError, match="no space left"):
        cluster.submit(["index"], "job")
    assert cluster._client.answers == ["job"]


def test_a_log_that_falls_silent_is_followed_until_the_cluster_is_gone(
    cluster: submission.Cluster, monkeypatch: pytest.MonkeyPatch
):
    """A connection whose other end vanished says nothing for ever."""
    monkeypatch.setattr(submission, "_QUIET_S", 0.05)
    job = SimpleNamespace(submission_id="job", start_time=1)
    cluster._client.jobs = [[job], [job]]
    shown: list[str] = []
    with pytest.raises(ClusterError, match="has no job"):
        cluster.follow("job", shown.append)
    assert [text for text in shown if text] == ["begun\n"]
