"""The crop grid of the poster: 7x7 cells, and every square block of cells is a crop.

The order of the 140 squares is part of the model: size k from 1 to 7, within a size
row by row from the top, within a row from the left. The squares live in the unit
frame, so that on a wide image a "square" has the image's aspect (METHOD row 1: the
poster leaves this open; full-frame cells need no padding).
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

CELLS = 7
NUM_SQUARES = sum((CELLS - k + 1) ** 2 for k in range(1, CELLS + 1))  # 140


@cache
def square_cells() -> NDArray[np.int64]:
    """Return (140, 3): size k, top row and left column of each square, in cells."""
    squares = [
        (k, row, column)
        for k in range(1, CELLS + 1)
        for row in range(CELLS - k + 1)
        for column in range(CELLS - k + 1)
    ]
    cells = np.array(squares, np.int64)
    cells.flags.writeable = False
    return cells


@cache
def unit_squares() -> NDArray[np.float64]:
    """Return (140, 4): the squares as xyxy fractions of the image's width and height."""
    k, row, column = square_cells().T
    squares = np.stack([column, row, column + k, row + k], axis=1) / CELLS
    squares.flags.writeable = False
    return squares


def square_boxes(width_px: float, height_px: float) -> NDArray[np.float64]:
    """Return (140, 4): the squares of an image as boxes in its pixels."""
    return unit_squares() * np.array([width_px, height_px, width_px, height_px], np.float64)


def score_maps(scores_S: NDArray[np.floating]) -> list[NDArray[np.floating]]:
    """Split 140 scores into seven maps, k = 1 to 7, of shape (8 - k, 8 - k)."""
    sides = [CELLS - k + 1 for k in range(1, CELLS + 1)]
    ends = np.cumsum([side * side for side in sides])
    parts = np.split(np.asarray(scores_S), ends[:-1])
    return [part.reshape(side, side) for part, side in zip(parts, sides, strict=True)]


def mirror_order() -> NDArray[np.int64]:
    """Return (140,): for each square, the index of its left-right mirror image."""
    k, row, column = square_cells().T
    index = {tuple(cell): i for i, cell in enumerate(square_cells().tolist())}
    mirrored = zip(k, row, CELLS - k - column, strict=True)
    return np.array([index[int(a), int(b), int(c)] for a, b, c in mirrored], np.int64)
