"""The training loop in a plain process: a resumed run is the run, and chance is seeded."""

import copy
import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cropscore_ray.config import (
    ClassifierConfig,
    NetworkConfig,
    PreprocessConfig,
    ScorerConfig,
    SgdConfig,
)
from cropscore_ray.datasets.drawn import draw_image
from cropscore_ray.errors import DataError
from cropscore_ray.networks import make_network
from cropscore_ray.training import sgd
from cropscore_ray.training.crops import (
    CropDataset,
    LabelledImages,
    Sampler,
    classifier_sampler,
    scorer_sampler,
)
from cropscore_ray.training.regions import PyramidDataset
from cropscore_ray.training.sgd import NetworkTask, State, Worker, train_networks

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORK = NetworkConfig(architecture="googlenet-small", width=0.125)
NUM_CLASSES = 3
CLASSES = classifier_sampler(ClassifierConfig(min_area_fraction=0.5))
SQUARES = scorer_sampler(ScorerConfig(grid_fraction=0.5))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    folder: Path = tmp_path_factory.mktemp("drawn")
    uris, classes, boxes = [], [], []
    for i in range(12):
        image, found = draw_image(np.random.default_rng((5, i)), i % NUM_CLASSES)
        image.save(folder / f"{i}.png")
        uris.append(str(folder / f"{i}.png"))
        classes.append(i % NUM_CLASSES)
        boxes.append(np.array(found, np.float64))
    return LabelledImages(uris=uris, classes=np.array(classes), boxes=boxes)


def a_task(
    images: LabelledImages,
    *,
    name: str = "classifier-0",
    epochs: int = 3,
    batch_size: int = 4,
    sampler: Sampler = CLASSES,
    seed: int = 1,
) -> NetworkTask:
    preprocess = PreprocessConfig(input_px=32, frame_px=36)
    return NetworkTask(
        name=name,
        make=partial(make_network, NETWORK, NUM_CLASSES),
        dataset=CropDataset(images, sampler, preprocess, seed),
        config=SgdConfig(epochs=epochs, batch_size=batch_size, learning_rate=0.05),
        seed=seed,
        learns_overlap=sampler is SQUARES,
    )


class StoppedError(Exception):
    """What a lost node looks like to the loop."""


@dataclass
class Keeper:
    """Keeps every checkpoint, and stops the training after so many."""

    stop_after: int | None = None
    states: list[State] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, metrics: dict[str, Any], state: State) -> None:
        self.states.append(copy.deepcopy(state))
        self.metrics.append(metrics)
        if len(self.states) == self.stop_after:
            raise StoppedError


def weights(finished: dict[str, State], name: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = finished[name]["weights"]
    return found


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def without_seconds(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: one[name] for name in one if name != "seconds"} for one in history]


def a_pyramid_task(images: LabelledImages, name: str = "scorer", epochs: int = 3) -> NetworkTask:
    task, config = a_task(images, name=name, epochs=epochs), ScorerConfig(grid_fraction=0.8)
    dataset = PyramidDataset(images, config, task.dataset.preprocess, task.seed, stride=8)
    return replace(task, dataset=dataset, learns_overlap=True)


@pytest.mark.parametrize("kind", ["classes", "squares", "regions"])
@pytest.mark.parametrize("stop_after", [1, 4])
def test_a_stopped_run_goes_on_to_the_same_weights(
    images: LabelledImages, kind: str, stop_after: int
) -> None:
    def a_task_of_its_kind(name: str) -> NetworkTask:
        if kind == "regions":
            return a_pyramid_task(images, name)
        return a_task(images, name=name, sampler=CLASSES if kind == "classes" else SQUARES)

    def tasks() -> list[NetworkTask]:
        return [a_task_of_its_kind(name) for name in ("first", "second")]

    unbroken = train_networks(tasks(), Worker())
    keeper = Keeper(stop_after=stop_after)
    with pytest.raises(StoppedError):
        train_networks(tasks(), Worker(checkpoint=keeper))
    torch.manual_seed(12345)  # another process has another history
    resumed = train_networks(tasks(), Worker(resumed=keeper.states[-1]))
    for name in ("first", "second"):
        assert_same(weights(resumed, name), weights(unbroken, name))
        assert without_seconds(resumed[name]["metrics"]) == without_seconds(
            unbroken[name]["metrics"]
        )


def test_a_checkpoint_follows_every_epoch(images: LabelledImages) -> None:
    keeper, task = Keeper(), a_task(images)
    finished = train_networks([task], Worker(checkpoint=keeper))
    assert task.dataset.epoch == 2  # each epoch draws other crops
    assert [one["epoch"] for one in keeper.metrics] == [1, 2, 3]
    assert {one["network"] for one in keeper.metrics} == {"classifier-0"}
    assert keeper.states[0]["finished"] == {}
    assert_same(keeper.states[-1]["current"]["network"], weights(finished, "classifier-0"))


def test_members_with_other_seeds_are_other_networks(images: LabelledImages) -> None:
    tasks = [a_task(images, name=str(seed), epochs=1, seed=seed) for seed in (1, 2)]
    finished = train_networks(tasks, Worker())
    assert not torch.equal(weights(finished, "1")["fc.weight"], weights(finished, "2")["fc.weight"])


def test_no_epochs_take_the_first_weights_as_they_are(images: LabelledImages) -> None:
    finished = train_networks([a_task(images, epochs=0)], Worker())
    torch.manual_seed(1)
    assert_same(weights(finished, "classifier-0"), dict(make_network(NETWORK, 3).state_dict()))
    assert finished["classifier-0"]["metrics"] == []


def test_a_short_training_learns_its_images(images: LabelledImages) -> None:
    finished = train_networks([a_task(images, epochs=15)], Worker())
    history = finished["classifier-0"]["metrics"]
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert history[-1]["failed"] == 0


def test_a_pyramid_learns_from_its_regions(images: LabelledImages) -> None:
    finished = train_networks([a_pyramid_task(images, epochs=12)], Worker())
    history = finished["scorer"]["metrics"]
    # The level of a step is drawn, and the third is harder: compare the ends, not the steps.
    first, last = (sum(one["loss"] for one in some) for some in (history[:3], history[-3:]))
    assert last < 0.9 * first


def test_progress_counts_every_step(images: LabelledImages) -> None:
    steps: list[tuple[str, int, int]] = []

    def progress(name: str, done: int, total: int, loss: float) -> None:
        assert math.isfinite(loss)
        steps.append((name, done, total))

    train_networks([a_task(images, epochs=2, batch_size=5)], Worker(progress=progress))
    assert steps == [("classifier-0", done, 4) for done in (1, 2, 3, 4)]


@pytest.mark.parametrize(("epochs", "batch_size"), [(1, 12), (2, 6), (5, 3)])
def test_any_number_of_steps_has_a_schedule(
    images: LabelledImages, epochs: int, batch_size: int
) -> None:
    task = a_task(images, epochs=epochs, batch_size=batch_size)  # 1, 4 and 20 steps
    assert len(train_networks([task], Worker())["classifier-0"]["metrics"]) == epochs


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [sgd._rate(step, 40) for step in range(41)]  # two steps of warm-up
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[21] == pytest.approx(0.5)
    assert rates[40] == pytest.approx(0.0)
    for num_steps in (1, 2, 3, 19, 20, 21):
        assert all(0 <= sgd._rate(step, num_steps) <= 1 for step in range(num_steps + 1))


def test_squares_that_are_never_drawn_need_no_calibration(images: LabelledImages) -> None:
    rarely = scorer_sampler(ScorerConfig(grid_fraction=0.0))
    task = a_task(images, epochs=1, sampler=rarely)
    task = NetworkTask(**{**vars(task), "learns_overlap": True})
    assert math.isfinite(train_networks([task], Worker())["classifier-0"]["metrics"][0]["loss"])


def test_two_workers_take_equally_many_steps_on_other_images(images: LabelledImages) -> None:
    finished = []
    for rank in (0, 1):
        task = a_task(images, epochs=1)
        keeper = Keeper()
        worker = Worker(rank=rank, num_workers=2, checkpoint=keeper)
        finished.append(train_networks([task], worker))
        schedule = keeper.states[0]["current"]["schedule"]
        assert schedule["last_epoch"] == 3  # 6 images each, 2 a step
    first, second = (weights(one, "classifier-0")["fc.weight"] for one in finished)
    assert not torch.equal(first, second)


def test_no_labelled_image_is_said(images: LabelledImages) -> None:
    nothing = LabelledImages(uris=[], classes=np.array([], np.int64), boxes=[])
    with pytest.raises(DataError, match="classifier-0: 0 labelled training images for 1 workers"):
        train_networks([a_task(nothing)], Worker())


@pytest.mark.parametrize("num_images", [5, 48, 100])
def test_the_number_of_steps_does_not_depend_on_the_number_of_workers(
    images: LabelledImages, num_images: int
) -> None:
    uris = (images.uris * num_images)[:num_images]
    many = LabelledImages(
        uris=uris, classes=np.zeros(num_images, np.int64), boxes=[np.zeros((0, 4))] * num_images
    )
    task = a_task(many, batch_size=16)
    lengths = [len(sgd._loader(task, Worker(num_workers=n))) for n in (1, 2, 3, 5)]
    assert lengths == [max(1, num_images // 16)] * 4
