"""A bulk run on a cluster that gets another node, and what Prometheus is told of it."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from machines import WAIT_S, Machines
from models import random_model

from cropscore_ray import storage
from cropscore_ray.datasets.drawn import draw_image_set
from cropscore_ray.datasets.uri_list import write_list

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana" / "cropscore.json"


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    made = Machines(num_nodes=1)
    yield made
    made.cluster.shutdown()


@dataclass
class Bulk:
    """A run of a list of images, as a command of its own on the cluster."""

    machines: Machines
    folder: Path

    def start(self, out: str, num_images: int, *options: str) -> subprocess.Popen[bytes]:
        uris = storage.list_files(str(self.folder / "drawn"))
        uris = [uri for uri in uris if uri.endswith(".jpg")]
        lines = [uris[i % len(uris)].encode() for i in range(num_images - 1)]
        source = str(self.folder / f"{out}-manifest")
        write_list([*lines, b"/nowhere.jpg"], source, begun=False)
        command = [sys.executable, "-m", "cropscore_ray.cli", "score", source]
        command += ["--model", str(self.folder / "model"), "--out", str(self.folder / out)]
        command += ["--classes", "predicted", "--part-images", "4", *options]
        with self.log(out).open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=self.machines.environment)

    def log(self, out: str) -> Path:
        return self.folder / f"{out}.log"

    def wait_for(self, is_so: Callable[[], object], command: subprocess.Popen[bytes]) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not is_so():
            assert command.poll() is None, "it ended"
            assert time.monotonic() < deadline_s
            time.sleep(0.2)

    def workers(self) -> int:
        return len(self.machines.workers("StageActor"))


@pytest.fixture(scope="module")
def bulk(machines: Machines, tmp_path_factory: pytest.TempPathFactory) -> Bulk:
    folder = tmp_path_factory.mktemp("bulk")
    draw_image_set(str(folder / "drawn"), num_train=30, num_val=0, seed=1)
    random_model(str(folder / "model"))
    return Bulk(machines, folder)


def test_a_pool_grows_with_its_cluster_and_tells_prometheus(bulk: Bulk) -> None:
    num_images = 350
    command = bulk.start("grown", num_images)
    bulk.wait_for(lambda: storage.list_files(f"{bulk.folder}/grown/scores"), command)
    assert bulk.workers() == 1
    bulk.machines.add_node()
    bulk.wait_for(lambda: bulk.workers() == 2, command)
    told = ""
    while command.poll() is None:
        told = bulk.machines.metrics() or told
        time.sleep(1)
    assert command.wait() == 0, bulk.log("grown").read_text()[-3000:]
    counts = storage.read_json(f"{bulk.folder}/grown/run.json")["counts"]
    assert counts["by_status"] == {"ok": num_images - 1, "missing": 1}
    assert re.search(r'ray_cropscore_images_total\{[^}]*status="ok"[^}]*\} \d', told)
    drawn = set(re.findall(r"\bray_\w+", DASHBOARD.read_text()))
    without_gpus = drawn - {"ray_node_gpus_utilization"}
    assert without_gpus <= set(re.findall(r"^(ray_\w+)", told, re.MULTILINE))


def test_a_run_waits_for_gpus_and_shares_them(bulk: Bulk) -> None:
    command = bulk.start("shared", 120, "--gpus-per-worker", "0.5", "--workers", "2")
    bulk.wait_for(lambda: "waiting for a worker" in bulk.log("shared").read_text(), command)
    bulk.wait_for(lambda: bulk.workers() == 0, command)  # those of the run before take their time
    bulk.machines.add_node(num_gpus=1)
    bulk.wait_for(lambda: bulk.workers() == 2, command)
    assert command.wait() == 0, bulk.log("shared").read_text()[-3000:]
    assert storage.read_json(f"{bulk.folder}/shared/run.json")["complete"]


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
