"""Predictions joined with the ground truth: what became of each image.

Shapes: I images of the manifest's rows, G true boxes in the order of images, P
predicted boxes; 4 the sides xyxy. Averages, groups and baselines' fits are in `metrics`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from cropscore_ray import geometry, schema
from cropscore_ray.datasets.manifest import Manifest
from cropscore_ray.errors import DataError
from cropscore_ray.evaluation import ranking
from cropscore_ray.schema import OK

NO_CLASS = -1
UNKNOWN_CLASS = -2  # a prediction without a class: equal to no truth, not even to none

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """The ground truth of I images, by ascending image_id."""

    image_id: Ints
    """(I,)"""
    class_index: Ints
    """(I,); NO_CLASS where the manifest has none"""
    sizes_px: Floats
    """(I, 2) width and height in pixels; NaN where unknown"""
    boxes: Floats
    """(G, 4) true boxes in pixels, image after image"""
    num_boxes: Ints
    """(I,); 0 where boxes are unlabelled or on the blacklist"""

    @property
    def labelled(self) -> Bools:
        """Images that count for classification, (I,)."""
        return np.asarray(self.class_index != NO_CLASS)

    @property
    def boxed(self) -> Bools:
        """Images that count for localization, (I,): labelled, with at least one box."""
        return np.asarray(self.labelled & (self.num_boxes > 0))

    def unit_boxes(self) -> list[Floats]:
        """Return the true boxes (M, 4) of each boxed image of known size, as fractions."""
        usable = self.boxed & np.isfinite(self.sizes_px).all(axis=1)
        per_box = np.repeat(np.tile(self.sizes_px, 2), self.num_boxes, axis=0)
        parts = np.split(self.boxes / per_box, np.cumsum(self.num_boxes)[:-1])
        return [part for part, use in zip(parts, usable, strict=True) if use]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcomes:
    """What became of each image; arrays are (I,) in the order of `truth`.

    An image without a usable row is failed: its overlaps are 0 and all its guesses wrong.
    None stands for what the predictions hold no rows for.
    """

    truth: Truth
    failed: Bools
    known_iou: Floats | None
    """IoU of the class-known box with the instance it fits best"""
    known_confidence: Floats | None
    """confidence of the class-known box; NaN where there is none"""
    wrong: dict[str, Bools]
    """by name of the error (gt_known, loc_top1, …, cam); an absent name was not computable"""


def read_truth(manifest: Manifest) -> Truth:
    """Take the ground truth out of a manifest's rows."""
    table = manifest.table.sort_by("image_id")
    sizes = [pc.cast(table[name], pa.float64()).to_numpy() for name in ("width_px", "height_px")]
    sides = pc.list_flatten(pc.list_flatten(table["gt_boxes"])).to_numpy()
    lengths = pc.fill_null(pc.list_value_length(table["gt_boxes"]), 0)
    return Truth(
        image_id=table["image_id"].to_numpy(),
        class_index=_int64(table["class_index"], NO_CLASS),
        sizes_px=np.stack(sizes, axis=1),
        boxes=sides.astype(np.float64).reshape(-1, 4),
        num_boxes=lengths.to_numpy().astype(np.int64),
    )


def best_iou(truth: Truth, boxes_P4: ArrayLike, image_P: Ints) -> Floats:
    """Return each box's IoU with the instance of its image that it fits best, (P,).

    Args:
        truth: The ground truth.
        boxes_P4: Boxes in pixels; a box with a NaN side overlaps nothing.
        image_P: For each box, the position of its image in `truth`.
    """
    boxes = np.asarray(boxes_P4, np.float64).reshape(-1, 4)
    counts = truth.num_boxes[image_P]
    starts = (np.cumsum(truth.num_boxes) - truth.num_boxes)[image_P]
    box = np.repeat(np.arange(len(boxes)), counts)
    instance = np.arange(len(box)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
    overlap = geometry.iou(boxes[box, None], truth.boxes[instance, None])[:, 0, 0]
    best = np.zeros(len(boxes))
    np.maximum.at(best, box, np.nan_to_num(overlap))
    return best


def join(predictions: pa.Table, truth: Truth) -> Outcomes:
    """Return for each image which of its guesses were right.

    Args:
        predictions: schema.PREDICTIONS; class_index in the manifest's order, image_id
            all among the truth's.
        truth: The ground truth of the images that count.

    Raises:
        DataError: A row of rank 0 was given another class than the image's.
    """
    known_iou, known_confidence, wrong = None, None, {}
    if ranking.has_class_known(predictions):
        known = ranking.first_guesses(predictions, limit=1, class_known=True)
        _check_known_classes(truth, known)
        known_iou = _iou_per_image(truth, known, schema.boxes(known))
        known_confidence = np.full(len(truth.image_id), np.nan)
        known_confidence[_positions(truth, known)] = known["confidence"].to_numpy()
        wrong["gt_known"] = known_iou < geometry.IOU_THRESHOLD
        if known["cam_xyxy"].null_count < len(known):
            wrong["cam"] = _iou_per_image(truth, known, _cam_boxes(known)) < geometry.IOU_THRESHOLD
    if ranking.has_ranked(predictions):
        for limit in (1, ranking.MAX_GUESSES):
            first = ranking.first_guesses(predictions, limit=limit)
            wrong[f"cls_top{limit}"], wrong[f"loc_top{limit}"] = _judge(truth, first)
    return Outcomes(
        truth=truth,
        failed=_without_ok_row(predictions, truth),
        known_iou=known_iou,
        known_confidence=known_confidence,
        wrong=wrong,
    )


def constant_box_wrong(truth: Truth, unit_box: Sequence[float] | Floats) -> Bools:
    """Return where a box, given as fractions of every image, misses all instances, (I,)."""
    boxes = np.tile(truth.sizes_px, 2) * np.asarray(unit_box, np.float64)
    return best_iou(truth, boxes, np.arange(len(truth.image_id))) < geometry.IOU_THRESHOLD


def _check_known_classes(truth: Truth, known: pa.Table) -> None:
    image = _positions(truth, known)
    differs = truth.labelled[image] & (
        _int64(known["class_index"], UNKNOWN_CLASS) != truth.class_index[image]
    )
    if differs.any():
        raise DataError(
            f"{int(differs.sum())} images were localized with another class given than the"
            f" manifest's, the first of them {known['image_uri'][int(np.argmax(differs))]}",
            hint="evaluate with the manifest that the predictions were made from",
        )


def _judge(truth: Truth, rows: pa.Table) -> tuple[Bools, Bools]:
    """Return (I,) whether all guesses have the wrong class, and whether none also fits."""
    image = _positions(truth, rows)
    right_class = _int64(rows["class_index"], UNKNOWN_CLASS) == truth.class_index[image]
    fits = best_iou(truth, schema.boxes(rows), image) >= geometry.IOU_THRESHOLD
    wrong_class, wrong_place = np.ones((2, len(truth.image_id)), bool)
    wrong_class[image[right_class]] = False
    wrong_place[image[right_class & fits]] = False
    return wrong_class, wrong_place


def _iou_per_image(truth: Truth, rows: pa.Table, boxes_P4: Floats) -> Floats:
    image = _positions(truth, rows)
    overlap = np.zeros(len(truth.image_id))
    overlap[image] = best_iou(truth, boxes_P4, image)
    return overlap


def _without_ok_row(predictions: pa.Table, truth: Truth) -> Bools:
    usable = predictions.filter(pc.equal(predictions["status"], OK))
    return ~np.isin(truth.image_id, usable["image_id"].to_numpy())


def _positions(truth: Truth, rows: pa.Table) -> Ints:
    return np.asarray(np.searchsorted(truth.image_id, rows["image_id"].to_numpy()))


def _cam_boxes(rows: pa.Table) -> Floats:
    boxes = np.full((len(rows), 4), np.nan)
    present = rows["cam_xyxy"].is_valid().to_numpy()
    boxes[present] = pc.list_flatten(rows["cam_xyxy"]).to_numpy().reshape(-1, 4)
    return boxes


def _int64(column: pa.ChunkedArray, null: int) -> Ints:
    return np.asarray(pc.fill_null(column, null).to_numpy(), np.int64)
