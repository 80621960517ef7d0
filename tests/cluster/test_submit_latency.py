"""From a submitted command to the first line of its log, beside Ray's own command for that."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest
from heads import COMMAND, WAIT_S, Head, temporary

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ROUNDS = 5
BOUND = 1.5
LINE = b"cropscore, version"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with temporary("near-") as folder:
        made = Head(folder=folder)
        yield made
        made.stop()


def first_line_s(head: Head, command: list[str]) -> float:
    """Return the seconds from a command's start to the first line that its job prints."""
    began_s = time.monotonic()
    with subprocess.Popen(
        command, env=head.environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith(LINE))
        took_s = time.monotonic() - began_s
        process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    return took_s


def test_the_first_line_of_a_job_comes_about_as_soon_as_with_ray_job_submit(head: Head) -> None:
    ray = str(Path(sys.executable).with_name("ray"))
    ours = [*COMMAND, "submit", "--address", head.address, "--wait", "--", "--version"]
    rays = [ray, "job", "submit", "--address", head.address, "--", *COMMAND, "--version"]
    for command in (ours, rays):
        first_line_s(head, command)  # the cluster is warm then
    took_s = [(first_line_s(head, ours), first_line_s(head, rays)) for _ in range(ROUNDS)]
    ours_s, rays_s = (median(column) for column in zip(*took_s, strict=True))
    print(f"cropscore submit {ours_s:.2f} s, ray job submit {rays_s:.2f} s: {ours_s / rays_s:.2f}")
    assert ours_s <= BOUND * rays_s
