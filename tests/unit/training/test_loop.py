"""The training loop in a plain process: a resumed run is the run, and chance is seeded."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from models import Linear
from tasks import (
    CLASSES,
    NETWORK,
    NUM_CLASSES,
    SQUARES,
    Keeper,
    StoppedError,
    a_task,
    assert_same,
    objective,
    weights,
)
from torch import Tensor, nn

from cropscore_ray.config.sections import ScorerConfig
from cropscore_ray.errors import ConfigError, DataError
from cropscore_ray.models.googlenet import make_network
from cropscore_ray.training.data.crops import scorer_sampler
from cropscore_ray.training.data.images import LabelledImages
from cropscore_ray.training.data.regions import PyramidDataset
from cropscore_ray.training.loop import NetworkTask, State, Worker, train_networks
from cropscore_ray.training.objectives import crops

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def images(draw_labelled: Callable[..., LabelledImages]) -> LabelledImages:
    return draw_labelled(12, NUM_CLASSES, seed=5)


def without_seconds(history: list[dict[str, float]]) -> list[dict[str, float]]:
    clocks = ("seconds", "input_wait")
    return [{name: one[name] for name in one if name not in clocks} for one in history]


def a_pyramid_task(images: LabelledImages, name: str = "scorer", epochs: int = 3) -> NetworkTask:
    task, config = a_task(images, name=name, epochs=epochs), ScorerConfig(grid_fraction=0.8)
    dataset = PyramidDataset(images, config, task.dataset.preprocess, task.seed, stride=8)
    return replace(task, dataset=dataset, objective=objective(dataset, learns_overlap=True))


class Unbroken(NamedTuple):
    """Trainings of one kind after the other, and what they learn where nothing stops them."""

    tasks: Callable[[], list[NetworkTask]]
    finished: dict[str, State]


@pytest.fixture(
    scope="module", params=["classes", "squares", "regions", "everything", "in bfloat16"]
)
def unbroken(images: LabelledImages, request: pytest.FixtureRequest) -> Iterator[Unbroken]:
    kind = request.param

    def a_task_of_its_kind(name: str) -> NetworkTask:
        if kind == "regions":
            return a_pyramid_task(images, name)
        task = a_task(images, name=name, sampler=SQUARES if kind == "squares" else CLASSES)
        if kind in ("everything", "in bfloat16"):
            task.dataset.photometric = 0.4
            config = replace(task.config, ema_decay=0.9, schedule="step", pass_size=3)
            helped = objective(task.dataset, aux_weight=0.3)
            task = replace(task, config=config, objective=helped)
        return task

    def tasks() -> list[NetworkTask]:
        return [a_task_of_its_kind(name) for name in ("first", "second")]

    dtype = torch.bfloat16 if kind == "in bfloat16" else torch.float32
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crops, "best_dtype", lambda _: dtype)
        yield Unbroken(tasks, train_networks(tasks(), Worker()))


@pytest.mark.parametrize("stop_after", [1, 2, 11])  # of 9 steps and, every second, checkpoints
def test_a_stopped_run_goes_on_to_the_same_weights(unbroken: Unbroken, stop_after: int) -> None:
    tasks, finished = unbroken
    keeper = Keeper(stop_after=stop_after)
    with pytest.raises(StoppedError):
        train_networks(tasks(), Worker(checkpoint=keeper, checkpoint_steps=2))
    torch.manual_seed(12345)  # another process has another history
    resumed = train_networks(tasks(), Worker(resumed=keeper.states[-1]))
    for name in ("first", "second"):
        assert_same(weights(resumed, name), weights(finished, name))
        assert without_seconds(resumed[name]["metrics"]) == without_seconds(
            finished[name]["metrics"]
        )


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
    finished = train_networks([a_task(images, epochs=40)], Worker())
    history = finished["classifier-0"]["metrics"]
    # A third to two thirds in the end, in float32 and bfloat16 and with other seeds.
    first, last = (sum(one["loss"] for one in some) for some in (history[:5], history[-5:]))
    assert last < 0.8 * first
    assert history[-1]["failed"] == 0


def test_a_pyramid_learns_from_its_regions(images: LabelledImages) -> None:
    finished = train_networks([a_pyramid_task(images, epochs=12)], Worker())
    history = finished["scorer"]["metrics"]
    # The level of a step is drawn, and the third is harder: compare the ends, not the steps.
    first, last = (sum(one["loss"] for one in some) for some in (history[:3], history[-3:]))
    assert last < 0.9 * first


@pytest.mark.parametrize(("epochs", "batch_size"), [(1, 12), (2, 6), (5, 3)])
def test_any_number_of_steps_has_a_schedule(
    images: LabelledImages, epochs: int, batch_size: int
) -> None:
    task = a_task(images, epochs=epochs, batch_size=batch_size)  # 1, 4 and 20 steps
    assert len(train_networks([task], Worker())["classifier-0"]["metrics"]) == epochs


def test_squares_that_are_never_drawn_need_no_calibration(images: LabelledImages) -> None:
    rarely = scorer_sampler(ScorerConfig(grid_fraction=0.0))
    task = a_task(images, epochs=1, sampler=rarely)
    task = replace(task, objective=objective(task.dataset, learns_overlap=True))
    assert math.isfinite(train_networks([task], Worker())["classifier-0"]["metrics"][0]["loss"])


def test_no_labelled_image_is_said(images: LabelledImages) -> None:
    nothing = LabelledImages(uris=[], classes=np.array([], np.int64), boxes=[])
    with pytest.raises(DataError, match="classifier-0: 0 labelled training images for 1 workers"):
        train_networks([a_task(nothing)], Worker())


class Gradients(nn.Module):
    """A wrapper like that of several workers: keeps the gradient of each step of this one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.kept: list[Tensor] = []
        weight = next(module.parameters())
        weight.register_post_accumulate_grad_hook(lambda one: self.kept.append(one.grad.clone()))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.module(*inputs)


def first_gradients(images: LabelledImages, pass_size: int | None, **worker: int) -> list[Tensor]:
    """Return what the passes of the first step add up to, pass by pass."""
    torch.manual_seed(0)
    network, made = Linear(NUM_CLASSES), []

    def wrap(module: nn.Module) -> nn.Module:
        made.append(Gradients(module))
        return made[0]

    task = a_task(images, epochs=1, batch_size=12)
    config = replace(task.config, pass_size=pass_size)
    task = replace(task, config=config, make=lambda: copy.deepcopy(network))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crops, "best_dtype", lambda device: torch.float32)
        train_networks([task], Worker(wrap=wrap, **worker))
    return made[0].kept


def test_passes_add_up_to_the_gradient_of_the_whole_step(images: LabelledImages) -> None:
    whole = first_gradients(images, None)
    passes = first_gradients(images, 5)
    assert (len(whole), len(passes)) == (1, 3)
    torch.testing.assert_close(passes[-1], whole[0])


def test_workers_gradients_average_to_that_of_one(images: LabelledImages) -> None:
    whole = first_gradients(images, None)[0]
    shares = [first_gradients(images, None, rank=rank, num_workers=5)[0] for rank in range(5)]
    assert not torch.allclose(shares[0], shares[4])  # 12 images: two have three, three have two
    torch.testing.assert_close(torch.stack(shares).mean(0), whole)


def test_a_moving_average_is_what_is_kept(images: LabelledImages) -> None:
    torch.manual_seed(0)
    network, keeper = Linear(NUM_CLASSES), Keeper()
    task = a_task(images, epochs=1)
    config = replace(task.config, ema_decay=0.15)
    task = replace(task, config=config, make=lambda: copy.deepcopy(network))
    finished = train_networks([task], Worker(checkpoint=keeper, checkpoint_steps=1))
    steps = [one["current"]["network"]["fc.weight"] for one in keeper.states]
    # The first step begins the average; then the decay is 2/11, cut to 0.15.
    expected = steps[0]
    for one in steps[1:]:
        expected = 0.15 * expected + 0.85 * one
    torch.testing.assert_close(weights(finished, "classifier-0")["fc.weight"], expected)


def test_auxiliary_heads_train_and_stay_behind(images: LabelledImages) -> None:
    def trained(aux_weight: float) -> dict[str, State]:
        task = a_task(images, epochs=1)
        helped = objective(task.dataset, aux_weight=aux_weight)
        return train_networks([replace(task, objective=helped)], Worker())

    plain, helped = trained(0.0), trained(0.3)
    with_heads = weights(helped, "classifier-0")
    assert with_heads.keys() == weights(plain, "classifier-0").keys()
    stem = "conv1.conv.weight"
    assert not torch.equal(with_heads[stem], weights(plain, "classifier-0")[stem])


def test_a_loss_that_is_no_number_ends_the_training(images: LabelledImages) -> None:
    task = a_task(images)
    task = replace(task, config=replace(task.config, learning_rate=1e30))
    with pytest.raises(ConfigError, match="the loss is not a number any more") as error:
        train_networks([task], Worker())
    assert "learning_rate" in str(error.value.hint)
