"""The numbers behind the page's bars, tables and heat maps; how they look is the template's.

Shape suffixes: N images; S the 140 squares of the crop grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cropscore_ray import grid
from cropscore_ray.evaluation.metrics import Rate, rate
from cropscore_ray.geometry import IOU_THRESHOLD
from cropscore_ray.report.cases import Cases
from cropscore_ray.schema import ImageClass

NUM_BINS = 20
AREA_EDGES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A bin of a histogram; `height` is its count as a share of the highest bin's."""

    low: float
    high: float
    count: int
    height: float
    is_error: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeRow:
    """The errors of the images whose largest true box covers a range of the image."""

    low: float
    high: float
    num_images: int
    errors: dict[str, Rate | None]
    """By the name of the error; None where the bin is empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassRow:
    """The error of one class, and the mean IoU of the shown boxes."""

    name: str
    id: str
    error: Rate
    mean_iou: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A square of the grid: its place on the 7x7 frame and its score as a share of the range."""

    x: float
    y: float
    shade: float


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatMap:
    """The scores of all crops of one size, k of the seven cells on each side."""

    k: int
    cells: list[Cell]


def histogram(iou: NDArray[np.float64]) -> list[Bar]:
    """Count IoUs, shape (N,), in 20 bins of [0, 1], the last closed; NaN is left out."""
    counts, edges = np.histogram(iou[~np.isnan(iou)], bins=NUM_BINS, range=(0.0, 1.0))
    top = max(int(counts.max()), 1)
    return [
        Bar(low=low, high=high, count=count, height=count / top, is_error=high <= IOU_THRESHOLD)
        for low, high, count in zip(
            edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True
        )
    ]


def rows_by_size(cases: Cases, names: Sequence[str]) -> list[SizeRow]:
    """Return the named errors in each bin of object size; bins are half-open, the last closed."""
    bins = np.searchsorted(AREA_EDGES[1:-1], cases.area_fraction, side="right")
    is_sized = ~np.isnan(cases.area_fraction)
    rows = []
    for i, (low, high) in enumerate(pairwise(AREA_EDGES)):
        kept = is_sized & (bins == i)
        errors = {name: rate(cases.wrong[name], kept) for name in names}
        rows.append(SizeRow(low=low, high=high, num_images=int(kept.sum()), errors=errors))
    return rows


def rows_by_class(cases: Cases, classes: Sequence[ImageClass], name: str) -> list[ClassRow]:
    """Return the named error of each class that has true boxes, worst first, ties by mean IoU."""
    index, wrong, iou = (
        values[cases.is_boxed] for values in (cases.truth.class_index, cases.wrong[name], cases.iou)
    )
    num_images, num_wrong, sum_iou = (
        np.bincount(index, weights, minlength=len(classes)) for weights in (None, wrong, iou)
    )
    rows = [
        ClassRow(
            name=classes[i].name,
            id=classes[i].id,
            error=Rate(fraction=num_wrong[i] / num_images[i], num_images=int(num_images[i])),
            mean_iou=sum_iou[i] / num_images[i],
        )
        for i in np.flatnonzero(num_images).tolist()
    ]
    return sorted(rows, key=lambda row: (-row.error.fraction, row.mean_iou, row.name))


def heat_maps(scores_S: NDArray[np.floating]) -> list[HeatMap]:
    """Place 140 scores, shape (140,), on seven 7x7 frames, one for each crop size.

    A crop of k cells whose corner is (row, column) is drawn as one cell around its centre,
    so that all frames, and a box drawn over them, are aligned with the image. One scale,
    lowest to highest of the 140, holds for all seven; equal scores are drawn half shaded.
    """
    low, high = float(scores_S.min()), float(scores_S.max())
    spread = high - low
    shades = (scores_S - low) / spread if spread > 0 else np.full(len(scores_S), 0.5)
    return [
        HeatMap(
            k=k,
            cells=[
                Cell(x=column + (k - 1) / 2, y=row + (k - 1) / 2, shade=round(float(shade), 2))
                for (row, column), shade in np.ndenumerate(shades_map)
            ],
        )
        for k, shades_map in enumerate(grid.score_maps(shades), start=1)
    ]
