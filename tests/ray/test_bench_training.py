"""The training benchmark with very few steps; figures are measured, not tested."""

from collections.abc import Callable
from functools import partial
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
def test_rates_waits_and_ratios_of_each_number_of_workers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    where: str,
) -> None:
    if where == "here":
        monkeypatch.setattr(cluster, "fit", fit_here)
    else:
        request.getfixturevalue("ray_local")
    size = partial(training_bench.Size, input_px=32, batch=4)
    monkeypatch.setattr(training_bench, "Size", size)
    left: list[str] = []

    def delete_folder(uri: str) -> None:
        left.extend(file.parent.parent.name for file in Path(uri).rglob("state.pt"))
        storage.delete_folder(uri)

    monkeypatch.setattr(bench, "delete_folder", delete_folder)
    found = bench.training(storage=str(tmp_path), steps=2, rounds=1, progress=lambda *_: None)
    rows = {row["name"]: row["median"] for row in found["rows"]}
    for name in training_bench.WORKERS:
        for title in (name, f"{name}, with checkpoints"):
            assert rows[title] > 0
            assert 0 <= rows[f"{title}, waiting"] <= 1
        slower = rows[name] / rows[f"{name}, with checkpoints"]  # a step's time with to without
        assert found["ratios"][f"{name}, with checkpoints/without"] == pytest.approx(slower)
    more = rows["two workers"] / rows["one worker"]
    assert found["ratios"]["two workers/one worker"] == pytest.approx(more)
    assert set(left) == {"one-worker-0", "two-workers-0"}
    assert not list(tmp_path.rglob("state.pt"))


def test_only_the_middle_of_some_epochs_has_a_checkpoint() -> None:
    steps = 0
    kept: list[int] = []
    in_the_middle = training_bench._InTheMiddle(lambda *_: kept.append(steps))
    for epoch in range(1, 6):
        for _ in ("middle", "end"):
            steps += 10
            in_the_middle({"epoch": epoch}, dict)
    assert kept == [50, 70]
