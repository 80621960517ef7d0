import csv
import json
import logging
from pathlib import Path

import pytest

from cropscore_ray import schema, storage
from cropscore_ray.datasets.manifest import Manifest, write_manifest
from cropscore_ray.errors import ConfigError, DataError
from cropscore_ray.jobs import evaluate as evaluate_job
from cropscore_ray.jobs import export as export_job
from cropscore_ray.schema import ImageClass
from cropscore_ray.terminal.tables import plain

REAL = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "ilsvrc-4k"
CLASSES = [ImageClass(id="n01", name="tench"), ImageClass(id="n02", name="goldfish")]
LEFT, RIGHT = [0, 0, 30, 100], [70, 0, 100, 100]


def write_images(uri, *splits):
    rows = [
        {
            "image_id": i,
            "image_uri": f"/data/{i}.jpg",
            "width_px": 100,
            "height_px": 100,
            "class_index": i % 2,
            "gt_boxes": [LEFT] if split == "train" else [RIGHT],
            "split": split,
        }
        for i, split in enumerate(splits)
    ]
    table = schema.rows_to_table(rows, schema.MANIFEST)
    write_manifest(uri, Manifest(table=table, classes=CLASSES))


def write_run(uri, image_ids, *, complete=True, constant_box=None):
    rows = [
        {
            "image_id": i,
            "image_uri": f"/data/{i}.jpg",
            "class_rank": rank,
            "class_index": i % 2,
            **dict(zip(("xmin", "ymin", "xmax", "ymax"), RIGHT, strict=True)),
            "status": "ok",
        }
        for i in image_ids
        for rank in (0, 1)
    ]
    table = schema.rows_to_table(rows, schema.PREDICTIONS)
    storage.write_table(f"{uri}/predictions/part-0000000.parquet", table)
    record = {
        "complete": complete,
        "classes": [{"id": one.id, "name": one.name} for one in CLASSES],
        "baselines": {"constant_box": constant_box, "cam_threshold": None},
    }
    storage.write_json(f"{uri}/run.json", record)


@pytest.fixture
def places(tmp_path):
    return str(tmp_path / "run"), str(tmp_path / "manifest"), str(tmp_path / "out")


def test_a_run_folder_is_evaluated_and_its_figures_written(places):
    run, data, out = places
    write_images(data, "train", "train", "val", "val")
    write_run(run, [2, 3])
    found = evaluate_job.run(run, data, json_path=out)
    assert found.to_json() == json.loads(Path(out).read_text())
    assert (found.split, found.overall.error.gt_known.fraction) == ("val", 0.0)


def test_the_runs_constant_box_stands_in_where_there_is_no_training_split(places):
    run, data, _ = places
    write_images(data, "val")
    write_run(run, [0], constant_box=[0.7, 0.0, 1.0, 1.0])
    found = evaluate_job.run(run, data)
    assert found.overall.baselines.constant_box.fraction == 0.0
    assert found.constant_box == [0.7, 0.0, 1.0, 1.0]


def test_the_manifests_training_split_goes_before_the_runs_constant_box(places):
    run, data, _ = places
    write_images(data, "train", "train", "val")
    write_run(run, [2], constant_box=[0.7, 0.0, 1.0, 1.0])
    assert evaluate_job.run(run, data).overall.baselines.constant_box.fraction == 1.0


def test_an_incomplete_run_is_evaluated_with_a_warning(places, caplog):
    run, data, out = places
    write_images(data, "val", "val")
    write_run(run, [0], complete=False)
    with caplog.at_level(logging.WARNING):
        found = evaluate_job.run(run, data)
        export_job.run(run, format="csv", out=out)
    assert found.num_failed == 1
    assert caplog.text.count("is not complete") == 2


def test_exports_are_evaluated_to_the_same_figures(places):
    run, data, out = places
    write_images(data, "train", "val", "val")
    write_run(run, [1, 2])
    ids = f"{out}.ids"
    Path(ids).write_text("2 n01\n1 n02\n")
    expected = evaluate_job.run(run, data).overall.error
    for name in ("ilsvrc", "devkit"):
        export_job.run(run, format=name, out=out, meta=ids)
        found = evaluate_job.run(out, data, split="val", format=name, meta=ids).overall.error
        assert (found.loc_top5, found.cls_top5) == (expected.loc_top5, expected.cls_top5)


def test_the_devkit_format_needs_a_meta_file_and_a_split(places):
    run, data, out = places
    write_images(data, "train", "val")
    write_run(run, [1])
    for job in (
        lambda: evaluate_job.run(run, data, split="val", format="devkit"),
        lambda: export_job.run(run, format="devkit", out=out),
    ):
        with pytest.raises(ConfigError, match="needs the development kit's meta file") as caught:
            job()
        assert "--meta" in caught.value.hint
    with pytest.raises(ConfigError, match="the manifest has train, val"):
        evaluate_job.run(run, data, format="devkit", meta="ids.txt")


def test_an_unknown_format_is_refused(places):
    run, data, out = places
    write_images(data, "val")
    write_run(run, [0])
    with pytest.raises(ConfigError, match="'voc' is not one of parquet, ilsvrc, devkit"):
        evaluate_job.run(run, data, format="voc")
    with pytest.raises(ConfigError, match="'voc' is not one of ilsvrc, devkit, coco, csv"):
        export_job.run(run, format="voc", out=out)


def test_predictions_that_are_not_there_are_said_so(places):
    run, data, _ = places
    write_images(data, "val")
    with pytest.raises(DataError, match="no Parquet table here"):
        evaluate_job.run(run, data)


def test_the_table_for_people_shows_errors_beside_the_baselines(places):
    run, data, _ = places
    write_images(data, "train", "val", "val")
    write_run(run, [1])
    text = plain(*evaluate_job.render(evaluate_job.run(run, data)))
    lines = [line.split() for line in text.splitlines()]
    assert ["this", "run", "50.0", "±", "35.4", "50.0", "±", "35.4", "-"] in lines
    assert ["best", "constant", "box", "100.0", "±", "0.0", "100.0", "±", "0.0", "-"] in lines
    assert ["class", "activation", "map", "-", "-", "-"] in lines
    assert "2 images of split 'val', 1 of them without a prediction" in text
    assert max(map(len, text.splitlines())) <= 100


def real_manifest():
    """Return the real images, their boxes from Kaggle's solution files."""
    rows = []
    for split in ("train", "val"):
        lines = (REAL / f"LOC_{split}_solution.csv").read_text().splitlines()
        for stem, text in list(csv.reader(lines))[1:]:
            words = text.split()
            boxes = [
                [float(side) for side in words[i + 1 : i + 5]] for i in range(0, len(words), 5)
            ]
            rows.append((split, stem, words[0], [[a, b, c + 1, d + 1] for a, b, c, d in boxes]))
    wnids = sorted({wnid for _, _, wnid, _ in rows})
    records = [
        {
            "image_id": i,
            "image_uri": f"/{split}/{stem}.JPEG",
            "width_px": 227,
            "height_px": 227,
            "class_index": wnids.index(wnid),
            "gt_boxes": boxes,
            "split": split,
        }
        for i, (split, stem, wnid, boxes) in enumerate(rows)
    ]
    classes = [ImageClass(id=wnid, name=wnid) for wnid in wnids]
    return Manifest(table=schema.rows_to_table(records, schema.MANIFEST), classes=classes)


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data/ilsvrc-4k")
def test_real_ground_truth_as_predictions_has_no_error_and_baselines_have_the_known_ones(tmp_path):
    data = str(tmp_path / "manifest")
    write_manifest(data, real_manifest())
    solution = str(REAL / "LOC_val_solution.csv")
    found = evaluate_job.run(solution, data, format="ilsvrc").to_json()
    assert (found["split"], found["num_images"], found["num_failed"]) == ("val", 500, 0)
    assert found["error"] == dict.fromkeys(("gt_known",)) | dict.fromkeys(
        ("loc_top1", "loc_top5", "cls_top1", "cls_top5"), 0.0
    )
    assert found["baselines"]["whole_image"] == pytest.approx(0.602)
    assert found["baselines"]["constant_box"] == pytest.approx(0.434, abs=0.02)
