import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cropscore_ray import geometry
from cropscore_ray.models.baselines import cam_box, fit_cam_threshold, fit_constant_box

WHOLE = [0.0, 0.0, 1.0, 1.0]


def test_constant_box_hits_all_images_when_their_boxes_agree():
    box = np.array([0.2, 0.3, 0.7, 0.9])
    assert geometry.iou(fit_constant_box([box[None]] * 5)[None], box[None])[0, 0] >= 0.5


def test_constant_box_prefers_the_larger_group_of_images():
    left, right = np.array([[0.0, 0.0, 0.3, 1.0]]), np.array([[0.7, 0.0, 1.0, 1.0]])
    fitted = fit_constant_box([left] * 3 + [right] * 2)
    assert geometry.iou(fitted[None], left)[0, 0] >= 0.5


def test_constant_box_needs_only_one_of_several_instances():
    big, small = [0.1, 0.1, 0.9, 0.9], [0.0, 0.0, 0.05, 0.05]
    images = [np.array([small, small, big])] * 4 + [np.array([[0.1, 0.1, 0.9, 0.9]])]
    fitted = fit_constant_box(images)
    assert geometry.iou(fitted[None], np.array([big]))[0, 0] >= 0.5


def test_constant_box_does_not_depend_on_images_without_boxes_and_repeats_itself():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((50, 2, 2)), axis=1).reshape(50, 1, 4)
    fitted = fit_constant_box(list(corners))
    with_empty = fit_constant_box([*corners, np.zeros((0, 4))])
    np.testing.assert_array_equal(fitted, with_empty)


def test_constant_box_of_no_boxes_is_an_error():
    with pytest.raises(ValueError, match="no image has a true box"):
        fit_constant_box([np.zeros((0, 4))])


def test_constant_box_of_3500_images_takes_less_than_three_seconds():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((5600, 2, 2)), axis=1).reshape(5600, 4)
    images = np.split(corners, np.sort(rng.choice(np.arange(1, 5600), 3499, replace=False)))
    started = time.process_time()
    fit_constant_box(images)
    assert time.process_time() - started < 3.0


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12))
def test_constant_box_is_never_worse_than_the_whole_image_or_the_centre(seed, count):
    corners = np.sort(np.random.default_rng(seed).random((count, 2, 2)), axis=1)
    boxes = corners.reshape(count, 4)
    fitted, *others = [fit_constant_box(boxes[:, None]), WHOLE, [0.1, 0.1, 0.9, 0.9]]

    def misses(box):
        return int((geometry.iou([box], boxes)[0] < 0.5).sum())

    assert all(misses(fitted) <= misses(other) for other in others)


def test_cam_box_surrounds_the_peak():
    class_map = np.zeros((7, 7))
    class_map[2:4, 3:6] = 1.0  # rows 2 and 3, columns 3 to 5
    # Half-way between a 1 and a 0 lies on the cells' border, so a cut at 0.5 gives it back.
    np.testing.assert_allclose(cam_box(class_map, 0.5), np.array([3, 2, 6, 4]) / 7, atol=1 / 56)


def test_cam_box_of_a_lower_threshold_is_not_smaller():
    class_map = np.exp(-((np.indices((7, 7)) - 3) ** 2).sum(axis=0) / 4)
    areas = [geometry.area(cam_box(class_map, threshold)) for threshold in (0.2, 0.5, 0.8)]
    assert areas[0] > areas[1] > areas[2]


def test_cam_box_takes_the_largest_region_not_the_strongest():
    class_map = np.zeros((7, 7))
    class_map[0, 0] = 2.0
    class_map[3:7, 3:7] = 1.5
    assert cam_box(class_map, 0.5)[0] > 0.3


def test_cam_regions_touch_by_corners():
    box = cam_box(np.eye(56), 0.5)  # 56 cells: not enlarged
    assert box.tolist() == WHOLE


@pytest.mark.parametrize("value", [0.0, -3.5, 1e30, np.nan])
def test_cam_box_of_a_map_that_says_nothing_is_the_whole_image(value):
    assert cam_box(np.full((7, 7), value), 0.3).tolist() == WHOLE


def test_cam_box_of_one_cell_is_the_whole_image():
    assert cam_box([[4.0]], 0.9).tolist() == WHOLE


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), threshold=st.floats(0.0, 1.0))
def test_cam_box_lies_in_the_image_and_ignores_the_scale_of_the_map(seed, threshold):
    class_map = np.random.default_rng(seed).normal(size=(7, 7))
    box = cam_box(class_map, threshold)
    assert 0 <= box[0] < box[2] <= 1
    assert 0 <= box[1] < box[3] <= 1
    # A power of two scales floats without rounding, so even ties fall the same way.
    np.testing.assert_array_equal(cam_box(class_map * 4.0, threshold), box)


def test_cam_threshold_is_the_one_whose_boxes_fit():
    class_map = np.exp(-((np.indices((7, 7)) - 3) ** 2).sum(axis=0) / 8)
    for wanted in (0.25, 0.5, 0.75):
        truth = cam_box(class_map, wanted)[None]
        fitted = fit_cam_threshold([class_map] * 3, [truth] * 3)
        assert geometry.iou(cam_box(class_map, fitted)[None], truth)[0, 0] >= 0.5


def test_cam_threshold_passes_over_images_without_boxes_and_needs_one_with():
    class_map = np.eye(7)
    none = np.zeros((0, 4))
    truth = np.array([WHOLE])
    alone = fit_cam_threshold([class_map], [truth])
    assert fit_cam_threshold([class_map, class_map], [none, truth]) == alone
    with pytest.raises(ValueError, match="no image has a true box"):
        fit_cam_threshold([class_map], [none])
