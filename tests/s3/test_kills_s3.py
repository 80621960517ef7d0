"""A bulk run while things are killed: actors, the command, nodes, the store.

On a Ray cluster of several nodes, with images, model and run in the S3 server. Whatever is
killed, the table in the end is that of a run that nobody disturbed, row for row.
"""

import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from machines import IMPATIENT, Machines
from models import random_model
from plain import without_ray

from cropscore_ray import storage
from cropscore_ray.config.bulk import LocalizeConfig, RunConfig
from cropscore_ray.datasets.drawn import draw_image_set
from cropscore_ray.jobs import index, localize

pytestmark = pytest.mark.timeout(3600)

NUM_IMAGES = 60
ACTOR = "StageActor"
MOST_S = 6.0
"""From one kill to the next."""
MOST_AFTER_A_PART_S = 3.0
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
        command = [*IMPATIENT, "localize", self.manifest]
        command += ["--model", self.model, "--out", out, "--part-images", "1"]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=self.machines.environment)

    def end(self, command: subprocess.Popen[bytes]) -> None:
        assert command.wait() == 0, self.log.read_text()[-5000:]


def parts(out: str) -> int:
    """Return how many are written, once the store is there to tell."""
    return len(storage.persistently(out, lambda: storage.list_files(f"{out}/predictions")))


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
    config = LocalizeConfig(part_images=1)
    with without_ray(bulk.machines.cpus_per_node):
        localize.run("localize", RunConfig(source=bulk.manifest, model=bulk.model, out=out), config)
    found = rows(out)
    assert [row["status"] for row in found[:2]] == ["undecodable", "missing"]
    assert len(found) == 2 + 5 * (NUM_IMAGES - 2)
    return found


@dataclass
class Killer:
    """Kills what it is told, one after the other, at random moments."""

    kills: list[str]
    bulk: Bulk
    server: Any
    away_s: float
    was_away: bool = False
    """Whether the store was, since the command was started."""
    parts_before: int = 0
    """Written when it was started."""

    def localize(self, out: str) -> None:
        """Run to the end, through as many of the kills as fall into it.

        A command may end with an error where the store was away while it began, and not later.
        """
        command = self._start(out)
        while command.poll() is None:
            self._wait(command, out)
            if self.kills and command.poll() is None:
                command = self.kill(command, out)
            if command.poll() == 1 and self.was_away and parts(out) == self.parts_before:
                command = self._start(out)
        self.bulk.end(command)

    def _start(self, out: str) -> subprocess.Popen[bytes]:
        self.was_away, self.parts_before = False, parts(out)
        return self.bulk.localize(out)

    def _wait(self, command: subprocess.Popen[bytes], out: str) -> None:
        """Wait for a random time, or for a part to be written and a moment more.

        Without that, all kills would fall into starts where a start takes longer than MOST_S.
        """
        if random.random() < 0.5:
            time.sleep(random.uniform(0, MOST_S))
            return
        before = parts(out)
        while parts(out) <= before and command.poll() is None:
            time.sleep(0.2)
        time.sleep(random.uniform(0, MOST_AFTER_A_PART_S))

    def kill(self, command: subprocess.Popen[bytes], out: str) -> subprocess.Popen[bytes]:
        """Kill what is next; return the command, which may be another now."""
        kind, killed = self.kills[0], True
        if kind == "driver":
            command.kill()
            command.wait()
            command = self._start(out)
        elif kind == "store":
            self.was_away = True
            self.server.go_away()
            time.sleep(random.uniform(1, self.away_s))
            self.server.come_back()
        elif kind == "actor":
            killed = self.bulk.machines.kill_worker(ACTOR)
        else:
            killed = self.bulk.machines.kill_node(ACTOR)
        if killed:
            print(f"{out}: {parts(out)} of {NUM_IMAGES} parts after a kill of the {kind}")
            self.kills.pop(0)
        return command


@pytest.mark.parametrize(
    ("kills", "away_s"),
    [
        (["actor", "store", "driver", "node"], 5),
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
    killer, runs = Killer(kills.copy(), bulk, s3_server, away_s), 0
    while killer.kills:
        out, runs = f"{s3_uri}/run-{runs}", runs + 1
        killer.localize(out)
        assert rows(out) == unbroken
        record = storage.read_json(f"{out}/run.json")
        assert record["complete"]
        by_status = {"ok": NUM_IMAGES - 2, "undecodable": 1, "missing": 1}
        assert record["counts"]["by_status"] == by_status
    bulk.end(bulk.localize(out))
    assert f"{out} is complete: {NUM_IMAGES} images; nothing to do" in bulk.log.read_text()
