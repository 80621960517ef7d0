"""What a training tells while it goes on: checkpoints, lines of progress, and its time."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from tasks import NUM_CLASSES, Keeper, StoppedError, a_task, assert_same, weights

from cropscore_ray.training import loop
from cropscore_ray.training.data.images import LabelledImages
from cropscore_ray.training.loop import State, Worker, train_networks

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(draw_labelled: Callable[..., LabelledImages]) -> LabelledImages:
    return draw_labelled(12, NUM_CLASSES, seed=5)


def test_a_checkpoint_follows_every_epoch(images: LabelledImages) -> None:
    keeper, task = Keeper(), a_task(images)
    finished = train_networks([task], Worker(checkpoint=keeper))
    assert [one["epoch"] for one in keeper.metrics] == [1, 2, 3]
    assert {one["network"] for one in keeper.metrics} == {"classifier-0"}
    assert keeper.states[0]["finished"] == {}
    assert_same(keeper.states[-1]["current"]["network"], weights(finished, "classifier-0"))


def test_progress_counts_every_step(images: LabelledImages) -> None:
    steps: list[tuple[str, int, int]] = []

    def progress(name: str, done: int, total: int, detail: Callable[[], str]) -> None:
        assert re.fullmatch(
            r"loss \d\.\d{3}, \d+ images/s, \d+% of it waiting for images", detail()
        )
        steps.append((name, done, total))

    train_networks([a_task(images, epochs=2, batch_size=5)], Worker(progress=progress))
    assert steps == [("classifier-0", done, 4) for done in (1, 2, 3, 4)]


def test_progress_says_where_a_stopped_training_goes_on(images: LabelledImages) -> None:
    keeper = Keeper(stop_after=1)
    with pytest.raises(StoppedError):
        train_networks([a_task(images)], Worker(checkpoint=keeper, checkpoint_steps=2))
    told: list[tuple[int, int, str]] = []

    def progress(name: str, done: int, total: int, detail: Callable[[], str]) -> None:
        told.append((done, total, detail()))

    train_networks([a_task(images)], Worker(resumed=keeper.states[0], progress=progress))
    assert told[0] == (2, 9, "goes on from here")
    assert [done for done, _, _ in told[1:]] == [3, 4, 5, 6, 7, 8, 9]


def test_progress_counts_unreadable_images(images: LabelledImages) -> None:
    lines: list[str] = []
    gone = replace(images, uris=[*images.uris[:10], *(f"{uri}.gone" for uri in images.uris[10:])])

    def progress(name: str, done: int, total: int, detail: Callable[[], str]) -> None:
        lines.append(detail())

    train_networks([a_task(gone, epochs=2)], Worker(progress=progress))
    for epoch_end in (lines[2], lines[5]):  # 3 steps an epoch
        # The last but one is passed over for itself and, twice, for the one before it.
        assert epoch_end.endswith("images, passed over 3 unreadable ones")


def test_checkpoints_come_between_the_ends_of_epochs(images: LabelledImages) -> None:
    keeper = Keeper()
    train_networks([a_task(images, epochs=2)], Worker(checkpoint=keeper, checkpoint_steps=2))
    assert [one["current"]["step"] for one in keeper.states] == [2, 3, 4, 6]  # 3 an epoch
    assert [one["epoch"] for one in keeper.metrics] == [1, 1, 2, 2]
    assert all(0 <= one["input_wait"] <= 1 for one in keeper.metrics)


def test_an_epoch_takes_all_the_time_that_goes_by(
    images: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, states = [0.0], list[State]()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now_s[0]))

    def checkpoint(metrics: dict[str, Any], state: Callable[[], State]) -> None:
        states.append(copy.deepcopy(state()))
        now_s[0] += 10.0

    def progress(name: str, done: int, total: int, detail: Callable[[], str]) -> None:
        now_s[0] += 1.0

    settings: dict[str, Any] = {"checkpoint_steps": 2, "progress": progress}

    def seconds(**more: Any) -> list[float]:
        finished = train_networks([a_task(images)], Worker(**settings, **more))
        return [one["seconds"] for one in finished["classifier-0"]["metrics"]]

    # 3 steps an epoch, checkpoints after steps 2, 3, 4, 6, 8 and 9: that of an epoch's end takes
    # of the next one's time.
    assert seconds(checkpoint=checkpoint) == [13.0, 23.0, 23.0]
    # Of the first epoch two seconds had gone by at its checkpoint; those since then are nobody's.
    now_s[0] += 100.0
    assert seconds(resumed=states[0]) == [3.0, 3.0, 3.0]
