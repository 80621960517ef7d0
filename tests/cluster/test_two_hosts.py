"""A cluster of two hosts and a third that submits to it, each with an address of its own."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bulk import NUM_IMAGES, Bulk, make_images_and_model, wait_for
from heads import COMMAND, WAIT_S, Head, RayNode, cropscore, errors, temporary
from hosts import Host, hosts

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@dataclass(frozen=True, kw_only=True)
class Site:
    """A head without CPUs, a worker, and a third host; images lie on a disk that all share."""

    head: Head
    joined: RayNode
    worker: Host
    third: Host
    folder: Path

    def submit(self, *arguments: str, **environment: str) -> Any:
        """Submit from the third host, and wait for the command's end."""
        return cropscore(
            *self.submission(*arguments),
            within=self.third.within,
            env=self.head.environment() | environment,
            cwd=self.folder,
        )

    def submission(self, *arguments: str) -> list[str]:
        return ["submit", "--address", self.head.address, "--wait", *arguments]

    def is_at_work(self) -> bool:
        """Tell whether a process on the worker's host works on a run."""
        found = self.joined.processes().items()
        scorers = {pid for pid, (_, args) in found if "StageActor" in args}
        return bool(scorers & self.worker.processes())


@pytest.fixture(scope="module")
def three_hosts() -> Iterator[list[Host]]:
    with hosts("head", "worker", "third") as found:
        yield found


@pytest.fixture(scope="module")
def site(three_hosts: list[Host], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    first, worker, third = three_hosts
    work = tmp_path_factory.mktemp("work")
    make_images_and_model(work)
    with temporary("two-") as folder, ExitStack() as started:
        head = Head(folder=folder, host=first.address, options=at(first, 0), within=first.within)
        started.callback(head.stop)
        wait_for(lambda: "ray start --address" in (Path(folder) / "log").read_text())
        joined = RayNode(
            options=[f"--address={first.address}:{head.port}", *at(worker, 2)],
            environment=head.environment(),
            log=Path(folder) / "worker.log",
            within=worker.within,
        )
        started.callback(joined.stop)
        yield Site(head=head, joined=joined, worker=worker, third=third, folder=work)


def at(host: Host, num_cpus: int) -> list[str]:
    return [f"--node-ip-address={host.address}", f"--num-cpus={num_cpus}"]


def test_a_run_outlives_the_connection_of_the_host_that_submitted_it(site: Site) -> None:
    run = Bulk(site.folder, "run")
    arguments = ["--id", "far", "--", *run.command()]
    with (site.folder / "said").open("wb") as said:
        submitted = subprocess.Popen(
            [*site.third.within, *COMMAND, *site.submission(*arguments)],
            env=site.head.environment(),
            cwd=site.folder,
            stdout=said,
            stderr=said,
        )
    wait_for(lambda: run.num_parts() and site.is_at_work())
    assert submitted.poll() is None
    site.third.connect(False)
    began_s = time.monotonic()
    assert submitted.wait(timeout=WAIT_S) == 1
    print(f"that the connection is lost was said after {time.monotonic() - began_s:.0f} s")
    text = (site.folder / "said").read_text()
    assert errors(text)[0] == f"error: no Ray cluster answers at {site.head.address}"
    assert "Traceback" not in text
    wait_for(run.is_complete)
    site.third.connect(True)
    again = site.submit(*arguments)
    assert again.returncode == 0, again.stderr
    assert "submitted before: far" in again.stderr
    assert f"run: {NUM_IMAGES} images ({NUM_IMAGES} ok)" in again.stdout


def test_a_command_that_fails_there_fails_here(site: Site) -> None:
    done = site.submit("--", "localize", "nowhere", "--model", "model", "--out", "never")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "environment",
    [{"RAY_AUTH_TOKEN": "wrong"}, {"RAY_AUTH_TOKEN": ""}, {"RAY_AUTH_MODE": "disabled"}],
    ids=["another token", "no token", "no token wanted"],
)
def test_a_host_without_the_token_is_turned_away(site: Site, environment: dict[str, str]) -> None:
    done = site.submit("--", "--version", **environment)
    assert done.returncode == 1
    said = f"{site.head.address} does not accept this machine's token, or there is none"
    assert errors(done.stderr)[0] == f"error: {said}"
    assert "Traceback" not in done.stderr


def test_a_cluster_without_a_token_is_refused_unless_one_insists(
    three_hosts: list[Host], tmp_path: Path
) -> None:
    first, _, third = three_hosts
    with temporary("open-") as folder, ExitStack() as started:
        head = Head(
            folder=folder,
            token=None,
            host=first.address,
            options=at(first, 1),
            within=first.within,
        )
        started.callback(head.stop)
        arguments = ["submit", "--address", head.address, "--wait"]
        there = {"within": third.within, "env": head.environment(), "cwd": tmp_path}
        refused = cropscore(*arguments, "--", "--version", **there)
        insisted = cropscore(*arguments, "--insecure", "--", "--version", **there)
    assert refused.returncode == 1
    said = f"{head.address} asks for no token: whoever reaches it can run anything there"
    assert errors(refused.stderr)[0] == f"error: {said}"
    assert insisted.returncode == 0, insisted.stderr
    assert "cropscore, version" in insisted.stdout
