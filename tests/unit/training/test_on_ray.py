"""What a training asks a cluster for, and what it makes of the cluster's answers."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import ActorDiedError
from ray.train import TrainingFailedError, WorkerGroupError

from cropscore_ray import storage
from cropscore_ray.clusters import resources
from cropscore_ray.errors import ConfigError, CropscoreError, DataError, StorageError
from cropscore_ray.training import on_ray, ray_worker
from cropscore_ray.training.on_ray import (
    FitConfig,
    _Ear,
    _last_checkpoint,
    _run_to_the_end,
    scaling_config,
)
from cropscore_ray.training.ray_worker import _Checkpoints, cores_of_worker


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def make(*, gpus: int, joined: bool = True, in_reach: bool = False) -> None:
        found = {"CPU": [8.0], "GPU": [1.0] * gpus}
        monkeypatch.setattr(resources, "by_node", lambda kind: found[kind])
        monkeypatch.setattr(resources, "is_joined", lambda: joined)
        monkeypatch.setattr(resources, "gpus_in_reach", lambda: gpus > 0 or in_reach)

    return make


@pytest.mark.parametrize(
    ("gpus", "in_reach", "told"),
    [(0, True, ""), (1, False, "1 of 4 GPUs are up; the others are waited for"), (4, False, "")],
)
def test_a_cluster_with_gpus_or_that_can_get_some_is_asked_for_them(
    cluster: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    gpus: int,
    in_reach: bool,
    told: str,
) -> None:
    cluster(gpus=gpus, in_reach=in_reach)
    assert scaling_config(4, None, None).use_gpu is True
    assert [one.message for one in caplog.records] == [told] * bool(told)


@pytest.mark.parametrize(("asked", "is_told"), [(None, True), (False, False)])
def test_it_is_told_that_a_cluster_without_gpus_trains_on_cpus(
    cluster: Callable[..., None], caplog: pytest.LogCaptureFixture, asked: bool, is_told: bool
) -> None:
    cluster(gpus=0)
    assert scaling_config(4, None, asked).use_gpu is False
    assert ("--set use_gpu=true waits for GPUs" in caplog.text) is is_told


@pytest.mark.parametrize(("gpus", "expected"), [(0, False), (1, False), (2, True)])
def test_this_machine_alone_takes_gpus_if_it_has_enough(
    cluster: Callable[..., None], caplog: pytest.LogCaptureFixture, gpus: int, expected: bool
) -> None:
    cluster(gpus=gpus, joined=False)
    assert scaling_config(2, None, None).use_gpu is expected
    assert not caplog.records


def test_this_machine_alone_is_not_asked_for_more_than_it_has(
    cluster: Callable[..., None],
) -> None:
    cluster(gpus=1, joined=False)
    with pytest.raises(ConfigError, match="num_workers is 2, but this machine has 1 GPUs for Ray"):
        scaling_config(2, None, True)


def test_the_fewest_workers_make_a_training_elastic(cluster: Callable[..., None]) -> None:
    cluster(gpus=0)
    assert scaling_config(4, 1, False).num_workers == (1, 4)
    assert scaling_config(4, 4, False).num_workers == 4


@pytest.mark.parametrize(("gpus", "strategy"), [(4, "PACK"), (0, "SPREAD")])
def test_workers_without_gpus_take_the_cores_of_all_nodes(
    cluster: Callable[..., None], gpus: int, strategy: str
) -> None:
    cluster(gpus=gpus)
    assert scaling_config(4, None, None).placement_strategy == strategy


@pytest.mark.parametrize(
    ("cpus", "seen", "workers", "expected"),
    [(16, 16, 1, 16), (16, 16, 4, 4), (128, 128, 2, 64), (8, 96, 1, 8), (4, 2, 1, 2), (0, 2, 1, 1)],
    ids=["all", "shares", "many", "container", "local", "none for work"],
)
def test_a_worker_has_its_share_of_the_cores_that_its_node_has(
    monkeypatch: pytest.MonkeyPatch, cpus: int, seen: int, workers: int, expected: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: seen)
    assert cores_of_worker(cpus, workers) == expected


@pytest.mark.parametrize("on_gpu", [False, True])
def test_silence_is_explained_where_a_cluster_has_no_room(
    cluster: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    on_gpu: bool,
) -> None:
    clock, heard, kind = [0.0], list[Any](), "GPU" if on_gpu else "CPU"
    monkeypatch.setattr(on_ray.time, "monotonic", lambda: clock[0])
    cluster(gpus=8)
    ears = [
        _Ear(
            lambda *event: heard.append(event),
            FitConfig(name="x", storage_uri="", num_workers=fewest),
            on_gpu=on_gpu,
        )
        for fewest in (8, 9)
    ]
    for clock[0] in (29.0, 31.0, 60.0):  # told once in 30 s
        for ear in ears:
            ear.hear_nothing()
    told = f"training x waits for 9 workers with a {kind} each; the cluster has 8 {kind}s now"
    assert [one.message for one in caplog.records] == [told]
    ears[1].hear("x", 1, 2, "")
    clock[0] = 89.0
    ears[1].hear_nothing()
    assert len(caplog.records) == 1
    assert heard == [("x", 1, 2, "")]


def test_no_more_checkpoints_are_on_their_way_than_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers agree: each reports, or none does. Rank 0 alone knows what has arrived."""
    reported: list[Any] = []
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
    monkeypatch.setattr(ray.train, "report", lambda metrics, **how: reported.append(how))
    monkeypatch.setattr(ray_worker, "get_device", lambda: torch.device("cpu"))
    may_write = list[bool]()
    rank_0 = _Checkpoints(lambda: may_write.append(True))

    def arrives(index: int) -> None:
        shutil.rmtree(reported[index]["checkpoint"].path)

    for _ in range(4):
        rank_0({}, lambda: {"step": len(reported)})
    assert len(reported) == len(may_write) == 2
    folder = Path(reported[1]["checkpoint"].path)
    assert torch.load(folder / "state.pt") == {"step": 1}
    arrives(0)
    for _ in range(2):
        rank_0({}, dict)
    assert len(reported) == 3
    # The others hear it from rank 0, and have no checkpoint of their own.
    others = _Checkpoints(lambda: may_write.append(True))
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 1))
    for on_their_way in (2, 1):
        monkeypatch.setattr(ray_worker, "_total", lambda own, other=on_their_way: own + other)
        others({}, dict)
    assert [one["checkpoint"] for one in reported[3:]] == [None]
    assert len(may_write) == 3
    for index in (1, 2):
        arrives(index)


def note_checkpoint(folder: Path, name: str = "checkpoint_1") -> None:
    """Leave what Ray Train leaves that has registered a checkpoint."""
    storage.write_bytes(str(folder / name / "state.pt"), b"")
    result = {"checkpoint_dir_name": name, "metrics": {}}
    noted = {
        "ray_version": ray.__version__,
        "checkpoint_results": [result],
        "checkpoint_report_indices": [1],
        "latest_checkpoint_result": result,
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": 1,
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    storage.write_json(str(folder / "checkpoint_manager_snapshot.json"), noted)


def test_the_checkpoint_that_a_start_goes_on_from_is_the_noted_one(tmp_path: Path) -> None:
    assert _last_checkpoint(str(tmp_path), "x") is None
    note_checkpoint(tmp_path / "x", "checkpoint_1")
    storage.write_bytes(str(tmp_path / "x/checkpoint_2/state.pt"), b"came too late to be noted")
    assert _last_checkpoint(str(tmp_path), "x") == str(tmp_path / "x/checkpoint_1")


@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_a_training_whose_notes_of_checkpoints_are_damaged_says_so(
    tmp_path: Path, damage: str
) -> None:
    note_checkpoint(tmp_path / "x")
    if damage == "torn":
        storage.write_bytes(str(tmp_path / "x/checkpoint_manager_snapshot.json"), b"")
    else:
        storage.delete_folder(str(tmp_path / "x/checkpoint_1"))
    with pytest.raises(StorageError, match="cannot go on with training x") as caught:
        _run_to_the_end(lambda: Failing(tmp_path, RuntimeError()), "x", str(tmp_path))
    assert caught.value.hint == f"delete {tmp_path}/x to begin this training anew"


class Failing:
    """A trainer that fails, the first time with a new checkpoint."""

    def __init__(self, folder: Path, failure: Exception) -> None:
        self.folder = folder
        self.failure = failure
        self.num_fits = 0

    def fit(self) -> Any:
        self.num_fits += 1
        note_checkpoint(self.folder / "x")
        raise WorkerGroupError("Traceback\nRuntimeError: lost", {1: self.failure})


@pytest.mark.parametrize(
    ("failure", "raised", "num_fits", "hint"),
    [
        (DataError("no boxes", hint="draw some"), DataError, 1, "draw some"),
        (StorageError("no answer", hint="wait"), StorageError, 2, "wait"),
        (RuntimeError("lost"), CropscoreError, 2, "start the same command again"),
    ],
    ids=["comes again", "may pass", "not ours"],
)
def test_an_error_of_a_worker_is_raised_as_it_is_and_tried_again_if_it_may_pass(
    tmp_path: Path, failure: Exception, raised: type[CropscoreError], num_fits: int, hint: str
) -> None:
    trainer = Failing(tmp_path, failure)
    with pytest.raises(CropscoreError, match=str(failure)) as caught:
        _run_to_the_end(lambda: trainer, "x", str(tmp_path))
    assert type(caught.value) is raised
    assert trainer.num_fits == num_fits
    assert hint in str(caught.value.hint)
    assert isinstance(caught.value.__cause__, TrainingFailedError)


def test_a_training_whose_node_is_lost_says_that_it_can_go_on(tmp_path: Path) -> None:
    trainer = Failing(tmp_path, RuntimeError())
    trainer.fit = lambda: (_ for _ in ()).throw(ActorDiedError())  # type: ignore[method-assign]
    with pytest.raises(CropscoreError, match="training x was lost") as caught:
        _run_to_the_end(lambda: trainer, "x", str(tmp_path))
    assert "start the same command again" in str(caught.value.hint)
