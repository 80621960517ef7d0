"""Steps: every image once an epoch, the same for any number of workers, read ahead in order."""

import math
import threading
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cropscore_ray.config.sections import PreprocessConfig, SgdConfig
from cropscore_ray.errors import ConfigError
from cropscore_ray.training import loop
from cropscore_ray.training.data.batches import Feed, Plan, make_plan
from cropscore_ray.training.data.images import ImageDataset, LabelledImages, Request

CPU = torch.device("cpu")


def a_plan(num_images: int = 100, **settings: int) -> Plan:
    defaults = {"batch_size": 16, "pass_size": 16, "epochs": 3, "seed": 1, "rank": 0}
    return Plan(num_images=num_images, **(defaults | {"num_workers": 1} | settings))


@given(
    num_images=st.integers(1, 200),
    batch_size=st.integers(1, 50),
    pass_size=st.integers(1, 60),
    num_workers=st.integers(1, 7),
    seed=st.integers(0, 3),
)
def test_an_epoch_deals_every_image_of_its_batches_to_one_worker(
    num_images: int, batch_size: int, pass_size: int, num_workers: int, seed: int
) -> None:
    batch_size = min(batch_size, num_images)
    one = a_plan(num_images, batch_size=batch_size, pass_size=pass_size, seed=seed)
    workers = [replace(one, rank=rank, num_workers=num_workers) for rank in range(num_workers)]
    seen: list[int] = []
    for step in range(one.steps_an_epoch):
        shares = [worker.share(step) for worker in workers]
        assert sorted(chain(*shares)) == sorted(one.share(step))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        passes = workers[0].passes(step)
        assert list(chain(*passes)) == shares[0]
        sizes = [len(some) for some in passes]
        assert len(passes) == math.ceil(len(shares[0]) / pass_size)
        assert max(sizes) <= min(pass_size, min(sizes) + 1)
        seen += one.share(step)
    assert len(seen) == num_images // batch_size * batch_size
    assert len(set(seen)) == len(seen)


def test_no_pass_is_what_is_left_over() -> None:
    plan = a_plan(batch_size=13, pass_size=4)
    assert [len(images) for images in plan.passes(0)] == [3, 3, 3, 4]


def test_the_order_follows_seed_and_epoch() -> None:
    plan = a_plan(96)
    first = [plan.share(step) for step in range(6)]
    assert [plan.share(step) for step in range(6)] == first
    assert [plan.share(step) for step in range(6, 12)] != first
    assert [replace(plan, seed=2).share(step) for step in range(6)] != first


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="a step of 4 images cannot be shared by 5 workers"):
        make_plan("scorer", 100, SgdConfig(batch_size=4), seed=0, rank=0, num_workers=5)


class Echo(ImageDataset):
    """Gives back what it was asked for, in place of crops."""

    def __init__(self, num_images: int) -> None:
        some = LabelledImages(
            uris=[""] * num_images, classes=np.zeros(num_images, np.int64), boxes=[]
        )
        super().__init__(some, PreprocessConfig(), seed=0)
        self.threads: set[int] = set()
        self.num_asked = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __getitem__(self, request: Request) -> dict[str, Any]:
        self.threads.add(threading.get_ident())
        self.num_asked += 1
        if request.image < 0:
            raise ConfigError("no such image", hint="ask for another")
        return {"image": request.image, "epoch": request.epoch, "class_index": 0, "overlap": 0.0}


@pytest.mark.parametrize(("first_step", "num_loaders"), [(0, 0), (4, 0), (17, 0), (4, 2)])
def test_a_feed_gives_the_passes_of_all_steps_from_any_step_on(
    first_step: int, num_loaders: int
) -> None:
    plan, data = a_plan(50, batch_size=8, pass_size=3), Echo(50)
    feed = Feed(data, plan, first_step, CPU, num_loaders)
    for step in range(first_step, plan.num_steps):
        for images in plan.passes(step):
            batch = feed.take()
            assert batch["image"].tolist() == images
            assert set(batch["epoch"].tolist()) == {step // plan.steps_an_epoch}
    with pytest.raises(StopIteration):
        feed.take()
    assert feed.waited_s > 0


def test_a_feed_reads_ahead_in_a_thread() -> None:
    data = Echo(8)
    Feed(data, a_plan(8, batch_size=8, epochs=1), 0, CPU).take()
    assert threading.get_ident() not in data.threads


@pytest.mark.parametrize("num_loaders", [0, 1])
def test_a_feed_passes_an_error_on_with_its_hint_and_asks_for_no_more(num_loaders: int) -> None:
    data = Echo(8)
    data.request = lambda image, epoch, step: Request(-1, epoch)  # type: ignore[method-assign]
    feed = Feed(data, a_plan(8, batch_size=8, epochs=1), 0, CPU, num_loaders)
    with pytest.raises(ConfigError, match=r"^no such image$") as caught:
        feed.take()
    assert caught.value.hint == "ask for another"
    assert data.num_asked.item() == 1


def test_a_cosine_warms_up_and_falls_to_nothing() -> None:
    plan = a_plan(160, epochs=4)  # 40 steps, two of warm-up
    rates = [loop.rate_share(step, "cosine", plan) for step in range(41)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[21] == pytest.approx(0.5)
    assert rates[40] == pytest.approx(0.0)
    for num_images in (16, 32, 48, 19 * 16, 20 * 16, 21 * 16):
        short = a_plan(num_images, epochs=1)
        steps = range(short.num_steps + 1)
        assert all(0 <= loop.rate_share(step, "cosine", short) <= 1 for step in steps)


def test_steps_fall_by_four_per_cent_every_eight_epochs() -> None:
    plan = a_plan(32, epochs=20)  # 40 steps, two of warm-up
    rates = [loop.rate_share(step, "step", plan) for step in range(40)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:16] == [1.0] * 14
    assert rates[16:32] == pytest.approx([0.96] * 16)
    assert rates[32:] == pytest.approx([0.96**2] * 8)
