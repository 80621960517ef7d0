"""The errors of a predictions table against a manifest, beside the baselines.

Figures are fractions, in the sense of the ILSVRC development kit (eval_clsloc.m): any
instance of the class counts, IoU >= 0.5 in float64, five guesses, images without boxes
(the blacklist among them) leave localization but not classification. docs/reference/metrics.md
says what each figure means. This module needs no images and no network.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cropscore_ray import geometry, schema
from cropscore_ray.datasets.manifest import Manifest
from cropscore_ray.errors import ConfigError, DataError
from cropscore_ray.evaluation import matching
from cropscore_ray.evaluation.calibration import Reliability, reliability
from cropscore_ray.evaluation.matching import Bools, Floats, Outcomes, Truth
from cropscore_ray.models import baselines
from cropscore_ray.schema import ImageClass

MAX_BOX_ACC_THRESHOLDS = (0.3, 0.5, 0.7)
TRAIN_SPLIT = "train"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A fraction of images, and how many images it was taken over."""

    fraction: float
    num_images: int

    @property
    def standard_error(self) -> float:
        """The binomial standard error, sqrt(p (1 - p) / n)."""
        return math.sqrt(self.fraction * (1.0 - self.fraction) / self.num_images)


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """Errors of the predictions; None where the table has no rows for one."""

    gt_known: Rate | None
    """class given, one box: the most confident row of rank 0"""
    loc_top1: Rate | None
    loc_top5: Rate | None
    cls_top1: Rate | None
    cls_top5: Rate | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Baselines:
    """Errors with the class known of boxes that need no crop scores; None: not available."""

    constant_box: Rate | None
    whole_image: Rate | None
    cam: Rate | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """The figures of a group of images."""

    num_images: int
    """with a class: the denominator of classification"""
    num_boxed: int
    """with a class and true boxes: the denominator of localization"""
    error: Errors
    baselines: Baselines

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers: fractions, and their standard errors apart."""
        return {
            "num_labelled": self.num_images,
            "num_boxed": self.num_boxed,
            "error": _each(self.error, "fraction"),
            "baselines": _each(self.baselines, "fraction"),
            "standard_error": _each(self.error, "standard_error"),
            "baselines_standard_error": _each(self.baselines, "standard_error"),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """All figures of one split.

    An image of the split that failed, or that has no row at all, counts as an error in
    every figure of the predictions and is counted in `num_failed`.
    """

    split: str | None
    num_images: int
    """images of the split, with or without a class"""
    num_failed: int
    overall: Figures
    single_box: Figures
    multi_box: Figures
    per_class: dict[int, Figures]
    """by class_index of the manifest, classes without images left out"""
    confidence: Reliability | None
    """whether the confidence of class-known boxes is the share of them that fits"""
    max_box_acc: dict[str, Rate | None]
    """accuracy of the class-known box by IoU threshold, "0.3", "0.5" and "0.7" """
    constant_box: list[float] | None
    """the baseline's box, xyxy in fractions of the image"""
    classes: list[ImageClass]

    def to_json(self) -> dict[str, Any]:
        """Return the keys of `evaluate --json`, and more; what is unknown is None."""
        return {
            "split": self.split,
            "num_images": self.num_images,
            "num_failed": self.num_failed,
            **self.overall.to_json(),
            "max_box_acc": {
                key: share and share.fraction for key, share in self.max_box_acc.items()
            },
            "confidence": self.confidence and asdict(self.confidence),
            "constant_box": self.constant_box,
            "by_num_boxes": {
                "single": self.single_box.to_json(),
                "multi": self.multi_box.to_json(),
            },
            "per_class": [
                {"class_index": index, **asdict(self.classes[index]), **figures.to_json()}
                for index, figures in self.per_class.items()
            ],
        }


def evaluate(
    predictions: pa.Table,
    manifest: Manifest,
    *,
    split: str | None = None,
    constant_box: Sequence[float] | None = None,
) -> Evaluation:
    """Compare predictions with the ground truth of a split.

    Args:
        predictions: A table of schema.PREDICTIONS. Where its metadata lists classes, its
            class_index is matched to the manifest's by class id; else both lists are
            taken to be the same.
        manifest: The image set that was localized. Its `train` split, if there is
            any, gives the constant-box baseline.
        split: The rows that count; None: the one split that the predictions touch, the
            training images aside.
        constant_box: The baseline's box in fractions of the image, for a manifest that has
            no `train` split to fit it on.

    Raises:
        ConfigError: The predictions touch several splits and none was named.
        DataError: The predictions were made from another image set.
    """
    rows = _rows_of_split(predictions, manifest, split)
    outcome = _join(predictions, rows)
    truth = outcome.truth
    fitted = _fit_constant_box(manifest)
    box = constant_box if fitted is None else fitted
    wrong = {**outcome.wrong, **box_baselines(truth, box)}
    return Evaluation(
        split=rows.splits[0] if rows.splits else None,
        num_images=len(truth.image_id),
        num_failed=int(outcome.failed.sum()),
        overall=_figures(truth, wrong, np.ones(len(truth.image_id), bool)),
        single_box=_figures(truth, wrong, truth.num_boxes == 1),
        multi_box=_figures(truth, wrong, truth.num_boxes > 1),
        per_class=_per_class(truth, wrong),
        confidence=_confidence(outcome),
        max_box_acc=_max_box_acc(outcome),
        constant_box=None if box is None else [float(side) for side in box],
        classes=manifest.classes,
    )


def image_outcomes(
    predictions: pa.Table, manifest: Manifest, *, split: str | None = None
) -> Outcomes:
    """Return what became of each image of a split; arguments and errors as `evaluate`."""
    return _join(predictions, _rows_of_split(predictions, manifest, split))


def _rows_of_split(predictions: pa.Table, manifest: Manifest, split: str | None) -> Manifest:
    """Return the rows that count: of the named split, or of the one that predictions touch."""
    _check_same_images(predictions, manifest.table)
    if split is not None:
        return manifest.only(split)
    touched = pc.is_in(manifest.table["image_id"], predictions["image_id"])
    names = pc.unique(manifest.table.filter(touched)["split"]).to_pylist() or manifest.splits
    if len(names) == 2 and TRAIN_SPLIT in names:
        names.remove(TRAIN_SPLIT)  # no error is measured on what was trained on, unless asked for
    if len(names) > 1:
        listed = ", ".join(sorted(name or "(none)" for name in names))
        raise ConfigError(
            f"the predictions hold images of several splits: {listed}",
            hint="choose one with --split NAME",
        )
    if not names or names == [None]:
        return Manifest(
            table=manifest.table.filter(pc.is_null(manifest.table["split"])),
            classes=manifest.classes,
        )
    return manifest.only(names[0])


def _join(predictions: pa.Table, rows: Manifest) -> Outcomes:
    counted = predictions.filter(pc.is_in(predictions["image_id"], rows.table["image_id"]))
    return matching.join(_with_manifest_classes(counted, rows), matching.read_truth(rows))


def _check_same_images(predictions: pa.Table, images: pa.Table) -> None:
    """Raise DataError where an image_id means another file here than in the manifest.

    File names are compared without their folders: an image set may have moved.
    """
    expected = _names_by_id(images)
    for image_id, name in _names_by_id(predictions).items():
        if expected.get(image_id) != name:
            there = expected.get(image_id, "not there")
            raise DataError(
                f"image {image_id} is {name} in the predictions but {there} in the manifest",
                hint="evaluate with the manifest that the predictions were made from",
            )


def _names_by_id(table: pa.Table) -> dict[int, str]:
    names = (uri.rsplit("/", 1)[-1] for uri in table["image_uri"].to_pylist())
    return dict(zip(table["image_id"].to_pylist(), names, strict=True))


def _with_manifest_classes(predictions: pa.Table, manifest: Manifest) -> pa.Table:
    """Return the table with class_index in the manifest's order; -2 for unknown classes."""
    theirs = [known.id for known in schema.read_classes(predictions.schema)]
    ours = {known.id: index for index, known in enumerate(manifest.classes)}
    if not theirs or theirs == list(ours):
        return predictions
    new_index = pa.array([ours.get(name, matching.UNKNOWN_CLASS) for name in theirs], pa.int32())
    at = predictions.schema.get_field_index("class_index")
    renumbered = pc.take(new_index, predictions["class_index"])
    return predictions.set_column(at, schema.PREDICTIONS.field("class_index"), renumbered)


def _fit_constant_box(manifest: Manifest) -> Floats | None:
    if TRAIN_SPLIT not in manifest.splits:
        return None
    unit_boxes = matching.read_truth(manifest.only(TRAIN_SPLIT)).unit_boxes()
    return baselines.fit_constant_box(unit_boxes) if unit_boxes else None


def box_baselines(truth: Truth, box: Sequence[float] | Floats | None) -> dict[str, Bools]:
    """Return which images the whole image, and the constant box if there is one, get wrong."""
    whole = {"whole_image": matching.constant_box_wrong(truth, (0.0, 0.0, 1.0, 1.0))}
    if box is None:
        return whole
    return {**whole, "constant_box": matching.constant_box_wrong(truth, box)}


def _figures(truth: Truth, wrong: dict[str, Bools], group: Bools) -> Figures:
    labelled, boxed = group & truth.labelled, group & truth.boxed

    def named(name: str) -> Rate | None:
        return rate(wrong.get(name), labelled if name.startswith("cls_") else boxed)

    return Figures(
        num_images=int(labelled.sum()),
        num_boxed=int(boxed.sum()),
        error=Errors(**{name: named(name) for name in Errors.__dataclass_fields__}),
        baselines=Baselines(**{name: named(name) for name in Baselines.__dataclass_fields__}),
    )


def _per_class(truth: Truth, wrong: dict[str, Bools]) -> dict[int, Figures]:
    present = np.unique(truth.class_index[truth.labelled]).tolist()
    return {index: _figures(truth, wrong, truth.class_index == index) for index in present}


def _max_box_acc(outcome: Outcomes) -> dict[str, Rate | None]:
    iou, boxed = outcome.known_iou, outcome.truth.boxed
    return {
        f"{threshold}": rate(None if iou is None else iou >= threshold, boxed)
        for threshold in MAX_BOX_ACC_THRESHOLDS
    }


def _confidence(outcome: Outcomes) -> Reliability | None:
    if outcome.known_iou is None or outcome.known_confidence is None:
        return None
    judged = outcome.truth.boxed & ~np.isnan(outcome.known_confidence)
    hits = outcome.known_iou[judged] >= geometry.IOU_THRESHOLD
    return reliability(outcome.known_confidence[judged], hits)


def rate(hits: Bools | None, counted: Bools) -> Rate | None:
    """Return the share of hits among the counted images; None where there is nothing to count."""
    if hits is None or not counted.any():
        return None
    return Rate(fraction=float(hits[counted].mean()), num_images=int(counted.sum()))


def _each(rates: Errors | Baselines, figure: str) -> dict[str, float | None]:
    """Return a figure of each rate by name, None for a rate that is not available."""
    by_name = {name: getattr(rates, name) for name in rates.__dataclass_fields__}
    return {name: value and getattr(value, figure) for name, value in by_name.items()}
