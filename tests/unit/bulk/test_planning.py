"""What a run takes: by hand where nothing is lost, and by the law of large numbers where it is."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from cropscore_ray.bulk.planning import Cluster, Work, measured_rate, plan, render, simulate
from cropscore_ray.cli import main
from cropscore_ray.errors import DataError


def test_an_undisturbed_run_by_hand():
    work = Work(num_images=7_200_000, part_images=1000, images_per_read=80)
    found = plan(work, Cluster(num_workers=4, images_per_s=100, price_per_hour=2.5))
    assert found["hours"] == pytest.approx(5)
    assert found["worker_hours"] == pytest.approx(20)
    assert found["with_losses"]["hours"] == pytest.approx(5)
    assert found["with_losses"]["losses"] == 0
    assert found["cost"]["workers"] == pytest.approx(50)
    assert found["requests"] == {"gets": 90_000, "puts": 7200}
    assert found["cost"]["requests"] == pytest.approx(90_000 * 0.4e-6 + 7200 * 5e-6)
    assert found["result"]["files"] == 7200


def test_a_lost_worker_costs_its_part_and_the_time_until_another_works():
    """With one worker, each loss adds the wait and, on average, half a part."""
    work = Work(num_images=3_600_000, part_images=36_000)  # 10 hours of parts of 6 minutes
    cluster = Cluster(num_workers=1, images_per_s=100, losses_per_hour=0.5, replaced_after_s=720)
    rng = np.random.default_rng(1)
    runs = [simulate(work, cluster, rng) for _ in range(400)]
    losses = np.array([run.num_losses for run in runs])
    for run in runs:
        again_hours = run.images_again / 100 / 3600
        assert run.worker_hours == pytest.approx(10 + again_hours)
        assert run.hours == pytest.approx(run.worker_hours + 0.2 * run.num_losses)
    up_hours = np.mean([run.worker_hours for run in runs])
    assert losses.mean() == pytest.approx(0.5 * up_hours, rel=0.1)
    half_parts = np.sum([run.images_again for run in runs]) / losses.sum()
    assert half_parts == pytest.approx(18_000, rel=0.1)


def test_many_workers_work_at_the_share_of_time_that_they_are_up():
    cluster = Cluster(num_workers=64, images_per_s=100, losses_per_hour=1, replaced_after_s=1800)
    found = plan(Work(num_images=10**9), cluster)
    assert found["with_losses"]["hours"] == pytest.approx(1.5 * found["hours"], rel=0.05)
    assert found["with_losses"]["hours"] <= found["with_losses"]["hours_95"]


@pytest.mark.parametrize("num_images", [10**6, 10**8, 10**10])
def test_a_plan_of_any_size_is_made_at_once_and_is_the_same_again(num_images):
    cluster = Cluster(num_workers=256, images_per_s=70, losses_per_hour=0.05)
    found = plan(Work(num_images=num_images), cluster)
    assert found == plan(Work(num_images=num_images), cluster)
    assert found["with_losses"]["images_again"] <= found["with_losses"]["losses"] * 256


def test_an_image_has_more_beside_it_in_a_large_run():
    assert Work(num_images=1000, part_images=50).images_beside == 50
    assert Work(num_images=100).images_beside == (64 * 64 + 36 * 36) / 100
    assert Work(num_images=1000, part_images=900).images_beside == 820
    # 65,536 images in parts of 64, as many again and as many once more in parts of 128, then 256
    work = Work(num_images=65_536 + 131_072 + 256_000)
    by_hand = (65_536 * 64 + 131_072 * 128 + 256_000 * 256) / 452_608
    assert work.images_beside == pytest.approx(by_hand)


def test_the_rate_is_read_from_what_bench_printed(tmp_path):
    file = tmp_path / "rates.json"
    file.write_text(json.dumps({"rows": [{"name": "exact", "median": 70.5}]}))
    assert measured_rate(str(file), "exact") == 70.5
    with pytest.raises(DataError, match="has no rate of pyramid mode"):
        measured_rate(str(file), "pyramid")


def test_the_command_says_where_its_rate_comes_from(tmp_path):
    file = tmp_path / "rates.json"
    file.write_text(json.dumps({"rows": [{"name": "exact", "median": 70.5}]}))
    given = CliRunner().invoke(main, ["plan", "--images", "1000", "--rate", "10"])
    assert "as given, not measured here" in given.output
    found = CliRunner().invoke(
        main, ["plan", "--images", "1000", "--bench", str(file), "--price", "3", "--json"]
    )
    assert json.loads(found.output)["rate_source"] == f"measured, {file}"
    for wrong in ([], ["--rate", "1", "--bench", str(file)]):
        done = CliRunner().invoke(main, ["plan", "--images", "1000", *wrong])
        assert done.exit_code == 2
        assert "give --rate or --bench" in done.output


def test_a_table_shows_losses_where_there_are_any():
    cluster = Cluster(num_workers=8, images_per_s=100, losses_per_hour=0.5, price_per_hour=2)
    text = str(render({**plan(Work(num_images=10**8), cluster), "rate_source": "x"}))
    assert "images done again" in text
    assert "workers' cost" in text
