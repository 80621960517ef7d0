import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import io as scipy_io

from cropscore_ray import geometry, schema, storage
from cropscore_ray.datasets.manifest import Manifest
from cropscore_ray.errors import DataError
from cropscore_ray.evaluation.formats import guess_lines
from cropscore_ray.evaluation.formats.coco import write_coco
from cropscore_ray.evaluation.formats.csv import write_csv
from cropscore_ray.evaluation.formats.devkit import read_devkit, read_ids, write_devkit
from cropscore_ray.evaluation.formats.ilsvrc import read_ilsvrc, write_ilsvrc
from cropscore_ray.evaluation.formats.parquet import read_predictions
from cropscore_ray.evaluation.metrics import evaluate, image_outcomes
from cropscore_ray.schema import ImageClass

WNIDS = ["n01", "n02", "n03", "n04"]
CLASSES = [ImageClass(id=wnid, name=f"name of {wnid}") for wnid in WNIDS]
KIT_IDS = {"n01": 3, "n02": 1, "n03": 4, "n04": 2}  # as in the kit, not the sorted order


def uri_of(image_id):
    return f"/data/ILSVRC2012_val_{image_id:08d}.JPEG"


def row(image_id, rank, class_index, box, **fields):
    sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    found = {"image_id": image_id, "image_uri": uri_of(image_id), "class_rank": rank}
    return {**found, "class_index": class_index, "status": "ok", **sides, **fields}


def failed(image_id, status="undecodable"):
    return {"image_id": image_id, "image_uri": uri_of(image_id), "status": status}


def table(*rows, classes=CLASSES):
    return schema.rows_to_table(list(rows), schema.with_classes(schema.PREDICTIONS, classes))


def manifest(*truths):
    rows = [
        {
            "image_id": i,
            "image_uri": uri_of(i),
            "width_px": 100,
            "height_px": 100,
            "class_index": class_index,
            "gt_boxes": boxes,
            "split": "val",
        }
        for i, (class_index, boxes) in enumerate(truths)
    ]
    return Manifest(table=schema.rows_to_table(rows, schema.MANIFEST), classes=CLASSES)


@pytest.mark.parametrize(
    ("box", "inclusive"),
    [
        ([0, 0, 10, 20], [0, 0, 9, 19]),
        ([0.4, 0.6, 9.6, 20.4], [0, 1, 9, 19]),
        ([5, 5, 5.2, 5.2], [5, 5, 5, 5]),  # thinner than a pixel: one is left
        ([7, 7, 7, 7], [7, 7, 7, 7]),
    ],
)
def test_boxes_are_rounded_to_inclusive_pixels(box, inclusive):
    assert guess_lines.inclusive_pixels([box]).tolist() == [inclusive]


@settings(max_examples=50)
@given(st.tuples(*[st.floats(0, 400, width=32)] * 2, *[st.floats(2, 99, width=32)] * 2))
def test_rounding_moves_no_side_by_more_than_half_a_pixel(case):
    left, top, width, height = case
    box = np.array([[left, top, left + width, top + height]])
    inclusive = guess_lines.inclusive_pixels(box)
    assert np.abs(inclusive + np.array([0, 0, 1, 1]) - box).max() <= 0.5


def test_ilsvrc_holds_five_guesses_best_first_in_the_order_of_names(tmp_path):
    rows = [row(1, rank, rank % 4, [rank, 0, 10, 10]) for rank in (7, 6, 5, 4, 3, 2, 1)]
    rows += [row(1, 0, 0, [0, 0, 99, 99]), failed(2), row(0, 1, 2, [1, 2, 3, 4])]
    write_ilsvrc(str(tmp_path / "out.csv"), table(*rows))
    assert (tmp_path / "out.csv").read_text().splitlines() == [
        "ImageId,PredictionString",
        "ILSVRC2012_val_00000000,n03 1 2 2 3",
        "ILSVRC2012_val_00000001,n02 1 0 9 9 n03 2 0 9 9 n04 3 0 9 9 n01 4 0 9 9 n02 5 0 9 9",
        "ILSVRC2012_val_00000002,",
    ]


def test_class_known_boxes_are_exported_where_there_are_no_others(tmp_path):
    write_ilsvrc(str(tmp_path / "out.csv"), table(row(0, 0, 1, [0, 0, 10, 10]), failed(1)))
    assert "00000000,n02 0 0 9 9\n" in (tmp_path / "out.csv").read_text()


def test_devkit_has_its_own_ids_and_zeros_for_a_failed_image(tmp_path):
    rows = [failed(1), row(2, 1, 0, [0, 0, 10, 10]), row(0, 1, 1, [0, 0, 2, 2])]
    rows += [row(0, 2, 3, [1, 1, 5, 5])]
    write_devkit(str(tmp_path / "out.txt"), table(*rows), KIT_IDS)
    lines = ["1 0 0 1 1 2 1 1 4 4", "0 0 0 0 0", "3 0 0 9 9"]
    assert (tmp_path / "out.txt").read_text() == "\n".join(lines) + "\n"


def test_devkit_order_mixed_with_sorted_wnid_order_is_wrong_everywhere(tmp_path):
    truth = manifest(*[(index, [[0, 0, 10, 10]]) for index in range(4)])
    rows = table(*[row(index, 1, index, [0, 0, 10, 10]) for index in range(4)])
    uri = str(tmp_path / "out.txt")
    write_devkit(uri, rows, KIT_IDS)
    right = evaluate(read_devkit(uri, truth, KIT_IDS), truth)
    assert right.overall.error.cls_top1.fraction == 0.0
    sorted_ids = {wnid: index + 1 for index, wnid in enumerate(WNIDS)}
    mixed = evaluate(read_devkit(uri, truth, sorted_ids), truth)
    assert mixed.overall.error.cls_top1.fraction == 1.0


def test_what_is_written_reads_back_the_same(tmp_path):
    truth = manifest(*[(0, [[0, 0, 10, 10]])] * 4)
    written = table(
        row(0, 1, 0, [0, 0, 10, 10]),
        row(0, 2, 3, [5, 6, 7, 8]),
        failed(1),
        row(2, 1, 1, [1, 2, 30, 40]),
        failed(3),
    )
    write_ilsvrc(str(tmp_path / "a.csv"), written)
    write_devkit(str(tmp_path / "a.txt"), written, KIT_IDS)
    kept = ["image_id", "class_rank", "class_index", "xmin", "ymin", "xmax", "ymax"]
    expected = written.filter(written["status"].to_numpy(zero_copy_only=False) == "ok")
    for found in (
        read_ilsvrc(str(tmp_path / "a.csv"), truth),
        read_devkit(str(tmp_path / "a.txt"), truth, KIT_IDS),
    ):
        schema.check_table(found.schema, schema.PREDICTIONS, "here")
        assert found.select(kept).to_pylist() == expected.select(kept).to_pylist()
        assert evaluate(found, truth).num_failed == 2


def test_blank_and_zero_lines_of_the_devkit_are_images_without_a_guess(tmp_path):
    truth = manifest(*[(0, [[0, 0, 10, 10]])] * 4)
    (tmp_path / "p.txt").write_text("3 0 0 9 9\n\n0 0 0 0 0\n9 0 0 9 9  3 0 0 9 9 0 0 0 0 0\n")
    found = evaluate(read_devkit(str(tmp_path / "p.txt"), truth, KIT_IDS), truth)
    assert found.num_failed == 2
    assert found.overall.error.loc_top1.fraction == 0.75
    assert found.overall.error.loc_top5.fraction == 0.5


def test_an_unknown_class_takes_a_place_among_the_five(tmp_path):
    truth = manifest((0, [[0, 0, 10, 10]]))
    unknown = "n99 0 0 9 9 " * 5
    (tmp_path / "p.csv").write_text(
        f"ImageId,PredictionString\nILSVRC2012_val_00000000,{unknown}n01 0 0 9 9\n"
    )
    found = evaluate(read_ilsvrc(str(tmp_path / "p.csv"), truth), truth)
    assert found.overall.error.cls_top5.fraction == 1.0


def make_mat(path, field):
    pairs = sorted((kit_id, wnid) for wnid, kit_id in KIT_IDS.items())
    columns = [(field, "O"), ("WNID", "O"), ("words", "O")]
    synsets = np.array([(i, wnid, "words") for i, wnid in pairs], dtype=columns)
    scipy_io.savemat(path, {"synsets": synsets})
    return str(path)


@pytest.mark.parametrize("field", ["ILSVRC2012_ID", "ILSVRC2014_ID", "ILSVRC2015_CLSLOC_ID"])
def test_ids_are_read_from_the_kits_meta_file(tmp_path, field):
    assert read_ids(make_mat(tmp_path / "meta_clsloc.mat", field)) == KIT_IDS


@pytest.mark.parametrize(
    "text",
    [
        "3 n01\n1 n02\n4 n03\n2 n04\n",
        "id,wnid,words\n3,n01,tench\n1,n02,goldfish\n4,n03,\n2,n04,\n",
        "3\tn01\twords and more\n1\tn02\n4\tn03\n2\tn04",
    ],
)
def test_ids_are_read_from_text(tmp_path, text):
    (tmp_path / "ids.txt").write_text(text)
    assert read_ids(str(tmp_path / "ids.txt")) == KIT_IDS


@pytest.mark.parametrize("text", ["", "n01 3\n", "1 n01\n1 n02\n", "1 n01\n2 n01\n"])
def test_a_file_that_is_no_table_of_ids_is_refused(tmp_path, text):
    (tmp_path / "ids.txt").write_text(text)
    with pytest.raises(DataError, match="not a table of class ids"):
        read_ids(str(tmp_path / "ids.txt"))


def test_a_mat_file_without_synsets_or_that_is_none_is_refused(tmp_path):
    scipy_io.savemat(tmp_path / "other.mat", {"x": np.ones(3)})
    with pytest.raises(DataError, match="not a table of class ids"):
        read_ids(str(tmp_path / "other.mat"))
    (tmp_path / "text.mat").write_text("this is text and no MATLAB file " * 9)
    with pytest.raises(DataError, match="not a MATLAB file"):
        read_ids(str(tmp_path / "text.mat"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Id,Boxes\n", "the first line is not ImageId,PredictionString"),
        ("", "the first line is not"),
        (
            "ImageId,PredictionString\nnobody,n01 0 0 1 1\n",
            ":2: the manifest has no image 'nobody'",
        ),
        ("ImageId,PredictionString\nX,n01 0 0 1\n", ":2: 4 words, not groups of five"),
        ("ImageId,PredictionString\nX,n01 0 0 one 1\n", ":2: a side of a box is no number"),
        ("ImageId,PredictionString\nX,\nX,\n", ":3: image .* has a line already"),
        ("ImageId,PredictionString\nX\n", ":2: 1 fields, not 2"),
    ],
)
def test_a_wrong_ilsvrc_file_is_refused_with_its_line(tmp_path, text, message):
    (tmp_path / "p.csv").write_text(text.replace("X", "ILSVRC2012_val_00000000"))
    with pytest.raises(DataError, match=message):
        read_ilsvrc(str(tmp_path / "p.csv"), manifest((0, None)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 0 0 1 1\n", "1 lines for 2 images"),
        ("1 0 0 1 1\n1 0 0 1\n", ":2: 4 words"),
        ("n01 0 0 1 1\n\n", ":1: a class id is no number"),
        (b"\xff\xfe\x00", "not a text file"),
    ],
)
def test_a_wrong_devkit_file_is_refused_with_its_line(tmp_path, text, message):
    (tmp_path / "p.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        read_devkit(str(tmp_path / "p.txt"), manifest((0, None), (0, None)), KIT_IDS)


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    out = str(tmp_path / "out")
    spaced = [ImageClass(id="fire truck", name="fire truck")]
    with pytest.raises(DataError, match="'fire truck' is not one word"):
        write_ilsvrc(out, table(row(0, 1, 0, [0, 0, 1, 1]), classes=spaced))
    with pytest.raises(DataError, match="do not list their classes"):
        write_ilsvrc(out, table(row(0, 1, 0, [0, 0, 1, 1]), classes=[]))
    with pytest.raises(DataError, match="not in the kit's meta file, such as 'n04'"):
        write_devkit(out, table(row(0, 1, 0, [0, 0, 1, 1])), {"n01": 1, "n02": 2, "n03": 3})
    twins = [{**failed(0), "image_uri": "/a/1.jpg"}, {**failed(1), "image_uri": "/b/1.png"}]
    with pytest.raises(DataError, match="2 images are called '1'"):
        write_ilsvrc(out, table(*twins))


def test_coco_has_left_top_width_height_and_a_score(tmp_path):
    rows = [
        row(0, 1, 2, [1, 2, 4, 8], confidence=0.5),
        row(1, 1, 3, [0, 0, 2.5, 2], class_score=0.25),
    ]
    write_coco(str(tmp_path / "out.json"), table(*rows, failed(2), row(3, 1, 0, [0, 0, 1, 1])))
    assert json.loads((tmp_path / "out.json").read_text()) == [
        {"image_id": 0, "category_id": 2, "bbox": [1, 2, 3, 6], "score": 0.5},
        {"image_id": 1, "category_id": 3, "bbox": [0, 0, 2.5, 2], "score": 0.25},
        {"image_id": 3, "category_id": 0, "bbox": [0, 0, 1, 1], "score": 1.0},
    ]


def test_csv_has_every_row_and_column(tmp_path):
    rows = [row(0, 1, 2, [1, 2, 4, 8], cam_xyxy=[0, 1, 2, 3]), {**failed(1), "error": 'a "b", c'}]
    write_csv(str(tmp_path / "out.csv"), table(*rows))
    first, second = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    names = set(schema.PREDICTIONS.names) - {"cam_xyxy"}
    assert set(first) == names | {"cam_xmin", "cam_ymin", "cam_xmax", "cam_ymax"}
    assert (first["xmax"], first["cam_ymax"], first["status"]) == ("4", "3", "ok")
    assert (second["xmax"], second["cam_ymax"], second["error"]) == ("", "", 'a "b", c')


def test_predictions_are_found_in_a_run_folder_a_table_folder_or_a_file(tmp_path):
    rows = schema.rows_to_table([row(0, 1, 2, [0, 0, 1, 1])], schema.PREDICTIONS)
    run = str(tmp_path / "run")
    storage.write_table(f"{run}/predictions/part-0000000.parquet", rows)
    classes = [{"id": one.id, "name": one.name} for one in CLASSES]
    storage.write_json(f"{run}/run.json", {"complete": True, "classes": classes})
    found = read_predictions(run)
    assert found.run["complete"]
    assert schema.read_classes(found.table.schema) == CLASSES
    for uri in (f"{run}/predictions", f"{run}/predictions/part-0000000.parquet"):
        alone = read_predictions(uri)
        assert alone.run is None
        assert alone.table.equals(found.table)


def test_a_table_of_something_else_is_no_predictions(tmp_path):
    storage.write_table(str(tmp_path / "m.parquet"), manifest((0, None)).table)
    with pytest.raises(DataError, match="column 'class_rank' is None"):
        read_predictions(str(tmp_path / "m.parquet"))


def kit_figures(predictions_txt, labels, objects, blacklist):
    """Return the kit's errors, (classification, localization), as eval_clsloc.m adds them up.

    Slow and literal: rows are padded with zeros, boxes are inclusive pixels, and the
    blacklist leaves the localization's sum and denominator only.
    """
    lines = [list(map(float, line.split())) for line in predictions_txt.splitlines()]
    width = min(max(map(len, lines)), 25)
    rows = [(line + [0.0] * width)[:width] for line in lines]
    wrong_class = wrong_place = 0
    for i, line in enumerate(rows):
        errors, class_errors = [], []
        for j in range(0, width, 5):
            label, box = line[j], line[j + 1 : j + 5]
            class_errors.append(int(label != labels[i]))
            misses = [int(inclusive_overlap(box, truth) < 0.50) for truth in objects[i]]
            errors += [max(int(label != labels[i]), miss) for miss in misses]
        wrong_class += min(class_errors)
        wrong_place += 0 if i in blacklist else min(errors)
    return wrong_class / len(rows), wrong_place / (len(rows) - len(blacklist))


def inclusive_overlap(a, b):
    wide = min(a[2], b[2]) - max(a[0], b[0]) + 1
    high = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if not (wide > 0 and high > 0):
        return -1
    areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return wide * high / (sum(areas) - wide * high)


def random_box(rng):
    left, top = rng.integers(0, 6, 2)
    return [int(left), int(top), int(left + rng.integers(0, 9)), int(top + rng.integers(0, 9))]


@pytest.mark.parametrize("fraction", [1, 0.25])
def test_figures_of_a_devkit_file_equal_the_kits(tmp_path, fraction):
    rng = np.random.default_rng(5)
    count, blacklist = 2000, set(range(0, 2000, 17))
    classes = rng.integers(0, 4, count).tolist()
    objects = [[random_box(rng) for _ in range(rng.integers(1, 4))] for _ in range(count)]
    lines = [
        " ".join(
            f"{rng.integers(1, 5)} {' '.join(f'{side * fraction:g}' for side in random_box(rng))}"
            for _ in range(rng.integers(1, 7))
        )
        if i % 50
        else "0 0 0 0 0"
        for i in range(count)
    ]
    (tmp_path / "p.txt").write_text("\n".join(lines) + "\n")
    labels = [KIT_IDS[WNIDS[index]] for index in classes]
    expected = kit_figures("\n".join(lines), labels, objects, blacklist)
    truth = manifest(
        *[
            (classes[i], None if i in blacklist else [[a, b, c + 1, d + 1] for a, b, c, d in boxes])
            for i, boxes in enumerate(objects)
        ]
    )
    found = evaluate(read_devkit(str(tmp_path / "p.txt"), truth, KIT_IDS), truth)
    error = found.overall.error
    assert (error.cls_top5.fraction, error.loc_top5.fraction) == pytest.approx(expected, abs=1e-12)


def test_export_and_evaluation_agree_on_whole_pixels(tmp_path):
    rng = np.random.default_rng(6)
    boxes = [[a, b, c + 1, d + 1] for a, b, c, d in (random_box(rng) for _ in range(400))]
    truth = manifest(*[(0, [box]) for box in boxes[:200]])
    rows = table(*[row(i, 1, 0, box) for i, box in enumerate(boxes[200:])])
    write_ilsvrc(str(tmp_path / "p.csv"), rows)
    read = read_ilsvrc(str(tmp_path / "p.csv"), truth)
    ours, theirs = (image_outcomes(one, truth).wrong["loc_top1"] for one in (rows, read))
    np.testing.assert_array_equal(ours, theirs)
    overlap = [geometry.iou([boxes[i]], [boxes[200 + i]])[0, 0] for i in range(200)]
    np.testing.assert_array_equal(ours, np.array(overlap) < 0.5)
