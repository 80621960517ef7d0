"""A bulk run on a cluster that gets another node, and what Prometheus is told of it."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import WAIT_S, Machines
from models import random_model

from cropscore_ray import storage
from cropscore_ray.datasets.drawn import draw_image_set
from cropscore_ray.jobs import index
from cropscore_ray.uri_list import write_list

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana" / "cropscore.json"
NUM_IMAGES = 600


@pytest.fixture
def machines() -> Iterator[Machines]:
    made = Machines(num_nodes=1)
    yield made
    made.cluster.shutdown()


def start(machines: Machines, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cropscore_ray.cli", "score", str(folder / "manifest")]
    command += ["--model", str(folder / "model"), "--out", str(folder / "run"), *options]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=machines.environment)


def wait_for(what: str, is_there, command: subprocess.Popen[bytes], folder: Path) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not is_there():
        assert command.poll() is None, (folder / "log").read_text()[-3000:]
        assert time.monotonic() < deadline_s, f"no {what}"
        time.sleep(0.2)


def test_a_pool_grows_with_its_cluster_and_tells_prometheus(
    machines: Machines, tmp_path: Path
) -> None:
    draw_image_set(str(tmp_path / "drawn"), num_train=30, num_val=0, seed=1)
    index.run(str(tmp_path / "drawn"), str(tmp_path / "few"))
    uris = storage.read_table(str(tmp_path / "few"))["image_uri"].to_pylist()
    lines = [uris[i % len(uris)].encode() for i in range(NUM_IMAGES - 1)]
    write_list([*lines, b"/nowhere.jpg"], str(tmp_path / "manifest"), begun=False)
    random_model(str(tmp_path / "model"))
    command = start(machines, tmp_path, "--part-images", "4", "--classes", "predicted")
    wait_for("part", lambda: storage.list_files(f"{tmp_path}/run/scores"), command, tmp_path)
    assert len(machines.workers("StageActor")) == 1
    machines.add_node()
    wait_for("second", lambda: len(machines.workers("StageActor")) == 2, command, tmp_path)
    told = ""
    while command.poll() is None:
        told = machines.metrics() or told
        time.sleep(1)
    assert command.wait() == 0, (tmp_path / "log").read_text()[-3000:]
    counts = storage.read_json(f"{tmp_path}/run/run.json")["counts"]
    assert counts["by_status"] == {"ok": NUM_IMAGES - 1, "missing": 1}
    assert re.search(r'ray_cropscore_images_total\{[^}]*status="ok"[^}]*\} \d', told)
    drawn = set(re.findall(r"\bray_\w+", DASHBOARD.read_text()))
    without_gpus = drawn - {"ray_node_gpus_utilization"}
    assert without_gpus <= set(re.findall(r"^(ray_\w+)", told, re.MULTILINE))


def test_the_dashboard_is_one_that_grafana_reads() -> None:
    found = json.loads(DASHBOARD.read_text())
    assert {"title", "uid", "panels", "templating", "schemaVersion"} <= found.keys()
    ids = [panel["id"] for panel in found["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in found["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert all(
            target["expr"].count("(") == target["expr"].count(")") for target in panel["targets"]
        )
