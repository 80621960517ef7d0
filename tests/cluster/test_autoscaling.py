"""Bulk runs on a cluster whose GPU nodes come because a run asks for them, and leave after it."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from autoscaling import Autoscaling
from bulk import NUM_PARTS, Bulk, make_images_and_model, wait_for
from heads import COMMAND, temporary

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

BOUND_S = 15


@pytest.fixture(scope="module")
def cluster() -> Iterator[Autoscaling]:
    with temporary("auto-") as folder:
        made = Autoscaling(folder)
        yield made
        made.head.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("work")
    make_images_and_model(made)
    return made


@pytest.fixture(scope="module")
def unbroken(cluster: Autoscaling, folder: Path) -> Bulk:
    """A complete run, and a cluster that was used for nothing else so far."""
    run = Bulk(folder, "unbroken")
    finish(run, submit(run, cluster))
    return run


def submit(run: Bulk, cluster: Autoscaling) -> subprocess.Popen[bytes]:
    """Submit a run of two workers with the command line, which waits for its end."""
    command = [*COMMAND, "submit", "--address", cluster.head.address, "--id", run.out, "--wait"]
    with log(run).open("wb") as said:
        return subprocess.Popen(
            [*command, "--", *run.command("--workers", "2", "--gpus-per-worker", "1")],
            env=cluster.head.environment(),
            cwd=run.folder,
            stdout=said,
            stderr=said,
        )


def log(run: Bulk) -> Path:
    return run.folder / f"{run.out}.log"


def finish(run: Bulk, command: subprocess.Popen[bytes]) -> None:
    assert command.wait(timeout=240) == 0, log(run).read_text()[-3000:]
    assert run.is_complete()


def test_gpu_nodes_come_for_a_run_are_both_used_and_leave(
    cluster: Autoscaling, unbroken: Bulk
) -> None:
    wait_for(lambda: cluster.num_alive() == 0)
    left_s, job = time.time(), cluster.head.ask(f"/api/jobs/{unbroken.out}")
    nodes, began_s = cluster.gpu_nodes(), cluster.began_s("StageActor")
    stayed_s = left_s - job["end_time"] / 1000
    first_s, second_s = sorted(min(times) for times in began_s.values())
    for node in nodes:
        num_parts = len(began_s[node.node_id])
        came_s = node.came_s - job["start_time"] / 1000
        print(f"a GPU node came {came_s:.1f} s after the job began, and did {num_parts} parts")
    print(f"the second was in use {second_s - first_s:.1f} s after the first")
    print(f"none was left {stayed_s:.1f} s after the end, with {cluster.idle_s} s to be idle")
    assert began_s.keys() == {node.node_id for node in nodes}
    assert sum(len(times) for times in began_s.values()) == NUM_PARTS
    assert second_s - first_s <= BOUND_S
    assert stayed_s <= cluster.idle_s + BOUND_S


def test_a_run_whose_node_is_taken_away_ends_with_the_same_rows(
    cluster: Autoscaling, unbroken: Bulk
) -> None:
    run, num_before = Bulk(unbroken.folder, "broken"), len(cluster.gpu_nodes())
    command = submit(run, cluster)
    wait_for(lambda: len(cluster.raylets("StageActor")) == 2 and run.num_parts() > 4)
    num_parts = run.num_parts()
    os.kill(random.choice(list(cluster.raylets("StageActor"))), signal.SIGKILL)
    assert num_parts < NUM_PARTS
    finish(run, command)
    num_nodes = len(cluster.gpu_nodes()) - num_before
    print(f"a node was taken away after {num_parts} of {NUM_PARTS} parts; {num_nodes} nodes came")
    assert run.rows().equals(unbroken.rows())
