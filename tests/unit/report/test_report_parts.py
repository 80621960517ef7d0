"""The report's histogram, heat maps, choice of images and thumbnails, each by itself."""

import io

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from cropscore_ray import grid
from cropscore_ray.images.decode import decode
from cropscore_ray.report import charts
from cropscore_ray.report.gallery import choose, thumbnail


def test_histogram_puts_a_half_right_of_the_line_and_one_in_the_last_bin() -> None:
    bars = charts.histogram(np.array([0.0, 0.499, 0.5, 1.0, 1.0, np.nan]))
    assert [bar.count for bar in bars] == [1, *[0] * 8, 1, 1, *[0] * 8, 2]
    assert [bar.is_error for bar in bars] == [True] * 10 + [False] * 10
    assert bars[-1].height == 1.0


@settings(max_examples=50)
@given(hnp.arrays(np.float64, st.integers(0, 40), elements=st.floats(0, 1)))
def test_histogram_counts_every_image_once(iou: NDArray[np.float64]) -> None:
    bars = charts.histogram(iou)
    assert sum(bar.count for bar in bars) == len(iou)
    assert all(0 <= bar.height <= 1 for bar in bars)


def test_heat_maps_center_every_crop_on_its_place_in_the_image() -> None:
    maps = charts.heat_maps(np.arange(140.0))
    assert [len(heat_map.cells) for heat_map in maps] == [49, 36, 25, 16, 9, 4, 1]
    centers = [(cell.x + 0.5, cell.y + 0.5) for heat_map in maps for cell in heat_map.cells]
    squares = 7 * grid.unit_squares()
    np.testing.assert_allclose(centers, (squares[:, :2] + squares[:, 2:]) / 2)
    assert (maps[0].cells[0].shade, maps[-1].cells[0].shade) == (0.0, 1.0)


def test_heat_maps_of_equal_scores_are_half_shaded() -> None:
    shades = {cell.shade for one in charts.heat_maps(np.zeros(140)) for cell in one.cells}
    assert shades == {0.5}


def test_chosen_images_are_the_highest_the_middle_and_the_lowest() -> None:
    values = np.linspace(0, 1, 101)
    best, typical, worst = choose(values, np.arange(101), 2)
    assert values[best].tolist() == [1.0, 0.99]
    assert values[typical].tolist() == [0.62, 0.38]
    assert values[worst].tolist() == [0.0, 0.01]


@settings(max_examples=50)
@example([0.0] * 19, 6)  # seven in the middle for six places
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=40), st.integers(1, 6))
def test_no_image_is_chosen_twice_and_the_best_are_not_below_the_worst(
    values: list[float], per_group: int
) -> None:
    array = np.array(values)
    best, typical, worst = choose(array, np.arange(len(array)), per_group)
    chosen = [*best, *typical, *worst]
    assert len(set(chosen)) == len(chosen) == min(len(values), 3 * per_group)
    if len(worst):
        assert array[best].min() >= array[worst].max()


def test_the_choice_depends_on_ids_and_not_on_the_order_of_rows() -> None:
    ids = np.arange(50)
    shuffled = np.random.default_rng(0).permutation(ids)
    groups, others = (choose(np.zeros(50), order, 3) for order in (ids, shuffled))
    for group, other in zip(groups, others, strict=True):
        assert ids[group].tolist() == shuffled[other].tolist()


def encoded(width: int, height: int, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    deep = mode == "I;16"
    Image.new(mode, (width, height), 60000 if deep else 0).save(out, "PNG" if deep else "JPEG")
    return out.getvalue()


def test_thumbnails_are_small_and_keep_the_aspect() -> None:
    with Image.open(io.BytesIO(thumbnail(encoded(1600, 800)))) as image:
        assert image.size == (400, 200)


def test_what_is_transparent_is_black_in_thumbnails_as_it_is_for_networks() -> None:
    out = io.BytesIO()
    Image.new("RGBA", (64, 64), (255, 255, 255, 0)).save(out, "PNG")
    with Image.open(io.BytesIO(thumbnail(out.getvalue()))) as image:
        assert np.asarray(image).max() < 8
    assert decode(out.getvalue()).max() == 0


@pytest.mark.parametrize("mode", ["L", "CMYK", "I;16"])
def test_thumbnails_show_grey_print_and_deep_images(mode: str) -> None:
    with Image.open(io.BytesIO(thumbnail(encoded(100, 100, mode)))) as image:
        assert image.mode == "RGB"
        brightest = np.asarray(image).max()
    assert mode != "I;16" or 225 <= brightest <= 240  # 60000 / 65535 of 255, not clipped
