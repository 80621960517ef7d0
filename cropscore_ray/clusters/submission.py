"""Commands submitted to a Ray cluster through its Jobs API: sent, followed, listed, stopped.

What is sent along is the package that is installed here, where the store is (AWS_ENDPOINT_URL and
the like), and nothing secret: credentials are the cluster's own affair.
"""

import asyncio
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cropscore_ray.errors import ClusterError, ConfigError

Answer = TypeVar("Answer")

PACKAGE = "cropscore_ray"
PASSED_ON = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_REQUEST_PAYER",
)
"""Environment variables that the job gets from here."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_COMES_UP_S = 60.0
_NO_AGENT = "No available agent"
"""What a dashboard says before the node's agent, which takes the jobs, is there."""
_TIMEOUT_S = 30.0
_QUIET_S = 30.0
"""After so long without a word from a job the cluster is asked whether it is there."""


def is_loopback(address: str) -> bool:
    """Return whether an address is of this machine."""
    return urlsplit(address).hostname in LOOPBACK


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn what Ray's client raises into one line that says what to do."""
    try:
        yield
    except AuthenticationError as error:
        raise ClusterError(
            f"{address} does not accept this machine's token, or there is none",
            hint="set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it",
        ) from error
    except (ConnectionError, requests.RequestException) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}",
            hint="is it up, and a tunnel to it open? --address names another",
        ) from error
    except RuntimeError as error:
        raise ClusterError(f"{address}: {str(error).splitlines()[0][:300]}") from error


class Cluster:
    """The Jobs API of one cluster."""

    def __init__(self, address: str, *, token: str | None = None, insecure: bool = False) -> None:
        """Connect; wait for a cluster that is coming up.

        Args:
            address: of the dashboard, http://host:port.
            token: that the cluster asks for; None: Ray looks for one itself.
            insecure: accept a cluster at another address than this machine's that asks for no
                token: whoever reaches it can run anything there.

        Raises:
            ClusterError: there is none, it asks for another token, or for none.
        """
        self.address = address.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else None
        # Ray's client prefers its environment variables to the address that it is given.
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        self._client = self._once_it_is_up(
            lambda: JobSubmissionClient(self.address, headers=headers)
        )
        if not (insecure or is_loopback(self.address)):
            self._require_token()

    def _once_it_is_up(self, ask: Callable[[], Answer]) -> Answer:
        """Return what the cluster answers; ask again while it is coming up."""
        deadline_s = time.monotonic() + _COMES_UP_S
        while True:
            try:
                with _explained(self.address):
                    return ask()
            except ClusterError as error:
                comes_up = isinstance(error.__cause__, OSError) or _NO_AGENT in str(error)
                if not comes_up or time.monotonic() > deadline_s:
                    raise
            time.sleep(1)

    def _require_token(self) -> None:
        with _explained(self.address):
            answer = requests.get(f"{self.address}/api/version", timeout=_TIMEOUT_S)
        if answer.ok:
            raise ClusterError(
                f"{self.address} asks for no token: whoever reaches it can run anything there",
                hint="start it with RAY_AUTH_MODE=token, use a tunnel, or say --insecure",
            )

    def submit(self, arguments: list[str], job_id: str) -> bool:
        """Submit a cropscore command; return False if that job was submitted before.

        Raises:
            ConfigError: an argument holds a credential; the cluster would show it to everybody.
            ClusterError: the cluster does not take the job.
        """
        for argument in arguments:
            if urlsplit(argument).password is not None:
                raise ConfigError(
                    "an argument holds a user name and a password, and jobs are shown to all",
                    hint="give the cluster's nodes a role, or a secret in their environment",
                )
        if self.find(job_id) is not None:
            return False
        with tempfile.TemporaryDirectory() as folder:
            _copy_package(Path(folder))
            runtime_env = {"working_dir": folder, "env_vars": environment()}
            self._once_it_is_up(
                lambda: self._client.submit_job(
                    entrypoint=entrypoint(arguments),
                    submission_id=job_id,
                    runtime_env=runtime_env,
                    metadata={"cropscore": arguments[0]},
                )
            )
        return True

    def find(self, job_id: str) -> JobDetails | None:
        """Return a job, or None if there is none of this id."""
        return next((job for job in self.jobs() if job.submission_id == job_id), None)

    def jobs(self) -> list[JobDetails]:
        """Return the jobs that were submitted, the latest first."""
        with _explained(self.address):
            jobs = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)

    def get(self, job_id: str) -> JobDetails:
        """Return a job; ClusterError if there is none of this id."""
        job = self.find(job_id)
        if job is None:
            raise ClusterError(
                f"{self.address} has no job {job_id}", hint="cropscore jobs list shows them"
            )
        return job

    def logs(self, job_id: str) -> str:
        """Return what a job has printed so far."""
        self.get(job_id)
        with _explained(self.address):
            return str(self._client.get_job_logs(job_id))

    def stop(self, job_id: str) -> bool:
        """Stop a job; return False if it had ended."""
        self.get(job_id)
        with _explained(self.address):
            return bool(self._client.stop_job(job_id))

    def follow(self, job_id: str, write: Callable[[str], object]) -> int:
        """Write what a job prints until it ends; return its exit status.

        Raises:
            ClusterError: the cluster went away.
        """
        num_shown = 0

        async def show_the_rest() -> None:
            nonlocal num_shown
            place = 0
            async with asyncio.timeout(_QUIET_S) as quiet:
                async for text in self._client.tail_job_logs(job_id):
                    quiet.reschedule(asyncio.get_running_loop().time() + _QUIET_S)
                    write(text[max(0, num_shown - place) :])
                    place += len(text)
                    num_shown = max(num_shown, place)

        while True:
            self.get(job_id)
            try:
                asyncio.run(show_the_rest())
            except (RuntimeError, OSError, aiohttp.ClientError):
                time.sleep(1)  # quiet, or a broken connection: is the cluster there?
                continue
            while not (job := self.get(job_id)).status.is_terminal():
                time.sleep(0.2)
            return exit_status(job)


def exit_status(job: JobDetails) -> int:
    """Return the exit status of a job that has ended."""
    return 0 if job.status == JobStatus.SUCCEEDED else job.driver_exit_code or 1


def environment() -> dict[str, str]:
    """Return the environment variables that a job gets from here.

    Raises:
        ConfigError: one of them holds a credential.
    """
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    # Ray's own processes write checkpoints too; s3.ask_plainly says why.
    variables.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_REQUIRED")
    for name, value in variables.items():
        if urlsplit(value).password is not None:
            raise ConfigError(f"{name} holds a password, and a job's environment is shown to all")
    return variables


def entrypoint(arguments: list[str]) -> str:
    """Return the shell command of a job.

    It runs in this directory where the cluster has it, as one on this machine does, with this
    interpreter where the cluster has it, and else with the first `python` there.
    """
    here, python = shlex.quote(os.getcwd()), shlex.quote(sys.executable)
    return (
        f'export PYTHONPATH="$PWD:$PYTHONPATH"; cd {here} 2>/dev/null; '
        f"p={python}; [ -x $p ] || p=python; "
        f'exec "$p" -m {PACKAGE}.cli {shlex.join(arguments)}'
    )


def _copy_package(folder: Path) -> None:
    """Copy the installed package, and what tells its version, into a folder."""
    unused = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(__file__).parents[1], folder / PACKAGE, ignore=unused)
    installed = distribution(PACKAGE.replace("_", "-"))
    about = folder / f"{PACKAGE}-{installed.version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(installed.read_text("METADATA") or "")


def describe(job: JobDetails) -> dict[str, Any]:
    """Return what people and programs are shown of a job."""
    return {
        "id": job.submission_id,
        "status": job.status.value,
        "command": (job.metadata or {}).get("cropscore"),
        "started_at": _iso(job.start_time),
        "ended_at": _iso(job.end_time),
        "exit_status": exit_status(job) if job.status.is_terminal() else None,
        "message": job.message,
    }


def _iso(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
