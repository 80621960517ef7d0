import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cropscore_ray import geometry, schema
from cropscore_ray.datasets.manifest import Manifest
from cropscore_ray.errors import ConfigError, DataError
from cropscore_ray.evaluation.metrics import evaluate, image_outcomes
from cropscore_ray.schema import ImageClass

CLASSES = [ImageClass(id=f"n{i}", name=f"class {i}") for i in range(6)]
SQUARE = [0, 0, 10, 10]
HALF = [0, 0, 10, 5]  # IoU with SQUARE is exactly 0.5
UNDER_HALF = [0, 0, 7, 7]  # 0.49


def manifest(*images):
    """Make images of 100 x 50 pixels out of (class_index, boxes) or (class, boxes, split)."""
    rows = [
        {
            "image_id": i,
            "image_uri": f"/images/{i}.jpg",
            "width_px": 100,
            "height_px": 50,
            "class_index": image[0],
            "gt_boxes": image[1],
            "split": image[2] if len(image) > 2 else "val",
        }
        for i, image in enumerate(images)
    ]
    return Manifest(table=schema.rows_to_table(rows, schema.MANIFEST), classes=CLASSES)


def row(image_id, rank, class_index, box, **fields):
    sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    uri = f"/images/{image_id}.jpg"
    found = {"image_id": image_id, "image_uri": uri, "class_rank": rank, "status": "ok"}
    return {**found, "class_index": class_index, **sides, **fields}


def failed(image_id):
    return {"image_id": image_id, "image_uri": f"/images/{image_id}.jpg", "status": "undecodable"}


def table(*rows):
    return schema.rows_to_table(list(rows), schema.PREDICTIONS)


def errors(evaluation):
    return evaluation.to_json()["error"]


def test_iou_of_exactly_one_half_is_right_and_less_is_wrong():
    truth = manifest((1, [SQUARE]), (1, [SQUARE]))
    found = evaluate(table(row(0, 0, 1, HALF), row(1, 0, 1, UNDER_HALF)), truth)
    assert errors(found)["gt_known"] == 0.5
    assert found.to_json()["max_box_acc"] == {"0.3": 1.0, "0.5": 0.5, "0.7": 0.0}


def test_any_instance_is_enough():
    truth = manifest((1, [[50, 0, 60, 10], SQUARE]))
    assert errors(evaluate(table(row(0, 0, 1, SQUARE)), truth))["gt_known"] == 0.0


def test_class_known_error_judges_the_most_confident_box_only():
    truth = manifest((1, [SQUARE]))
    rows = [row(0, 0, 1, SQUARE, confidence=0.2), row(0, 0, 1, [50, 0, 60, 10], confidence=0.9)]
    assert errors(evaluate(table(*rows), truth))["gt_known"] == 1.0


def test_top1_and_top5_take_class_and_place_together():
    far = [80, 0, 90, 10]
    truth = manifest((1, [SQUARE]), (1, [SQUARE]), (1, [SQUARE]), (1, [SQUARE]))
    rows = [
        row(0, 1, 1, SQUARE),  # right at once
        row(1, 1, 2, SQUARE),  # right with the second guess
        row(1, 2, 1, SQUARE),
        row(2, 1, 1, far),  # right class, wrong place
        row(2, 2, 3, SQUARE),  # right place, wrong class
        row(3, 1, 2, SQUARE),  # all wrong
    ]
    assert errors(evaluate(table(*rows), truth)) == {
        "gt_known": None,
        "loc_top1": 0.75,
        "loc_top5": 0.5,
        "cls_top1": 0.5,
        "cls_top5": 0.25,
    }


def test_a_sixth_guess_is_ignored_and_objects_of_one_class_use_up_guesses():
    wrong = [row(0, 1, 2, SQUARE, confidence=c) for c in (0.9, 0.8, 0.7, 0.6)]
    truth = manifest((1, [SQUARE]))
    fifth, sixth = row(0, 2, 1, SQUARE), row(0, 2, 2, SQUARE)
    assert errors(evaluate(table(fifth, *wrong), truth))["loc_top5"] == 0.0
    late = table(*wrong, sixth, row(0, 3, 1, SQUARE))
    assert errors(evaluate(late, truth))["loc_top5"] == 1.0
    assert errors(evaluate(late, truth))["cls_top5"] == 1.0


def test_images_without_boxes_count_for_classification_only():
    truth = manifest((1, [SQUARE]), (1, None), (1, []))
    rows = [row(i, 1, 1, HALF) for i in range(3)]
    found = evaluate(table(*rows), truth)
    assert (found.overall.num_images, found.overall.num_boxed) == (3, 1)
    assert errors(found)["loc_top1"] == 0.0
    assert found.overall.error.cls_top1.num_images == 3


def test_images_without_a_class_are_left_out():
    truth = manifest((1, [SQUARE]), (None, [SQUARE]))
    found = evaluate(table(row(0, 1, 1, SQUARE), row(1, 1, 2, [0, 0, 1, 1])), truth)
    assert errors(found)["loc_top1"] == 0.0
    assert (found.num_images, found.overall.num_images) == (2, 1)


def test_failed_and_absent_images_are_errors_in_every_figure_and_are_counted():
    truth = manifest(*[(1, [SQUARE])] * 4)
    rows = [row(i, rank, 1, SQUARE, cam_xyxy=SQUARE) for i in (0, 1) for rank in (0, 1)]
    found = evaluate(table(*rows, failed(2)), truth)
    assert found.num_failed == 2
    assert set(errors(found).values()) == {0.5}
    assert found.to_json()["max_box_acc"]["0.3"] == 0.5
    assert found.to_json()["baselines"]["cam"] == 0.5


def test_what_has_no_rows_is_none():
    truth = manifest((1, [SQUARE]))
    known = evaluate(table(row(0, 0, 1, SQUARE)), truth).to_json()
    assert known["error"]["loc_top5"] is None
    assert known["baselines"]["cam"] is None
    assert known["baselines"]["constant_box"] is None
    ranked = evaluate(table(row(0, 1, 1, SQUARE)), truth).to_json()
    assert ranked["error"]["gt_known"] is None
    assert ranked["max_box_acc"] == {"0.3": None, "0.5": None, "0.7": None}


def test_nothing_labelled_gives_none_everywhere():
    found = evaluate(table(row(0, 1, 1, SQUARE)), manifest((None, None))).to_json()
    assert set(found["error"].values()) == {None}
    assert set(found["baselines"].values()) == {None}
    assert found["per_class"] == []


def test_baselines_by_hand():
    truth = manifest((1, [[0, 0, 100, 30]]), (1, [[0, 0, 50, 25], [50, 0, 60, 10]]))
    rows = [
        row(0, 0, 1, SQUARE, cam_xyxy=[0, 0, 100, 20]),  # 2000 / 3000
        row(1, 0, 1, SQUARE, cam_xyxy=None),
    ]
    found = evaluate(table(*rows), truth, constant_box=(0, 0, 0.5, 0.5)).to_json()
    # Whole image: 3000 / 5000 and 1250 / 5000. The quarter: 1250 / 3000 and 1.
    assert found["baselines"] == {"constant_box": 0.5, "whole_image": 0.5, "cam": 0.5}
    single, multi = found["by_num_boxes"]["single"], found["by_num_boxes"]["multi"]
    assert single["baselines"] == {"constant_box": 1.0, "whole_image": 0.0, "cam": 0.0}
    assert multi["baselines"] == {"constant_box": 0.0, "whole_image": 1.0, "cam": 1.0}


def test_the_constant_box_is_fitted_on_the_training_split_only():
    left, right = [0, 0, 40, 50], [60, 0, 100, 50]
    truth = manifest((1, [left], "train"), *[(1, [right], "val")] * 3)
    found = evaluate(table(row(3, 0, 1, right)), truth)
    assert found.overall.baselines.constant_box.fraction == 1.0
    assert geometry.iou([found.constant_box], [[0, 0, 0.4, 1]])[0, 0] >= 0.5


def test_images_of_unknown_size_do_not_disturb_the_box_baselines():
    truth = manifest((1, [[0, 0, 100, 50]], "train"), (1, [SQUARE], "train"), (1, [SQUARE]))
    sizes = pa.array([100, None, None], pa.int32())
    unsized = truth.table.set_column(2, schema.MANIFEST.field("width_px"), sizes)
    found = evaluate(table(row(2, 0, 1, SQUARE)), dataclasses.replace(truth, table=unsized))
    assert found.constant_box == [0.0, 0.0, 1.0, 1.0]
    assert found.overall.baselines.whole_image.fraction == 1.0
    assert errors(found)["gt_known"] == 0.0


def test_standard_error_is_binomial():
    truth = manifest(*[(1, [SQUARE])] * 4)
    rows = [row(i, 0, 1, SQUARE if i else [50, 0, 60, 9]) for i in range(4)]
    found = evaluate(table(*rows), truth).to_json()
    assert found["error"]["gt_known"] == 0.25
    assert found["standard_error"]["gt_known"] == pytest.approx((0.25 * 0.75 / 4) ** 0.5)


def test_errors_by_class_name_their_class():
    truth = manifest((1, [SQUARE]), (4, [SQUARE]), (4, [SQUARE]))
    rows = [row(0, 0, 1, SQUARE), row(1, 0, 4, SQUARE), row(2, 0, 4, UNDER_HALF)]
    first, second = evaluate(table(*rows), truth).to_json()["per_class"]
    assert (first["id"], first["error"]["gt_known"], first["num_boxed"]) == ("n1", 0.0, 1)
    assert (second["id"], second["error"]["gt_known"], second["num_boxed"]) == ("n4", 0.5, 2)


def test_predictions_of_one_split_choose_it():
    truth = manifest((1, [SQUARE], "train"), (1, [SQUARE], "val"))
    found = evaluate(table(row(1, 0, 1, SQUARE)), truth)
    assert (found.split, found.num_images) == ("val", 1)


def test_predictions_of_several_splits_need_one_named():
    truth = manifest((1, [SQUARE], "test"), (1, [SQUARE], "val"))
    both = table(row(0, 0, 1, UNDER_HALF), row(1, 0, 1, SQUARE))
    with pytest.raises(ConfigError, match="test, val") as caught:
        evaluate(both, truth)
    assert "--split" in caught.value.hint
    assert errors(evaluate(both, truth, split="val"))["gt_known"] == 0.0
    with pytest.raises(ConfigError, match="no split 'minival'"):
        evaluate(both, truth, split="minival")


def test_training_images_are_left_aside_unless_named():
    truth = manifest((1, [SQUARE], "train"), (1, [SQUARE], "val"))
    both = table(row(0, 0, 1, UNDER_HALF), row(1, 0, 1, SQUARE))
    assert (evaluate(both, truth).split, evaluate(both, truth).num_images) == ("val", 1)
    assert errors(evaluate(both, truth, split="train"))["gt_known"] == 1.0


def test_a_manifest_without_splits_is_one_group():
    truth = manifest((1, [SQUARE], None), (1, [SQUARE], None))
    found = evaluate(table(row(0, 0, 1, SQUARE)), truth)
    assert (found.split, found.num_images, found.num_failed) == (None, 2, 1)


def test_predictions_of_another_image_set_are_refused():
    truth = manifest((1, [SQUARE]))
    with pytest.raises(DataError, match=r"image 7 is 7\.jpg .* not there"):
        evaluate(table(row(7, 0, 1, SQUARE)), truth)
    other = row(0, 0, 1, SQUARE, image_uri="/images/other.jpg")
    with pytest.raises(DataError, match=r"other\.jpg .* 0\.jpg"):
        evaluate(table(other), truth)
    moved = row(0, 0, 1, SQUARE, image_uri="s3://bucket/elsewhere/0.jpg")
    assert errors(evaluate(table(moved), truth))["gt_known"] == 0.0


def test_a_class_given_that_is_not_the_images_is_refused():
    with pytest.raises(DataError, match="1 images were localized with another class"):
        evaluate(table(row(0, 0, 2, SQUARE)), manifest((1, [SQUARE])))


def test_classes_in_another_order_are_matched_by_id():
    truth = manifest((1, [SQUARE]), (5, [SQUARE]))
    reordered = [*reversed(CLASSES[1:]), ImageClass(id="new", name="not in the manifest")]
    rows = table(row(0, 1, 4, SQUARE), row(1, 1, 5, SQUARE), row(1, 2, 0, SQUARE))
    found = evaluate(rows.cast(schema.with_classes(rows.schema, reordered)), truth)
    assert errors(found)["cls_top1"] == 0.5
    assert errors(found)["cls_top5"] == 0.0


def test_the_order_of_rows_does_not_matter():
    truth = manifest((1, [SQUARE]), (2, [HALF]))
    rows = [row(i, r, 1 + r % 2, SQUARE, confidence=0.5) for i in (0, 1) for r in (1, 2, 3)]
    rows += [row(0, 1, 2, HALF, confidence=0.5), row(0, 1, 1, UNDER_HALF, confidence=0.5)]
    forward = evaluate(table(*rows), truth).to_json()
    assert evaluate(table(*reversed(rows)), truth).to_json() == forward


def test_json_has_the_documented_keys_and_only_plain_values():
    found = evaluate(table(row(0, 0, 1, SQUARE)), manifest((1, [SQUARE]))).to_json()
    assert json.loads(json.dumps(found)) == found
    assert {"num_images", "num_failed", "error", "max_box_acc", "baselines"} <= set(found)
    assert set(found["error"]) == {"gt_known", "loc_top1", "loc_top5", "cls_top1", "cls_top5"}
    assert set(found["baselines"]) == {"constant_box", "whole_image", "cam"}


def kit_iou(guess, truth):
    """Return the overlap of two boxes of inclusive pixels as compute_overlap.m has it."""
    width = min(guess[2], truth[2]) - max(guess[0], truth[0]) + 1
    height = min(guess[3], truth[3]) - max(guess[1], truth[1]) + 1
    if width <= 0 or height <= 0:
        return -1.0
    union = (
        (guess[2] - guess[0] + 1) * (guess[3] - guess[1] + 1)
        + (truth[2] - truth[0] + 1) * (truth[3] - truth[1] + 1)
        - width * height
    )
    return width * height / union


def kit_errors(label, boxes, guesses):
    """Return the classification and localization error of one image, box by box."""
    wrong_class, wrong_place = 1, 1
    for guessed_label, guess in guesses[:5]:
        if guessed_label == label:
            wrong_class = 0
            for truth in boxes:
                if not kit_iou(guess, truth) < 0.5:
                    wrong_place = 0
    return wrong_class, wrong_place


def random_inclusive_box(rng):
    left, top = rng.integers(0, 6, 2)
    width, height = rng.integers(0, 8, 2)
    return [int(left), int(top), int(left + width), int(top + height)]


def half_open(box):
    return [box[0], box[1], box[2] + 1, box[3] + 1]


def test_every_image_is_judged_as_the_development_kit_judges_it():
    rng = np.random.default_rng(1)
    images, rows, expected, boundary = [], [], [], 0
    for i in range(3000):
        boxes = [random_inclusive_box(rng) for _ in range(rng.integers(1, 4))]
        label = int(rng.integers(0, 3))
        guesses = [
            (int(rng.integers(0, 3)), random_inclusive_box(rng)) for _ in range(rng.integers(0, 8))
        ]
        images.append((label, [half_open(box) for box in boxes]))
        rows += [row(i, rank, c, half_open(b)) for rank, (c, b) in enumerate(guesses, 1)]
        expected.append(kit_errors(label, boxes, guesses))
        boundary += any(kit_iou(b, t) == 0.5 for _, b in guesses for t in boxes)
    assert boundary > 100  # IoU of exactly 0.5 must be among the cases
    wrong = image_outcomes(table(*rows), manifest(*images)).wrong
    np.testing.assert_array_equal(
        np.stack([wrong["cls_top5"], wrong["loc_top5"]], axis=1), np.array(expected, bool)
    )


@settings(max_examples=50)
@given(st.lists(st.tuples(*[st.integers(0, 30)] * 8), min_size=1, max_size=8))
def test_error_of_one_guess_equals_the_slow_rule(cases):
    images, rows, expected = [], [], []
    for i, (l1, t1, w1, h1, l2, t2, w2, h2) in enumerate(cases):
        truth, guess = [l1, t1, l1 + w1, t1 + h1], [l2, t2, l2 + w2, t2 + h2]
        images.append((1, [half_open(truth)]))
        rows.append(row(i, 1, 1, half_open(guess)))
        expected.append(kit_iou(guess, truth) < 0.5)
    found = evaluate(table(*rows), manifest(*images))
    assert errors(found)["loc_top1"] == np.mean(expected)


def test_results_cannot_be_changed():
    found = evaluate(table(row(0, 0, 1, SQUARE)), manifest((1, [SQUARE])))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.num_failed = 3
