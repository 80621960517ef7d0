"""One entry per image of the run: the box that the page shows, and how well it fits.

The rules (which guess counts, what is right) are those of `evaluate`; this is its
per-image side, for what the page breaks down and for its gallery. Shape suffixes: N
images; G true boxes, image after image; P shown boxes; 4 the sides xyxy.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cropscore_ray import geometry, schema
from cropscore_ray.datasets.manifest import Manifest
from cropscore_ray.evaluation import matching, metrics, ranking
from cropscore_ray.evaluation.matching import Bools, Floats, Ints, Truth


@dataclass(frozen=True, kw_only=True, slots=True)
class Cases:
    """The images of a run, in the order of image_id; arrays have N entries."""

    truth: Truth
    is_class_known: bool
    """Whether the shown boxes were made with the class given (rank 0); else first guesses."""
    rows: pa.Table
    """schema.PREDICTIONS: all rows of these images, failed ones included."""
    shown: pa.Table
    """schema.PREDICTIONS: the shown box of each image that has any."""
    row: Ints
    """For each image, its row of `shown`; -1 where no box was predicted."""
    iou: Floats
    """Overlap with the true box it fits best; 0 without a prediction, NaN without true boxes."""
    area_fraction: Floats
    """The largest true box as a share of its image; NaN where unknown."""
    wrong: dict[str, Bools]
    """Which images the run and the baselines get wrong, by the names that evaluate uses."""

    @property
    def is_boxed(self) -> Bools:
        """For each image whether its class and true boxes are known, (N,)."""
        return self.truth.boxed

    def gt_boxes(self, position: int) -> list[list[float]]:
        """Return an image's true boxes, xyxy in pixels; `position` counts from 0 to N - 1."""
        start = int(self.truth.num_boxes[:position].sum())
        boxes: list[list[float]] = self.truth.boxes[start:][
            : self.truth.num_boxes[position]
        ].tolist()
        return boxes


def find_cases(
    predictions: pa.Table,
    manifest: Manifest,
    *,
    split: str | None,
    constant_box: list[float] | None,
) -> Cases:
    """Match predictions (schema.PREDICTIONS) with the rows of one split of a manifest.

    Args:
        predictions: The run's rows.
        manifest: The image set that was localized.
        split: The rows that count; None as in `evaluate.evaluate`, errors too.
        constant_box: The baseline's box, xyxy in fractions of the image.
    """
    outcome = metrics.image_outcomes(predictions, manifest, split=split)
    truth = outcome.truth
    known = predictions.filter(pc.is_in(predictions["image_id"], pa.array(truth.image_id)))
    is_class_known = ranking.has_class_known(known)
    shown = ranking.first_guesses(known, limit=1, class_known=is_class_known)
    image_P = np.searchsorted(truth.image_id, shown["image_id"].to_numpy())
    row, iou = np.full(len(truth.image_id), -1), np.zeros(len(truth.image_id))
    row[image_P] = np.arange(len(shown))
    iou[image_P] = matching.best_iou(truth, schema.boxes(shown), image_P)
    return Cases(
        truth=truth,
        is_class_known=is_class_known,
        rows=known,
        shown=shown,
        row=row,
        iou=np.where(truth.boxed, iou, np.nan),
        area_fraction=_area_fraction(truth),
        wrong=outcome.wrong | metrics.box_baselines(truth, constant_box),
    )


def _area_fraction(truth: Truth) -> Floats:
    largest_N = np.zeros(len(truth.image_id))
    image_G = np.repeat(np.arange(len(truth.image_id)), truth.num_boxes)
    np.maximum.at(largest_N, image_G, geometry.area(truth.boxes))
    fraction = largest_N / truth.sizes_px.prod(axis=1)
    return np.where(truth.boxed, np.minimum(fraction, 1.0), np.nan)
