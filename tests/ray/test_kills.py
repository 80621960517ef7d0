"""Training while things are killed: a worker, the driver, the node that holds rank 0.

On a real Ray cluster of several nodes on this machine; nodes are Ray's own processes.
"""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from machines import Machines

from cropscore_ray import storage
from cropscore_ray.bundle import load_bundle
from cropscore_ray.datasets.drawn import draw_image_set
from cropscore_ray.jobs import index

pytestmark = pytest.mark.timeout(1800)

SETTINGS = (
    "classifier.num_members=1",
    "classifier.epochs=80",
    "classifier.ema_decay=0.99",
    "checkpoint_steps=5",
    "num_workers=2",
)


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    made = Machines()
    yield made
    made.cluster.shutdown()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("kills")
    labels = draw_image_set(str(folder / "images"), num_train=64, num_val=0, seed=1)
    index.run(f"csv:{labels}", str(folder / "manifest"))
    return str(folder / "manifest")


def start(machines: Machines, manifest: str, model: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cropscore_ray.cli", "train", "classifier"]
    command += ["--data", manifest, "--model", str(model), "--recipe", "smoke"]
    for one in SETTINGS:
        command += ["--set", one]
    with (model.parent / f"{model.name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=machines.environment)


def checkpoints(model: Path) -> set[str]:
    files = storage.list_files(str(model / "training"))
    return {Path(one).parent.name for one in files if one.endswith("state.pt")}


def train_through(
    kills: list[str], machines: Machines, manifest: str, model: Path
) -> dict[str, torch.Tensor]:
    """Train to the end, with a kill a moment after each next checkpoint; return the weights."""
    driver = start(machines, manifest, model)
    for kill in kills:
        before = checkpoints(model)
        while not checkpoints(model) - before:
            assert driver.poll() is None, f"the training ended before its {kill} could be killed"
            time.sleep(0.1)
        time.sleep(random.uniform(0, 2))
        if kill == "driver":
            driver.kill()
            driver.wait()
            driver = start(machines, manifest, model)
        else:
            machines.running("RayTrainWorker")
            assert getattr(machines, f"kill_{kill}")("RayTrainWorker")
    assert driver.wait() == 0, (model.parent / f"{model.name}.log").read_text()
    return load_bundle(str(model)).tensors("classifier-0")


@pytest.mark.parametrize(
    "kills",
    [
        ["worker", "driver", "node"],
        pytest.param(["worker", "node", "driver"] * 3 + ["node"], marks=pytest.mark.slow),
    ],
    ids=len,
)
def test_a_training_that_is_killed_ends_with_the_same_weights(
    machines: Machines, manifest: str, tmp_path: Path, kills: list[str]
) -> None:
    unbroken = train_through([], machines, manifest, tmp_path / "unbroken")
    killed = train_through(kills, machines, manifest, tmp_path / "killed")
    assert unbroken.keys() == killed.keys()
    for name, weight in unbroken.items():
        torch.testing.assert_close(
            killed[name], weight, msg=lambda text, name=name: f"{name}: {text}"
        )
