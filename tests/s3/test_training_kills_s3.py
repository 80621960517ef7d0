"""Training while things are killed: a worker, the driver, the node that holds rank 0.

On a real Ray cluster on this machine, whose nodes, Ray's own processes, have room for one worker
each; checkpoints go to the S3 server, or to a disk.
"""

import io
import pickle
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from machines import IMPATIENT, TRAIN_WORKER, Machines

from cropscore_ray import storage
from cropscore_ray.datasets.drawn import draw_image_set
from cropscore_ray.errors import StorageError
from cropscore_ray.jobs import index
from cropscore_ray.models.bundle import load_bundle

pytestmark = pytest.mark.timeout(1800)

SETTINGS = (
    "classifier.num_members=1",
    "classifier.ema_decay=0.99",
    "checkpoint_steps=5",
    "network.width=0.25",  # steps that take a while
    "preprocess.input_px=64",
    "preprocess.frame_px=72",
    "num_workers=2",
)
NOT_YET_WHOLE = (RuntimeError, EOFError, pickle.UnpicklingError)
FAR = 24
"""Steps from one kill to the next: one that began anew would be seen before it got there."""
BACK = 16
"""Steps that may be lost: what is in the storage counts once Ray Train has seen it there, which
looks twice a second, and of what comes faster something is left out."""


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    made = Machines(cpus_per_node=1, has_dashboard=True)
    yield made
    made.cluster.shutdown()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("kills")
    labels = draw_image_set(str(folder / "images"), num_train=80, num_val=0, seed=1)
    index.run(f"csv:{labels}", str(folder / "manifest"))
    return str(folder / "manifest")


@dataclass
class Training:
    """A training as users start it: a command of its own, on the cluster."""

    machines: Machines
    manifest: str
    model: str
    log: Path
    settings: tuple[str, ...]
    step: int = 0
    """Of the last checkpoint that was seen."""
    checkpoint: str = ""
    """The file that it was read from."""

    def start(self) -> None:
        command = [*IMPATIENT, "train", "classifier"]
        command += ["--data", self.manifest, "--model", self.model, "--recipe", "smoke"]
        for one in SETTINGS + self.settings:
            command += ["--set", one]
        environment = self.machines.environment
        with self.log.open("ab") as log:
            self.driver = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def go_on(self) -> None:
        """Wait until it is FAR ahead of here, and never further back than the last checkpoints."""
        far = self.step + FAR
        while self.step < far:
            assert self.driver.poll() is None, f"it ended too early: {self.log.read_text()}"
            step = self._last_step()
            assert step >= self.step - BACK, f"it went back from {self.step} to {step}"
            self.step = max(step, self.step)
            time.sleep(0.1)

    def _last_step(self) -> int:
        files = storage.list_files(storage.join(self.model, "training"))
        states = [one for one in files if one.endswith("state.pt")]
        if self.checkpoint == max(states, default=""):
            return self.step
        try:
            packed = io.BytesIO(storage.read_bytes(max(states)))
            step: int = torch.load(packed, weights_only=True)["current"]["step"]
        except (ValueError, StorageError, *NOT_YET_WHOLE):  # or none yet, or none any more
            return self.step
        self.checkpoint = max(states)
        return step

    def kill(self, what: str) -> None:
        """Kill a worker, the node of rank 0, or the driver, which is started again."""
        if what == "driver":
            self.driver.kill()
            self.driver.wait()
            self.start()
        elif what == "node":
            rank_0 = self.machines.first_of_training()
            assert self.machines.kill_node(TRAIN_WORKER, of=rank_0)
        else:
            self.machines.running(TRAIN_WORKER, self.driver)
            assert self.machines.kill_worker(TRAIN_WORKER)

    def weights(self) -> dict[str, torch.Tensor]:
        """Wait for the end; return what was learnt."""
        assert self.driver.wait() == 0, self.log.read_text()
        return load_bundle(self.model).tensors("classifier-0")


@pytest.mark.parametrize(
    ("kills", "epochs", "place"),
    [
        (["driver", "node"], 20, "s3"),
        pytest.param(
            ["worker", "node", "driver"] * 3 + ["node"], 80, "disk", marks=pytest.mark.slow
        ),
    ],
    ids=["2", "10"],
)
def test_a_training_that_is_killed_goes_on_to_the_same_weights(
    machines: Machines,
    manifest: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    kills: list[str],
    epochs: int,
    place: str,
) -> None:
    folder = request.getfixturevalue("s3_uri") if place == "s3" else str(tmp_path)

    def a_training(name: str) -> Training:
        settings = (f"classifier.epochs={epochs}",)
        log = tmp_path / f"{name}.log"
        made = Training(machines, manifest, f"{folder}/{name}", log, settings)
        request.addfinalizer(lambda: print(f"{name}:\n{log.read_text()}"))  # shown if it fails
        made.start()
        return made

    unbroken = a_training("unbroken").weights()
    training = a_training("killed")
    for kill in kills:
        training.go_on()
        time.sleep(random.uniform(0, 0.2))
        training.kill(kill)
    training.go_on()
    killed = training.weights()
    told = training.log.read_text()
    assert ", goes on from here" in told
    assert "--set use_gpu=true waits for GPUs" in told
    assert unbroken.keys() == killed.keys()
    for name, weight in unbroken.items():
        torch.testing.assert_close(
            killed[name], weight, msg=lambda text, name=name: f"{name}: {text}"
        )


def wait_for_two_workers(machines: Machines) -> None:
    """An elastic training begins with the nodes that there are, and looks for more now and then."""
    deadline_s = time.monotonic() + 180
    while len(machines.workers(TRAIN_WORKER)) < 2:
        assert time.monotonic() < deadline_s, "a node is not used"
        time.sleep(0.5)


@pytest.fixture
def on_one_of_two(machines: Machines, manifest: str, tmp_path: Path) -> Callable[..., Training]:
    """Return how to have a training lose a node that does not come back, and go on."""

    def lose(epochs: int) -> Training:
        settings = (f"classifier.epochs={epochs}", "min_workers=1")
        training = Training(machines, manifest, str(tmp_path / "model"), tmp_path / "log", settings)
        training.start()
        wait_for_two_workers(machines)
        training.go_on()
        machines.kill_node(TRAIN_WORKER, is_replaced=False)
        training.go_on()
        assert len(machines.workers(TRAIN_WORKER)) == 1
        return training

    return lose


@pytest.mark.slow
def test_a_training_ends_with_the_workers_that_are_left(
    on_one_of_two: Callable[..., Training], machines: Machines
) -> None:
    training = on_one_of_two(epochs=200)
    assert training.weights()
    machines.add_node()


@pytest.mark.slow
def test_a_node_that_comes_back_gets_a_worker_again(
    on_one_of_two: Callable[..., Training], machines: Machines
) -> None:
    training = on_one_of_two(epochs=2000)
    machines.add_node()
    wait_for_two_workers(machines)
    training.go_on()
    training.driver.kill()
    training.driver.wait()
