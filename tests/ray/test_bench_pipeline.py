"""The pipeline benchmark with very little work, and the driver's memory with very much."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from cropscore_ray.bench import pipeline as pipeline_bench
from cropscore_ray.bench import scorer as scorer_bench
from cropscore_ray.bench.pipeline import Returns, Size, Way
from cropscore_ray.config.bench import BenchConfig
from cropscore_ray.config.bulk import LocalizeConfig
from cropscore_ray.config.sections import NetworkConfig
from cropscore_ray.jobs import bench


@pytest.mark.usefixtures("bulk_here")
def test_all_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_bench, "SHARD_IMAGES", 64)
    small = Size(photos={"exact": (4, 2), "pyramid": (4, 2)}, shards=(64, 640, 1280))
    monkeypatch.setattr(pipeline_bench, "SIZE", small)
    network = NetworkConfig(architecture="googlenet-small", width=0.125)
    monkeypatch.setattr(scorer_bench, "NetworkConfig", lambda: network)
    kept: dict[str, set[int]] = {}
    take = pipeline_bench.take_parts_away

    def look(out: str, fraction: float) -> None:
        before = set(Path(out, "scores").iterdir())
        take(out, fraction)
        kept["lost"] = before - set(Path(out, "scores").iterdir())

    monkeypatch.setattr(pipeline_bench, "take_parts_away", look)
    steps: list[tuple[int, int]] = []
    found = bench.pipeline(BenchConfig(rounds=1), lambda *step: steps.append(step))
    assert steps == [(number, 8) for number in range(1, 9)]
    values = {row["name"]: row["median"] for row in found["rows"]}
    not_here = ("marginal", "start", "memory")  # no start, no actor, and no time to look
    measured = {name: values[name] for name in values if not name.startswith(not_here)}
    assert all(value > 0 for value in measured.values()), values
    seconds = values["whole run, 1,280 images"] - values["whole run, 640 images"]
    assert values["marginal, 640 to 1,280 images"] == pytest.approx(1e6 * seconds / 640)
    seconds = values["whole run, 640 images"]
    assert values["average, 640 images"] == pytest.approx(1e6 * seconds / 640)
    assert len(kept["lost"]) == 1
    assert found["ratios"] == {
        "pipeline/bare:exact": pytest.approx(values["pipeline, exact"] / values["bare, exact"]),
        "pipeline/bare:pyramid": pytest.approx(
            values["pipeline, pyramid"] / values["bare, pyramid"]
        ),
        "marginal_10k_to_100k/marginal_1k_to_10k": pytest.approx(
            values["marginal, 640 to 1,280 images"] / values["marginal, 64 to 640 images"]
        ),
        "overhead_100k/overhead_1k": pytest.approx(
            values["average, 1,280 images"] / values["average, 64 images"]
        ),
        "resume_99/full": pytest.approx(
            values["resume, 99 % done"] / values["whole run, 1,280 images"]
        ),
    }


@pytest.mark.usefixtures("ray_local")
def test_the_bare_loop_and_the_run_on_ray_write_the_same(tmp_path: Path) -> None:
    bundle = scorer_bench.random_bundle(str(tmp_path / "model"))
    config = LocalizeConfig(mode="pyramid", classes="label", part_images=2)
    manifest_uri = pipeline_bench.photo_manifest(tmp_path, 3)
    way = Way(manifest_uri=manifest_uri, model_uri=bundle.uri, config=config)
    with pipeline_bench.watched() as memory:
        way.on_ray(str(tmp_path / "on-ray"))
    assert min(memory.driver, memory.actor) > 50 * 2**20
    way.bare(str(tmp_path / "bare"))
    files = [sorted((tmp_path / name / "scores").iterdir()) for name in ("on-ray", "bare")]
    assert [file.name for file in files[0]] == [file.name for file in files[1]]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("ray_local")
def test_the_drivers_memory_does_not_grow_with_the_manifest(tmp_path: Path) -> None:
    bundle = scorer_bench.random_bundle(str(tmp_path / "model"))
    config = LocalizeConfig(classes="label")
    peaks = []
    for number in (10_000, 1_000_000):
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # its memory is not counted
            manifest_uri = apart.submit(pipeline_bench.shard_manifest, tmp_path, number).result()
        way = Way(
            manifest_uri=manifest_uri,
            model_uri=bundle.uri,
            config=config,
            stage=Returns,
        )
        with pipeline_bench.watched() as memory:
            seconds = way.on_ray(str(tmp_path / f"run-{number}"))
        peaks.append(memory)
        print(
            f"{number:,} images: driver {memory.driver / 2**20:.0f} MiB, "
            f"actor {memory.actor / 2**20:.0f} MiB, {number / seconds:.0f} images/s"
        )
    assert peaks[1].driver - peaks[0].driver < 100e6
    assert peaks[1].actor - peaks[0].actor < 100e6
