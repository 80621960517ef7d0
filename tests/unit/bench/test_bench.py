"""What the benchmark counts and computes; its figures are measured, not tested."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

from cropscore_ray.bench import localizer as localizer_bench
from cropscore_ray.bench import measuring, roofline
from cropscore_ray.bench import scorer as scorer_bench
from cropscore_ray.bench.measuring import Measured
from cropscore_ray.cli import main
from cropscore_ray.config.sections import NetworkConfig
from cropscore_ray.jobs import bench as job
from cropscore_ray.models.googlenet import make_network
from cropscore_ray.terminal.tables import plain


def test_contestants_run_in_turn_after_a_warm_up() -> None:
    calls: list[str] = []
    told: list[tuple[int, int]] = []

    def contestant(name: str, units: int) -> measuring.Run:
        def run() -> int:
            calls.append(name)
            return units

        return run

    rows = measuring.measure(
        {"a": contestant("a", 1), "b": contestant("b", 1000)},
        unit="things/s",
        rounds=2,
        progress=lambda done, total: told.append((done, total)),
    )
    assert calls == ["a", "b"] * 3
    assert told == [(i, 6) for i in range(1, 7)]
    assert [row.name for row in rows] == ["first call: a", "first call: b", "a", "b"]
    assert [len(row.values) for row in rows] == [1, 1, 2, 2]
    assert [row.unit for row in rows] == ["s", "s", "things/s", "things/s"]
    assert measuring.ratio(rows, "b", "a") > 10


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    rows = [
        Measured(name="fast", unit="1/s", values=[10.0, 4.0, 9.0]),
        Measured(name="slow", unit="1/s", values=[5.0, 1.0, 3.0]),  # ratios 2, 4, 3
    ]
    assert measuring.ratio(rows, "fast", "slow") == 3


def test_googlenets_layers_are_the_published_ones() -> None:
    found = roofline.layers(make_network(NetworkConfig(), 1000).eval(), 224)
    macs = sum(macs for macs, _ in found) + 1024 * 1000  # the linear layer
    assert macs / 1e6 == pytest.approx(1498, abs=1)
    assert found[0] == (112 * 112 * 64 * 3 * 49, 3 * 224 * 224 + 64 * 112 * 112)


def test_the_roofline_takes_the_slower_of_arithmetic_and_memory() -> None:
    arithmetic = (1000, 10)  # 2 s at 1,000 operations/s; 0.2 s at 100 bytes/s
    memory = (100, 200)  # 0.2 s; 4 s
    assert roofline.roofline([arithmetic, memory], 1000, 100, item_bytes=2) == pytest.approx(1 / 6)


def test_photos_are_jpeg_files_and_the_same_every_time() -> None:
    files = scorer_bench.photos(2)
    assert files == scorer_bench.photos(2)
    assert files[0] != files[1]
    assert all(data[:2] == b"\xff\xd8" for data in files)


def test_the_command_prints_the_contracts_json(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def tiny(bundle_uri: str) -> Iterator[dict[str, measuring.Run]]:
        names = ("naive", "good_practice", "exact", "forward_only", "pyramid")
        yield dict.fromkeys(names, lambda: 1)

    monkeypatch.setattr(scorer_bench, "contestants", tiny)
    for name in ("matrix_rate", "copy_rate"):
        rate = Measured(name=name, unit="1/s", values=[1e12])
        monkeypatch.setattr(roofline, name, lambda *_, rate=rate: rate)
    result = CliRunner().invoke(main, ["bench", "scorer", "--rounds", "2", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found) == {"machine", "rows", "ratios"}
    assert set(found["ratios"]) == {
        "exact/naive",
        "exact/good_practice",
        "pyramid/exact",
        "exact/forward_only",
        "exact/roofline",
    }
    assert all(
        set(row) == {"name", "unit", "median", "min", "max", "runs"} for row in found["rows"]
    )
    assert "exact/naive" in plain(*job.render(found))


@pytest.mark.trains
def test_the_localizers_two_ways_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localizer_bench, "NUM_CLASSES", 3)
    arguments = ["bench", "localizer", "--rounds", "1", "--images", "4", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    rows = {row["name"]: row["median"] for row in found["rows"]}
    assert found["ratios"] == {"stacked/loop": pytest.approx(rows["stacked"] / rows["loop"])}
    assert 0 <= rows["largest difference"] < 1e-4


@pytest.mark.slow
def test_every_contestant_scores_an_image(tmp_path: object) -> None:
    bundle = scorer_bench.random_bundle(str(tmp_path))
    with scorer_bench.contestants(bundle.uri) as contestants:
        for name, run in contestants.items():
            assert run() >= 1, name
