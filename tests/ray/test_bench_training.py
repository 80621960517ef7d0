"""The training benchmark with very few steps; figures are measured, not tested."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cropscore_ray import storage
from cropscore_ray.bench import training as training_bench
from cropscore_ray.clusters import resources, session
from cropscore_ray.config.bench import BenchConfig
from cropscore_ray.errors import ConfigError
from cropscore_ray.jobs import bench
from cropscore_ray.terminal.tables import plain
from cropscore_ray.training import on_ray
from cropscore_ray.training.loop import State, Worker

SIZE = training_bench.Size(input_px=32, batch=4, steps=2)
EPOCHS_S = (99, 1, 4, 4, 3)
WAITED = (1, 0, 0.5, 0, 0.5)


def test_rates_are_those_of_their_epochs() -> None:
    epochs = [{"seconds": s, "input_wait": w} for s, w in zip(EPOCHS_S, WAITED, strict=True)]
    found = training_bench.measured([dict.fromkeys(training_bench.WORKERS, epochs)], SIZE)
    assert {row.name: row.values for row in found if "one" in row.name} == {
        "one worker": [16 / 4],  # epochs 2 and 5, of 8 images each
        "one worker, waiting": [1.5 / 4],
        "one worker, with checkpoints": [16 / 8],
        "one worker, with checkpoints, waiting": [2 / 8],
    }


def test_images_of_one_machine_are_not_for_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "connect", lambda: None)
    monkeypatch.setattr(resources, "num_nodes", lambda: 2)
    with pytest.raises(ConfigError, match="one machine, and the cluster has 2 nodes"):
        training_bench.on_gpu()


@pytest.mark.parametrize("where", ["here", pytest.param("on Ray", marks=pytest.mark.slow)])
def test_epochs_without_checkpoints_are_between_those_with_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    where: str,
) -> None:
    kept: list[tuple[int, int]] = []
    if where == "here":
        monkeypatch.setattr(training_bench, "on_gpu", lambda: False)
        monkeypatch.setattr(on_ray, "fit", partial(fit_here, kept))
    else:
        request.getfixturevalue("ray_local")
    monkeypatch.setattr(training_bench, "Size", lambda steps: replace(SIZE, steps=steps))
    left: list[str] = []

    def delete_folder(uri: str) -> None:
        left.extend(file.parent.parent.name for file in Path(uri).rglob("state.pt"))
        storage.delete_folder(uri)

    monkeypatch.setattr(bench, "delete_folder", delete_folder)
    found = bench.training(BenchConfig(storage=str(tmp_path), steps=2, rounds=1), lambda *_: None)
    rows = {row["name"]: row["median"] for row in found["rows"]}
    one, two = (rows[name] for name in training_bench.WORKERS)
    with_one, with_two = (rows[f"{name}, with checkpoints"] for name in training_bench.WORKERS)
    assert found["ratios"] == {
        "two workers/one worker": pytest.approx(two / one),
        "one worker, with checkpoints/without": pytest.approx(one / with_one),
        "two workers, with checkpoints/without": pytest.approx(two / with_two),
    }
    assert found["machine"]["dtype"] in plain(*bench.render(found))
    if where == "here":  # epoch and step
        assert kept == [(1, 1), (3, 5), (4, 7)] * 2
    assert set(left) == {"one-worker-0", "two-workers-0"}
    assert not list(tmp_path.rglob("state.pt"))


def fit_here(
    kept: list[tuple[int, int]],
    training: Callable[[Worker], Any],
    config: on_ray.FitConfig,
) -> Any:
    """Train in this process, whatever the number of workers, and leave checkpoints as Ray does."""

    def keep(metrics: dict[str, Any], state: Callable[[], State]) -> None:
        kept.append((metrics["epoch"], state()["current"]["step"]))
        folder = Path(config.storage_uri, config.name, "checkpoint")
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state(), folder / "state.pt")

    threads = torch.get_num_threads()
    try:
        return training(Worker(checkpoint=keep, checkpoint_steps=config.checkpoint_steps))
    finally:
        torch.set_num_threads(threads)
