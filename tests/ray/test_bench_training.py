"""The training benchmark's three ways, with very few steps; figures are measured, not tested."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cropscore_ray import storage
from cropscore_ray.bench import training as training_bench
from cropscore_ray.jobs import bench
from cropscore_ray.training import cluster
from cropscore_ray.training.sgd import State, Worker


def fit_here(
    training: Callable[[Worker], Any], *, name: str, storage_uri: str, **options: Any
) -> Any:
    """Train in this process, whatever the number of workers, and leave checkpoints as Ray does."""

    def keep(metrics: dict[str, Any], state: Callable[[], State]) -> None:
        folder = Path(storage_uri, name, "checkpoint")
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state(), folder / "state.pt")

    threads = torch.get_num_threads()
    try:
        return training(Worker(checkpoint=keep, checkpoint_steps=options["checkpoint_steps"]))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("where", ["here", pytest.param("on Ray", marks=pytest.mark.slow)])
def test_all_ways_take_the_same_steps(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    where: str,
) -> None:
    if where == "here":
        monkeypatch.setattr(cluster, "fit", fit_here)
    else:
        request.getfixturevalue("ray_local")
    size = training_bench.Size(input_px=32, batch=4, steps=2)
    monkeypatch.setattr(training_bench, "SIZE", size)
    left: list[str] = []

    def delete_folder(uri: str) -> None:
        left.extend(file.parent.parent.name for file in Path(uri).rglob("state.pt"))
        storage.delete_folder(uri)

    monkeypatch.setattr(bench, "delete_folder", delete_folder)
    found = bench.training(storage=str(tmp_path), rounds=1, progress=lambda *_: None)
    rows = {row["name"]: row["median"] for row in found["rows"]}
    for name in training_bench.CONTESTANTS:
        assert rows[name] > 0
        assert 0 <= rows[f"{name}, waiting"] <= 1
    ratio = rows["two workers"] / rows["one worker"]
    slower = rows["one worker"] / rows["with checkpoints"]  # a step's time with them to without
    assert found["ratios"] == {
        "two workers/one worker": pytest.approx(ratio),
        "with checkpoints/without": pytest.approx(slower),
    }
    assert left == ["with-checkpoints-0"]
    assert not list(tmp_path.rglob("state.pt"))
