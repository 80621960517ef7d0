"""Boxes on their way from a file into the manifest: convention, checks, choice of class."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cropscore_ray.datasets.annotations import parse_annotation, parse_solution
from cropscore_ray.datasets.checks import check_boxes
from cropscore_ray.datasets.problems import MAX_EXAMPLES, ProblemLog
from cropscore_ray.datasets.records import (
    HALF_OPEN_BORDER_PX,
    INCLUSIVE_BORDER_PX,
    Box,
    Size,
    half_open,
    of_largest_class,
    parse_box,
    parse_size,
)
from cropscore_ray.geometry import iou


def check(
    *boxes: Box,
    stated: Size | None = None,
    true: Size | None = (10, 8),
    border: float = INCLUSIVE_BORDER_PX,
) -> tuple[list[Box], list[str]]:
    kept, findings = check_boxes(boxes, stated_size=stated, true_size=true, border_px=border)
    return kept, [finding.kind for finding in findings]


def devkit_iou(one: Box, other: Box) -> float:
    """compute_overlap.m of the ILSVRC development kit, on inclusive pixels."""
    shared_w = min(one[2], other[2]) - max(one[0], other[0]) + 1
    shared_h = min(one[3], other[3]) - max(one[1], other[1]) + 1
    if shared_w <= 0 or shared_h <= 0:
        return 0.0
    shared = shared_w * shared_h
    areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (one, other)]
    return shared / (sum(areas) - shared)


inclusive_boxes = st.tuples(*[st.integers(0, 60)] * 4).map(
    lambda c: (
        float(min(c[0], c[2])),
        float(min(c[1], c[3])),
        float(max(c[0], c[2])),
        float(max(c[1], c[3])),
    )
)


@settings(max_examples=50)
@given(st.lists(inclusive_boxes, max_size=5))
def test_boxes_written_as_xml_and_as_kaggle_string_read_back_as_plus_one(boxes: list[Box]) -> None:
    objects = "".join(
        f"<object><name>n00000001</name><bndbox><xmin>{x1:g}</xmin><ymin>{y1:g}</ymin>"
        f"<xmax>{x2:g}</xmax><ymax>{y2:g}</ymax></bndbox></object>"
        for x1, y1, x2, y2 in boxes
    )
    kaggle = " ".join(f"n00000001 {x1:g} {y1:g} {x2:g} {y2:g}" for x1, y1, x2, y2 in boxes)
    expected = [("n00000001", (x1, y1, x2 + 1, y2 + 1)) for x1, y1, x2, y2 in boxes]
    assert parse_annotation(f"<annotation>{objects}</annotation>".encode()).objects == expected
    assert parse_solution(kaggle).objects == expected


@settings(max_examples=50)
@given(inclusive_boxes, inclusive_boxes)
def test_iou_of_half_open_boxes_is_the_devkits_of_inclusive_ones(one: Box, other: Box) -> None:
    ours = iou([half_open(one)], [half_open(other)])[0, 0]
    assert ours == devkit_iou(one, other)


def test_a_box_inside_is_kept_as_it_is() -> None:
    assert check((1, 2, 5, 6), (0, 0, 10, 8)) == ([(1, 2, 5, 6), (0, 0, 10, 8)], [])


def test_an_inclusive_box_that_ends_at_the_width_is_inside() -> None:
    assert check(half_open((1, 1, 10, 8))) == ([(1, 1, 11, 9)], [])


def test_a_half_open_box_one_pixel_beyond_the_border_is_clipped() -> None:
    kept, kinds = check((1, 1, 11, 8), border=HALF_OPEN_BORDER_PX)
    assert (kept, kinds) == ([(1, 1, 10, 8)], ["box_outside_image"])


def test_a_box_that_leaves_the_image_is_clipped_and_counted() -> None:
    assert check((-3, 2, 14, 6)) == ([(0, 2, 10, 6)], ["box_outside_image"])


def test_a_box_wholly_outside_is_dropped_and_counted() -> None:
    assert check((20, 2, 30, 6)) == ([], ["box_outside_image"])


@pytest.mark.parametrize("box", [(5, 2, 5, 6), (5, 2, 3, 6), (1, 6, 4, 2)])
def test_a_box_without_area_is_dropped_and_counted(box: Box) -> None:
    assert check(box) == ([], ["degenerate_box"])


def test_an_inclusive_box_with_min_equal_max_is_one_pixel_thin_kept_and_counted() -> None:
    assert check(half_open((3, 2, 3, 6))) == ([(3, 2, 4, 7)], ["one_pixel_box"])


def test_boxes_are_scaled_where_the_stated_size_disagrees() -> None:
    # The annotation was made on 20 x 16; the file is half as large.
    assert check((4, 8, 12, 16), stated=(20, 16)) == ([(2, 4, 6, 8)], ["size_disagrees"])


def test_the_border_pixel_is_scaled_with_the_box() -> None:
    # Inclusive right border on a width of 5, on a file twice as wide: 6 * 2 = 12.
    assert check((0, 0, 6, 4), stated=(5, 4)) == ([(0, 0, 12, 8)], ["size_disagrees"])


def test_without_a_readable_file_the_stated_size_bounds_the_boxes() -> None:
    assert check((0, 0, 30, 5), stated=(20, 16), true=None) == (
        [(0, 0, 20, 5)],
        ["box_outside_image"],
    )


def test_without_any_size_only_degenerate_boxes_are_found() -> None:
    assert check((0, 0, 900, 5), (3, 3, 3, 9), true=None) == (
        [(0, 0, 900, 5)],
        ["degenerate_box"],
    )


@pytest.mark.parametrize(
    "values",
    [["1", "2", "3"], ["1", "2", "3", "x"], ["1", "2", "nan", "4"], ["1", "2", "inf", "4"]],
)
def test_what_is_not_four_finite_numbers_is_no_box(values: list[str]) -> None:
    assert parse_box(values) is None


def test_decimals_are_numbers_too() -> None:
    assert parse_box(["1.5", " 2 ", 3, 4.0]) == (1.5, 2.0, 3.0, 4.0)


def test_a_stated_size_of_zero_says_nothing() -> None:
    assert parse_size("0", "0") is None
    assert parse_size("500", None) is None
    assert parse_size("500", "375") == (500, 375)


def test_the_largest_box_names_the_class_and_other_classes_are_counted() -> None:
    log = ProblemLog()
    objects = [
        ("dog", (0.0, 0.0, 3.0, 3.0)),
        ("cat", (0.0, 0.0, 5.0, 2.0)),
        ("cat", (0.0, 0.0, 1.0, 1.0)),
    ]
    label, boxes = of_largest_class(objects, log, "a.jpg")
    assert (label, boxes) == ("cat", ((0, 0, 5, 2), (0, 0, 1, 1)))
    assert log.problems()["other_class_box"].count == 1


def test_a_box_turned_inside_out_does_not_name_the_class() -> None:
    log = ProblemLog()
    objects = [("dog", (9.0, 9.0, 0.0, 0.0)), ("cat", (0.0, 0.0, 2.0, 2.0))]
    assert of_largest_class(objects, log, "a.jpg")[0] == "cat"


def test_the_log_counts_everything_and_keeps_the_first_examples() -> None:
    log = ProblemLog()
    for number in range(7):
        log.add("degenerate_box", f"{number}.jpg", "x")
    problem = log.problems()["degenerate_box"]
    assert problem.count == 7
    assert [one.uri for one in problem.examples] == [f"{n}.jpg" for n in range(MAX_EXAMPLES)]
