"""The training benchmark's three ways, with very few steps; figures are measured, not tested."""

from pathlib import Path

import pytest

from cropscore_ray import storage
from cropscore_ray.bench import training as training_bench
from cropscore_ray.jobs import bench

pytestmark = pytest.mark.usefixtures("ray_local")


def test_all_ways_take_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert found["ratios"]["two workers/one worker"] == pytest.approx(ratio)
    assert left == ["with-checkpoints-0"]
    assert not list(tmp_path.rglob("state.pt"))
