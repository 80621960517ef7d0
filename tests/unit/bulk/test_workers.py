"""How many workers a cluster gets, and what each takes."""

import pytest

from cropscore_ray.bulk.workers import Pool, pool
from cropscore_ray.clusters import resources
from cropscore_ray.config.bulk import WorkerConfig
from cropscore_ray.errors import ConfigError


@pytest.fixture
def cluster(monkeypatch):
    def make(*, gpus=(), cpus=(4,), joined=True, in_reach=False):
        nodes = {"GPU": list(gpus), "CPU": list(cpus)}
        monkeypatch.setattr(resources, "by_node", lambda kind: nodes[kind])
        monkeypatch.setattr(resources, "is_joined", lambda: joined)
        monkeypatch.setattr(resources, "gpus_in_reach", lambda: bool(gpus) or in_reach)

    return make


def test_a_worker_a_gpu_and_more_as_they_come(cluster):
    cluster(gpus=[8, 4])
    assert pool(WorkerConfig()) == Pool(num_now=12, most=None, num_gpus=1, num_cpus=0)


def test_two_workers_share_a_gpu(cluster):
    cluster(gpus=[1, 2])
    found = pool(WorkerConfig(gpus_per_worker=0.5))
    assert (found.num_now, found.num_gpus, found.num_threads) == (6, 0.5, None)


def test_a_worker_that_needs_more_than_half_a_gpu_has_it_alone(cluster):
    cluster(gpus=[2, 2])
    assert pool(WorkerConfig(gpus_per_worker=0.6)).num_now == 4


def test_gpus_that_an_autoscaler_can_bring_are_waited_for(cluster):
    cluster(in_reach=True)
    assert pool(WorkerConfig()) == Pool(num_now=1, most=None, num_gpus=1, num_cpus=0)
    assert pool(WorkerConfig(num_workers=8)).num_now == 8


@pytest.mark.parametrize("cpus", [1, 2, 4, 16, 96])
def test_without_gpus_a_node_has_room_for_one_worker_and_for_fetching(cluster, cpus):
    cluster(cpus=[cpus, cpus])
    found = pool(WorkerConfig())
    assert found.num_now == 2
    assert cpus / 2 < found.num_cpus < cpus
    assert found.num_threads == cpus


def test_a_large_node_has_several_workers_of_a_small_ones_size(cluster):
    cluster(cpus=[4, 16])
    assert pool(WorkerConfig()).num_now == 1 + 5


def test_cpus_are_taken_where_they_are_asked_for(cluster):
    cluster(gpus=[1], cpus=[8])
    assert pool(WorkerConfig(gpus_per_worker=0)).num_cpus == 6


@pytest.mark.parametrize(
    ("joined", "asked", "is_told"), [(True, None, True), (True, 0, False), (False, None, False)]
)
def test_it_is_told_that_a_cluster_without_gpus_takes_cpus(cluster, caplog, joined, asked, is_told):
    cluster(joined=joined)
    pool(WorkerConfig(gpus_per_worker=asked))
    assert ("--gpus-per-worker 1 waits for GPUs" in caplog.text) is is_told


def test_this_machine_alone_does_not_grow(cluster):
    cluster(joined=False)
    found = pool(WorkerConfig())
    assert (found.num_now, found.most, found.num_fetches) == (1, 1, 2)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (WorkerConfig(gpus_per_worker=1), "room for 0 workers of 1 GPUs, not 1"),
        (WorkerConfig(num_workers=3), "room for 1 workers without a GPU, not 3"),
    ],
    ids=["GPUs", "workers"],
)
def test_this_machine_alone_is_not_asked_for_more_than_it_has(cluster, asked, message):
    cluster(joined=False)
    with pytest.raises(ConfigError, match=message):
        pool(asked)


@pytest.mark.parametrize("wrong", [{"num_workers": 0}, {"gpus_per_worker": 1.5}])
def test_what_no_cluster_can_do_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        WorkerConfig(**wrong)
