"""The crop grid of the poster: 7x7 cells, and every square block of cells is a crop.

The order of the 140 squares is part of the model: size k from 1 to 7, within a size
row by row from the top, within a row from the left. The squares live in the unit
frame, so that on a wide image a "square" has the image's aspect (METHOD row 1: the
poster leaves this open; full-frame cells need no padding).

The pyramid holds the same cells three times: in maps of the whole image at a side at which
a cell is exactly 1, 2 or 4 map cells. A block's score is then the mean of its cells, in the
map whose zoom comes nearest to that of a crop of the block.

Shape suffixes: R regions; L levels; J = 7 cells a side.
"""

from functools import cache
from itertools import product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.number[Any])

CELLS = 7
LEVELS = (1, 2, 4)
"""Sides of the pyramid's images, as multiples of the side at which a cell is one map cell."""
NUM_SQUARES = sum((CELLS - k + 1) ** 2 for k in range(1, CELLS + 1))  # 140


@cache
def square_cells() -> NDArray[np.int64]:
    """Return (140, 3): size k, top row and left column of each square, in cells."""
    return _read_only(square_rectangles()[:, 1:])


@cache
def unit_squares() -> NDArray[np.float64]:
    """Return (140, 4): the squares as xyxy fractions of the image's width and height."""
    k, row, column = square_cells().T
    return _read_only(np.stack([column, row, column + k, row + k], axis=1) / CELLS)


def square_boxes(width_px: float, height_px: float) -> NDArray[np.float64]:
    """Return (140, 4): the squares of an image as boxes in its pixels."""
    return unit_squares() * np.array([width_px, height_px, width_px, height_px], np.float64)


def score_maps(scores_S: NDArray[np.floating]) -> list[NDArray[np.floating]]:
    """Split 140 scores into seven maps, k = 1 to 7, of shape (8 - k, 8 - k)."""
    sides = [CELLS - k + 1 for k in range(1, CELLS + 1)]
    ends = np.cumsum([side * side for side in sides])
    parts = np.split(np.asarray(scores_S), ends[:-1])
    return [part.reshape(side, side) for part, side in zip(parts, sides, strict=True)]


@cache
def rectangle_cells() -> NDArray[np.int64]:
    """Return (784, 4): rows, columns, top row and left column of every block of cells."""
    rectangles = [
        (rows, columns, top, left)
        for rows, columns in product(range(1, CELLS + 1), repeat=2)
        for top, left in product(range(CELLS - rows + 1), range(CELLS - columns + 1))
    ]
    return _read_only(np.array(rectangles, np.int64))


@cache
def square_rectangles() -> NDArray[np.int64]:
    """Return (140, 4): the squares as blocks: rows, columns, top row and left column."""
    rows, columns, _, _ = rectangle_cells().T
    return np.compress(rows == columns, rectangle_cells(), axis=0)


def _read_only(cached: NDArray[Number]) -> NDArray[Number]:
    cached.flags.writeable = False
    return cached


def mirror_order(rectangles_R4: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (R,): for each block, the index of its left-right mirror image among them."""
    index = {tuple(block): i for i, block in enumerate(rectangles_R4.tolist())}
    rows, columns, top, left = rectangles_R4.T
    mirrored_R4 = np.stack([rows, columns, top, CELLS - columns - left], axis=1)
    return np.array([index[tuple(block)] for block in mirrored_R4.tolist()], np.int64)


def level_of(rectangles_R4: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index in LEVELS of each block, by its longer side: (R,).

    A crop of k cells is enlarged 7/k times. The levels enlarge 1, 2 and 4 times: 7 cells are
    seen in the first, 3 to 6 in the second, 1 and 2 in the third.
    """
    longest = rectangles_R4[:, :2].max(1)
    return np.where(longest == CELLS, 0, np.where(longest >= 3, 1, 2))


def region_means(rectangles_R4: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return each block's shares of the cells, (R, 7, 7): 1 / its area inside, 0 beside it."""
    shares_RJJ = np.zeros((len(rectangles_R4), CELLS, CELLS), np.float32)
    for share, (rows, columns, top, left) in zip(shares_RJJ, rectangles_R4.tolist(), strict=True):
        share[top : top + rows, left : left + columns] = 1.0 / (rows * columns)
    return shares_RJJ


def pyramid_means(rectangles_R4: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return each block's shares of the cells of its level, (R, L, 7, 7); 0 in other levels."""
    shares_RLJJ = np.zeros((len(rectangles_R4), len(LEVELS), CELLS, CELLS), np.float32)
    at = np.arange(len(rectangles_R4))
    shares_RLJJ[at, level_of(rectangles_R4)] = region_means(rectangles_R4)
    return shares_RLJJ
