"""The 140 squares: their order is part of every model, so it is pinned here."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cropscore_ray import grid
from cropscore_ray.geometry import area, iou
from cropscore_ray.grid import (
    NUM_SQUARES,
    mirror_order,
    rectangle_cells,
    score_maps,
    square_boxes,
    square_cells,
    square_rectangles,
    unit_squares,
)


def squares_of_a_naive_loop() -> list[tuple[int, int, int]]:
    squares = []
    for size in range(1, 8):
        for top in range(7):
            for left in range(7):
                if top + size <= 7 and left + size <= 7:
                    squares.append((size, top, left))
    return squares


def test_there_are_140_squares() -> None:
    # 49 + 36 + 25 + 16 + 9 + 4 + 1
    assert NUM_SQUARES == 140
    assert square_cells().shape == (140, 3)


def test_squares_stand_by_size_then_row_then_column() -> None:
    assert [tuple(square) for square in square_cells().tolist()] == squares_of_a_naive_loop()


def test_the_order_at_places_worked_by_hand() -> None:
    cells = square_cells().tolist()
    assert cells[0] == [1, 0, 0]
    assert cells[8] == [1, 1, 1]  # second row of seven
    assert cells[49] == [2, 0, 0]  # after 49 squares of one cell
    assert cells[49 + 6 + 2] == [2, 1, 2]  # second row of six
    assert cells[139] == [7, 0, 0]


def test_the_last_square_is_the_whole_image() -> None:
    assert square_boxes(640, 480)[139].tolist() == [0, 0, 640, 480]


def test_boxes_follow_the_aspect_of_the_image() -> None:
    # Cells of 700x70 are 100 wide and 10 high; square 57 is size 2, row 1, column 2.
    assert square_boxes(700, 70)[57] == pytest.approx([200, 10, 400, 30])


def test_one_cell_squares_tile_the_image_without_overlap() -> None:
    cells = square_boxes(49, 35)[:49]
    assert area(cells).sum() == pytest.approx(49 * 35)
    assert iou(cells, cells) == pytest.approx(np.eye(49), abs=1e-12)


@settings(max_examples=50)
@given(st.floats(1, 20_000), st.floats(1, 20_000))
def test_squares_lie_in_the_image_and_cover_k_squared_cells(width: float, height: float) -> None:
    boxes = square_boxes(width, height)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= width).all()
    assert (boxes[:, 3] <= height).all()
    k = square_cells()[:, 0]
    assert area(boxes) == pytest.approx(k**2 * width * height / 49, rel=1e-9)


def test_score_maps_put_each_score_at_its_row_and_column() -> None:
    maps = score_maps(np.arange(140.0))
    assert [part.shape for part in maps] == [(n, n) for n in (7, 6, 5, 4, 3, 2, 1)]
    for index, (k, row, column) in enumerate(squares_of_a_naive_loop()):
        assert maps[k - 1][row, column] == index


def test_score_maps_refuse_another_number_of_scores() -> None:
    with pytest.raises(ValueError, match="reshape"):
        score_maps(np.zeros(139))


@pytest.mark.parametrize("blocks", [square_rectangles(), rectangle_cells()], ids=len)
def test_mirroring_twice_changes_nothing(blocks: NDArray[np.int64]) -> None:
    order = mirror_order(blocks)
    assert sorted(order.tolist()) == list(range(len(blocks)))
    assert order[order].tolist() == list(range(len(blocks)))
    assert order.tolist() != order[order].tolist()


def test_mirror_order_is_the_mirror_image_of_the_boxes() -> None:
    boxes = unit_squares()
    mirrored = np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)
    assert boxes[mirror_order(square_rectangles())] == pytest.approx(mirrored, abs=1e-12)


def test_mirroring_reverses_the_columns_of_every_map() -> None:
    scores = np.arange(140.0)
    others = scores[mirror_order(square_rectangles())]
    pairs = zip(score_maps(scores), score_maps(others), strict=True)
    assert all((plain[:, ::-1] == mirrored).all() for plain, mirrored in pairs)


def test_the_shared_tables_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="read-only"):
        unit_squares()[0, 0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        square_cells()[0, 0] = 1


def test_rectangles_are_all_blocks_and_hold_the_squares() -> None:
    rectangles = [tuple(one) for one in grid.rectangle_cells().tolist()]
    assert len(rectangles) == len(set(rectangles)) == 784
    squares = [tuple(one) for one in grid.square_rectangles().tolist()]
    assert squares == [(k, k, row, column) for k, row, column in grid.square_cells().tolist()]
    assert set(squares) <= set(rectangles)


@pytest.mark.parametrize(
    ("rows", "columns", "level"),
    [(7, 7, 0), (1, 7, 0), (6, 6, 1), (3, 3, 1), (1, 3, 1), (2, 2, 2), (1, 1, 2), (2, 1, 2)],
)
def test_a_blocks_level_follows_its_longer_side(rows: int, columns: int, level: int) -> None:
    assert grid.level_of(np.array([[rows, columns, 0, 0]])).tolist() == [level]


def test_region_means_average_the_cells_inside() -> None:
    cells = np.arange(49.0).reshape(7, 7)
    rectangles = grid.rectangle_cells()
    found = np.einsum("rij,ij->r", grid.region_means(rectangles), cells)
    for i in (0, 17, 400, 783):
        rows, columns, top, left = rectangles[i]
        inside = cells[top : top + rows, left : left + columns]
        assert found[i] == pytest.approx(inside.mean(), rel=1e-6)


def test_pyramid_means_lie_in_one_level_and_add_up_to_one() -> None:
    shares = grid.pyramid_means(grid.square_rectangles())
    assert shares.shape == (140, 3, 7, 7)
    np.testing.assert_allclose(shares.sum((1, 2, 3)), 1, rtol=1e-6)
    used = (shares.sum((2, 3)) > 0).sum(0)
    assert used.tolist() == [1, 54, 85]
