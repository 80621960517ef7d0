"""The same run to an object store gives the same table as to a disk."""

from pathlib import Path

import pytest

from cropscore_ray import storage
from cropscore_ray.config import LocalizeConfig
from cropscore_ray.datasets.drawn import draw_image_set
from cropscore_ray.jobs import index, localize, recipes, train
from cropscore_ray.settings import with_settings

pytestmark = pytest.mark.usefixtures("ray_local")


def run(source: str, model: str, out: str) -> list[dict]:
    config = LocalizeConfig(part_images=4)
    record = localize.run(
        "localize", source=source, split="val", model=model, out=out, config=config
    )
    assert record["complete"]
    return storage.read_table(storage.join(out, "predictions")).to_pylist()


def names(rows: list[dict]) -> list[dict]:
    return [{**row, "image_uri": row["image_uri"].rsplit("/", 1)[-1]} for row in rows]


def test_images_model_and_run_on_s3_equal_those_on_disk(s3_uri: str, tmp_path: Path):
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
    on_disk = run(
        storage.join(here, "manifest"), storage.join(there, "model"), storage.join(here, "run")
    )
    assert len(on_s3) == 8 * 6
    assert names(on_s3) == names(on_disk)
