"""What each stage of a training learns from: its rows of the manifest, and their columns."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cropscore_ray.config import TrainConfig
from cropscore_ray.errors import DataError
from cropscore_ray.manifest import Manifest, read_manifest
from cropscore_ray.training.dataset import LabelledImages


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRun:
    """What a training must know: where its images are, where its model is, its settings."""

    manifest_uri: str
    split: str | None
    model_uri: str
    config: TrainConfig


def training_manifest(uri: str, split: str | None) -> Manifest:
    """Return the rows to train on: the split asked for, else `train`, else the only one.

    Raises:
        DataError: there are several splits, none named train, and none was asked for.
    """
    manifest = read_manifest(uri)
    if split is None and "train" in manifest.splits:
        split = "train"
    if split is None and len(manifest.splits) > 1:
        raise DataError(
            f"{uri} has the splits {', '.join(manifest.splits)} and none is called train",
            hint="name the one to train on with --split",
        )
    return manifest.only(split)


def boxed_rows(manifest: Manifest) -> pa.Table:
    """Return the rows that carry a class and at least one box."""
    rows = manifest.table.to_pylist()
    keep = [row["class_index"] is not None and bool(row["gt_boxes"]) for row in rows]
    return manifest.table.filter(pa.array(keep, pa.bool_()))


def split_boxed(manifest: Manifest, config: TrainConfig) -> tuple[pa.Table, pa.Table]:
    """Return the boxed rows for the scorer and, disjoint from them, for the localizer.

    Drawn class by class from the seed, so that both shares hold every class that has two
    images; each in the order of image_id.

    Raises:
        DataError: fewer than two images carry boxes.
    """
    rows = boxed_rows(manifest)
    if len(rows) < 2:
        raise DataError(
            "the training split has fewer than two images with a class and boxes",
            hint="index a source with boxes: ilsvrc:, voc:, csv: or parquet:",
        )
    rng = np.random.default_rng((config.seed, 0xB0C5))
    classes = rows["class_index"].to_numpy()
    order = rng.permutation(len(rows))
    order = order[np.argsort(classes[order], kind="stable")]
    # Every 1/fraction-th image in the order of classes: an even draw from each class.
    reached = np.floor(np.arange(len(rows) + 1) * config.localizer_fraction + rng.random())
    for_localizer = np.diff(reached) > 0
    chosen = order[for_localizer]
    if config.max_localizer_images is not None:
        chosen = rng.permutation(chosen)[: config.max_localizer_images]
    return rows.take(np.sort(order[~for_localizer])), rows.take(np.sort(chosen))


def labelled_images(rows: pa.Table) -> LabelledImages:
    """Return the columns that a training reads."""
    boxes = [
        np.array(some or [], np.float64).reshape(-1, 4) for some in rows["gt_boxes"].to_pylist()
    ]
    return LabelledImages(
        uris=rows["image_uri"].to_pylist(),
        classes=rows["class_index"].to_numpy().astype(np.int64),
        boxes=boxes,
    )


def unit_boxes(rows: pa.Table, labelled: LabelledImages) -> list[NDArray[np.float64]]:
    """Return the true boxes of rows with known sizes, as fractions of the image."""
    sized = rows.filter(rows["width_px"].is_valid())
    sides = np.array([sized["width_px"], sized["height_px"]] * 2, np.float64).T
    return [boxes / side for boxes, side in zip(labelled.boxes, sides, strict=True)]
