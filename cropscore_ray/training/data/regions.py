"""Training regions for pyramid mode: whole images, and parts of them in place of crops.

What is drawn depends on (seed, epoch, image) alone, as in crops.py, but for the level of the
pyramid, which is that of a step, since a batch needs one size.

Shape suffixes: M true boxes; S squares; R regions; J = 7 cells a side.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cropscore_ray import grid
from cropscore_ray.config.sections import ScorerConfig
from cropscore_ray.geometry import Boxes
from cropscore_ray.images.crop import crop
from cropscore_ray.models.boxes import mirrored
from cropscore_ray.training.data.crops import NO_OVERLAP, evenly, square_overlaps
from cropscore_ray.training.data.images import Box, Request, WholeImageDataset


class PyramidDataset(WholeImageDataset):
    """One whole image and some regions of it an epoch, at the level of the step."""

    crops_an_image = 8  # one pass gives the maps; more regions of the same image cost nothing

    config: ScorerConfig

    def request(self, image: int, epoch: int, step: int) -> Request:
        """Return an image and the level that the step works at."""
        rng = np.random.default_rng((self.seed, epoch, step, 0x1E7E1))
        return Request(image, epoch, int(rng.choice(len(grid.LEVELS), p=self.config.level_shares)))

    def _sample(self, request: Request) -> dict[str, Any]:
        rng, pixels, boxes_M4 = self._read(request)
        height, width = pixels.shape[:2]
        level = request.level
        side = grid.CELLS * self.stride * grid.LEVELS[level]
        image_SS3 = crop(pixels, [[0, 0, width, height]], side)[0]
        if rng.random() < 0.5:
            image_SS3 = image_SS3.flip(1)
            boxes_M4 = mirrored(torch.from_numpy(boxes_M4)).numpy()
        regions_R4, overlaps_R = self._regions(rng, boxes_M4, level)
        return {
            "crop": image_SS3,
            "regions": torch.from_numpy(grid.region_means(regions_R4)),
            "class_index": torch.full((len(regions_R4),), int(self.data.classes[request.image])),
            "overlap": torch.from_numpy(overlaps_R),
        }

    def _regions(
        self, rng: np.random.Generator, boxes_M4: Boxes, level: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return what to ask about at a level: blocks of cells, and their overlaps."""
        drawn = [
            sample_region(rng, boxes_M4, level, self.config) for _ in range(self.crops_an_image)
        ]
        return np.array([cells_4 for cells_4, _ in drawn]), np.array(
            [overlap for _, overlap in drawn]
        )


class SquaresDataset(PyramidDataset):
    """One whole image an epoch, and all squares of the step's level.

    Few of them overlap much, as where they are scored: so a head learns what is to be expected.
    """

    def _regions(
        self, rng: np.random.Generator, boxes_M4: Boxes, level: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        squares_S4 = grid.square_rectangles()
        mine = grid.level_of(squares_S4) == level
        return squares_S4[mine], square_overlaps(boxes_M4)[mine]


def sample_region(
    rng: np.random.Generator, boxes_M4: Boxes, level: int, config: ScorerConfig
) -> tuple[NDArray[np.int64], float]:
    """Draw a block of cells: a square of the step's level with its overlap, or an object's cells.

    An object of another level gives way to a square. With grid_fraction 0 there are no squares,
    and it is seen at the step's zoom: as augmentation of scale.

    Returns:
        rows, columns, top row and left column, and the overlap, NO_OVERLAP for an object.
    """
    if rng.random() >= config.grid_fraction:
        cells_4 = covering_cells(boxes_M4[rng.integers(len(boxes_M4))])
        if not config.grid_fraction or grid.level_of(cells_4[None])[0] == level:
            return cells_4, NO_OVERLAP
    squares_S4 = grid.square_rectangles()
    mine = np.flatnonzero(grid.level_of(squares_S4) == level)
    overlaps = square_overlaps(boxes_M4)[mine]
    chosen = evenly(rng, overlaps)
    return squares_S4[mine[chosen]], float(overlaps[chosen])


def covering_cells(box_4: Box) -> NDArray[np.int64]:
    """Return the smallest block of cells that holds a unit box: rows, columns, top, left."""
    low = np.clip(np.floor(box_4[:2] * grid.CELLS + 1e-6), 0, grid.CELLS - 1)
    high = np.clip(np.ceil(box_4[2:] * grid.CELLS - 1e-6), low + 1, grid.CELLS)
    (columns, rows), (left, top) = high - low, low
    return np.array([rows, columns, top, left], np.int64)
