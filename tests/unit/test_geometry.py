"""Boxes and IoU: hand-worked numbers, and a slow reference that counts pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cropscore_ray.geometry import area, coverage_and_purity, intersection, iou

SIDE_PX = 12
Box = tuple[int, int, int, int]


@st.composite
def pixel_boxes(draw: st.DrawFn) -> Box:
    """Boxes of whole pixels in a small image; empty ones too."""
    left, right = sorted(draw(st.tuples(*[st.integers(0, SIDE_PX)] * 2)))
    top, bottom = sorted(draw(st.tuples(*[st.integers(0, SIDE_PX)] * 2)))
    return (left, top, right, bottom)


def mask_of(box: Box) -> np.ndarray:
    mask = np.zeros((SIDE_PX, SIDE_PX), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def devkit_overlap(one: Box, other: Box) -> float:
    """Compute overlap as compute_overlap.m of the ILSVRC kit: inclusive pixels, plus one."""
    a, b = ((box[0], box[1], box[2] - 1, box[3] - 1) for box in (one, other))
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def test_area_is_width_times_height() -> None:
    assert area([[1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 0.5, 0.5]]).tolist() == [18.0, 0.25]


def test_a_box_turned_inside_out_has_no_area() -> None:
    # Both sides negative: the product of the signed sides would be positive.
    assert area([[4, 8, 1, 2], [4, 2, 1, 8]]).tolist() == [0.0, 0.0]


def test_intersection_of_every_pair() -> None:
    shared = intersection([[0, 0, 4, 4], [2, 2, 6, 6]], [[0, 0, 1, 1], [3, 3, 9, 9], [0, 2, 9, 3]])
    assert shared.tolist() == [[1.0, 1.0, 4.0], [0.0, 9.0, 4.0]]


def test_iou_of_two_boxes_by_hand() -> None:
    # 10x10 and 10x10, 5x5 shared: 25 / (100 + 100 - 25) = 1/7
    assert iou([[0, 0, 10, 10]], [[5, 5, 15, 15]])[0, 0] == pytest.approx(1 / 7, abs=1e-15)


def test_iou_of_a_half_is_exactly_one_half() -> None:
    assert iou([[0, 0, 10, 10]], [[0, 0, 10, 5]])[0, 0] == 0.5


def test_iou_of_touching_boxes_is_zero() -> None:
    assert iou([[0, 0, 5, 5]], [[5, 0, 9, 5], [0, 5, 5, 9], [5, 5, 9, 9]]).tolist() == [[0, 0, 0]]


def test_iou_of_two_empty_boxes_is_zero() -> None:
    assert iou([[3, 3, 3, 3]], [[3, 3, 3, 3], [0, 0, 9, 9]]).tolist() == [[0.0, 0.0]]


def test_iou_of_no_boxes_has_no_rows() -> None:
    assert iou(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)


def test_iou_is_computed_in_float64_from_float32_boxes() -> None:
    assert iou(np.ones((1, 4), np.float32), np.ones((1, 4), np.float32)).dtype == np.float64


@settings(max_examples=60)
@given(pixel_boxes(), pixel_boxes())
def test_iou_equals_the_count_of_pixels_and_the_development_kit(one: Box, other: Box) -> None:
    first, second = mask_of(one), mask_of(other)
    union = (first | second).sum()
    expected = (first & second).sum() / union if union else 0.0
    assert iou([one], [other])[0, 0] == expected
    if first.any() and second.any():  # inclusive pixels cannot say "empty"
        assert iou([one], [other])[0, 0] == devkit_overlap(one, other)


@settings(max_examples=50)
@given(pixel_boxes(), pixel_boxes(), st.integers(-50, 50), st.integers(1, 8))
def test_iou_ignores_order_shift_and_scale(one: Box, other: Box, shift: int, scale: int) -> None:
    a, b = np.array(one), np.array(other)
    value = iou([a], [b])[0, 0]
    assert 0.0 <= value <= 1.0
    assert iou([b], [a])[0, 0] == value
    assert iou([a * scale + shift], [b * scale + shift])[0, 0] == value


def test_coverage_and_purity_by_hand() -> None:
    # The box is 4x4 = 16. Crops: its left half and as much beside it; all of it in 8x8; elsewhere.
    crops = [[0, 2, 4, 6], [0, 0, 8, 8], [7, 7, 9, 9]]
    coverage, purity = coverage_and_purity(crops, [2, 2, 6, 6])
    assert coverage.tolist() == [0.5, 1.0, 0.0]
    assert purity.tolist() == [0.5, 0.25, 0.0]


def test_coverage_of_an_empty_box_and_purity_of_an_empty_crop_are_zero() -> None:
    coverage, purity = coverage_and_purity([[0, 0, 8, 8], [3, 3, 3, 3]], [2, 2, 2, 6])
    assert coverage.tolist() == [0.0, 0.0]
    assert purity.tolist() == [0.0, 0.0]


@settings(max_examples=50)
@given(pixel_boxes(), pixel_boxes())
def test_coverage_and_purity_swap_when_crop_and_box_swap(one: Box, other: Box) -> None:
    coverage, purity = coverage_and_purity([one], other)
    swapped_coverage, swapped_purity = coverage_and_purity([other], one)
    assert (coverage, purity) == (swapped_purity, swapped_coverage)
