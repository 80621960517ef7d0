"""A bulk run while things are killed: actors, the command, nodes, the store.

On a Ray cluster of several nodes, with images, model and run in the S3 server. Whatever is
killed, the table in the end is that of a run that nobody disturbed, row for row.
"""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from machines import Machines
from models import random_model

from cropscore_ray import storage
from cropscore_ray.datasets.drawn import draw_image_set
from cropscore_ray.errors import StorageError
from cropscore_ray.jobs import index

pytestmark = pytest.mark.timeout(3600)

NUM_IMAGES = 30
ACTOR = "StageActor"
KILLS_A_RUN = 10
SOAK = ["actor", "node", "driver", "store", "actor", "driver", "node", "actor", "store", "node"] * 3


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    made = Machines()
    yield made
    made.cluster.shutdown()


@dataclass
class Bulk:
    """A bulk run as users start it: a command of its own, on the cluster."""

    machines: Machines
    manifest: str
    model: str
    log: Path

    def localize(self, out: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "cropscore_ray.cli", "localize", self.manifest]
        command += ["--model", self.model, "--out", out, "--part-images", "1"]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=self.machines.environment)

    def end(self, command: subprocess.Popen[bytes]) -> None:
        assert command.wait() == 0, self.log.read_text()[-5000:]


def parts(out: str) -> int:
    """Return how many are written, if the store is there to tell."""
    try:
        return len(storage.list_files(f"{out}/predictions"))
    except StorageError:
        return 0


def rows(out: str) -> list[dict[str, Any]]:
    return storage.read_table(f"{out}/predictions").to_pylist()


@pytest.fixture(scope="module")
def bulk(machines: Machines, s3_bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Bulk:
    """A model, and images of which two cannot be used."""
    folder, base = tmp_path_factory.mktemp("bulk"), f"s3://{s3_bucket}/kills"
    draw_image_set(str(folder / "drawn"), num_train=NUM_IMAGES, num_val=0, seed=1)
    for number, file in enumerate(sorted((folder / "drawn").rglob("*.jpg"))):
        data = file.read_bytes() if number else b"not an image"
        storage.write_bytes(f"{base}/images/{number:03d}.jpg", data)
    index.run(f"{base}/images", f"{base}/manifest")
    storage.delete_file(f"{base}/images/001.jpg")
    random_model(f"{base}/model")
    return Bulk(machines, f"{base}/manifest", f"{base}/model", folder / "log")


@pytest.fixture(scope="module")
def unbroken(bulk: Bulk, s3_bucket: str) -> list[dict[str, Any]]:
    out = f"s3://{s3_bucket}/kills/unbroken"
    bulk.end(bulk.localize(out))
    found = rows(out)
    assert [row["status"] for row in found[:2]] == ["undecodable", "missing"]
    assert len(found) == 2 + 5 * (NUM_IMAGES - 2)
    return found


def localize_through(kills: list[str], bulk: Bulk, server: Any, out: str, away_s: float) -> None:
    """Localize to the end, with a kill a moment after each next part."""
    command = bulk.localize(out)
    for kill in kills:
        before = parts(out)
        while parts(out) == before:
            assert command.poll() is None, f"the run ended before its {kill} could be killed"
            time.sleep(0.1)
        time.sleep(random.uniform(0, 2))
        if kill == "driver":
            command.kill()
            command.wait()
            command = bulk.localize(out)
        elif kill == "store":
            server.go_away()
            time.sleep(random.uniform(1, away_s))
            server.come_back()
        elif kill == "actor":
            bulk.machines.kill_worker(ACTOR)
        else:
            bulk.machines.kill_node(ACTOR)
    bulk.end(command)


@pytest.mark.parametrize(
    ("kills", "away_s"),
    [
        (["actor", "store", "driver", "node"], 10),
        pytest.param(SOAK, 60, marks=pytest.mark.slow),
    ],
    ids=["4", "30"],
)
def test_a_run_that_is_killed_ends_with_the_same_rows(
    bulk: Bulk, unbroken: Any, s3_server: Any, s3_uri: str, kills: list[str], away_s: float
) -> None:
    seed = random.randrange(2**32)
    print(f"random.seed({seed})")
    random.seed(seed)
    for start in range(0, len(kills), KILLS_A_RUN):
        out = f"{s3_uri}/run-{start}"
        localize_through(kills[start : start + KILLS_A_RUN], bulk, s3_server, out, away_s)
        assert rows(out) == unbroken
        record = storage.read_json(f"{out}/run.json")
        assert record["complete"]
        by_status = {"ok": NUM_IMAGES - 2, "undecodable": 1, "missing": 1}
        assert record["counts"]["by_status"] == by_status
    bulk.end(bulk.localize(out))
    assert f"{out} is complete: {NUM_IMAGES} images; nothing to do" in bulk.log.read_text()
