"""Runs to an object store: the same table as on a disk, and one run at a time."""

import threading
import time
from pathlib import Path

import pytest
from models import random_model

from cropscore_ray import storage
from cropscore_ray.config.bulk import LocalizeConfig, RunConfig
from cropscore_ray.config.overrides import with_settings
from cropscore_ray.datasets.drawn import draw_image_set
from cropscore_ray.errors import RunConflictError
from cropscore_ray.jobs import index, localize, recipes, train
from cropscore_ray.storage import lock

pytestmark = pytest.mark.usefixtures("ray_local")


def run(source: str, model: str, out: str) -> list[dict]:
    run = RunConfig(source=source, split="val", model=model, out=out)
    record = localize.run("localize", run, LocalizeConfig(part_images=4))
    assert record["complete"]
    return storage.read_table(storage.join(out, "predictions")).to_pylist()


def names(rows: list[dict]) -> list[dict]:
    return [{**row, "image_uri": row["image_uri"].rsplit("/", 1)[-1]} for row in rows]


@pytest.mark.usefixtures("train_here")
def test_images_model_and_run_on_s3_equal_those_on_disk(
    s3_uri: str, tmp_path: Path, request: pytest.FixtureRequest
):
    draw = {"num_train": 48, "num_val": 8, "seed": 2}
    here, there = str(tmp_path), s3_uri
    for root in (here, there):
        labels = draw_image_set(storage.join(root, "images"), **draw)
        index.run(f"csv:{labels}", storage.join(root, "manifest"))
    train.run(
        "all",
        data=storage.join(there, "manifest"),
        model=storage.join(there, "model"),
        config=with_settings(recipes.smoke(), ["classifier.num_members=1"]),
    )
    on_s3 = run(
        storage.join(there, "manifest"), storage.join(there, "model"), storage.join(there, "run")
    )
    request.getfixturevalue("bulk_here")
    on_disk = run(
        storage.join(here, "manifest"), storage.join(there, "model"), storage.join(here, "run")
    )
    assert len(on_s3) == 8 * 6
    assert names(on_s3) == names(on_disk)


def test_a_run_whose_lock_another_took_stops_and_says_so(s3_uri: str, tmp_path: Path):
    draw_image_set(str(tmp_path / "images"), num_train=16, num_val=0, seed=2)
    random_model(str(tmp_path / "model"))
    out = storage.join(s3_uri, "run")

    def take_it_over_after_the_first_part() -> None:
        while not storage.list_files(storage.join(out, "predictions")):
            time.sleep(0.05)
        where, another = storage.join(out, lock.NAME), {"token": "another's"}
        while storage.read_json(where) != another:  # Ceph may keep a renewal at the same moment
            storage.write_json(where, another)

    other = threading.Thread(target=take_it_over_after_the_first_part, daemon=True)
    other.start()
    taken = RunConfig(source=str(tmp_path / "images"), model=str(tmp_path / "model"), out=out)
    with pytest.raises(RunConflictError, match=f"another run took over {out} while"):
        localize.run("localize", taken, LocalizeConfig(part_images=1))
    other.join()
    assert len(storage.list_files(storage.join(out, "predictions"))) < 16
    assert not storage.read_json(storage.join(out, "run.json"))["complete"]
    assert storage.read_json(storage.join(out, lock.NAME)) == {"token": "another's"}
