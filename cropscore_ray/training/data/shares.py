"""What each stage of a training learns from: its rows of the manifest, and their columns."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cropscore_ray.config.sections import TrainConfig
from cropscore_ray.datasets.manifest import Manifest, read_manifest
from cropscore_ray.errors import DataError
from cropscore_ray.storage.lock import Held
from cropscore_ray.training.data.images import LabelledImages, Ragged, Texts


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRun:
    """What a training must know: where its images are, where its model is, its settings."""

    manifest_uri: str
    split: str | None
    model_uri: str
    config: TrainConfig
    held: Held
    """The lock of the bundle, which is looked at before anything is written there."""


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
    rows = _labelled(manifest)
    return rows.filter(pc.greater(pc.list_value_length(rows["gt_boxes"]), 0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """The boxed rows, dealt out: none is in two shares; each in the order of image_id."""

    scorer: pa.Table
    localizer: pa.Table
    """What the localizer learns boxes from."""
    choosing: pa.Table
    """Held back: they choose the localizer's epoch and its class-wise steps; none for a voter."""
    judging: pa.Table
    """Held back: they fit the confidence and give the held-back error, and nothing else."""

    @property
    def held_back(self) -> pa.Table:
        """The rows that no network learns from, classifiers included."""
        return pa.concat_tables([self.choosing, self.judging]).sort_by("image_id")

    @property
    def scored(self) -> pa.Table:
        """The rows that the localizer needs scores of."""
        return pa.concat_tables([self.localizer, self.held_back]).sort_by("image_id")


def split_boxed(manifest: Manifest, config: TrainConfig) -> Shares:
    """Deal out the boxed rows to the scorer, the localizer, and those that are held back.

    Drawn class by class from the seed: with localizer_fraction 0.5 and no max_localizer_images
    both shares hold every class that has two images. What is held back is a part of the
    localizer's share.

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
    order = _by_class(rng.permutation(len(rows)), classes)
    for_localizer = _evenly(len(rows), config.localizer_fraction, rng)
    chosen = order[for_localizer]
    if config.max_localizer_images is not None:
        chosen = rng.permutation(chosen)[: config.max_localizer_images]
    chosen = _by_class(chosen, classes)
    num_labelled = np.bincount(_labelled(manifest)["class_index"].to_numpy())
    held_back = _hold_back(classes[chosen], num_labelled, config, rng)
    # Of two shares every second image of an order by class, so that both have the same classes.
    is_judging = np.arange(len(held_back)) % config.localizer_kind.held_back_shares == 0
    return Shares(
        scorer=rows.take(np.sort(order[~for_localizer])),
        localizer=rows.take(np.sort(np.delete(chosen, held_back))),
        choosing=rows.take(np.sort(chosen[held_back[~is_judging]])),
        judging=rows.take(np.sort(chosen[held_back[is_judging]])),
    )


def _hold_back(
    classes_N: NDArray[np.integer],
    num_labelled_C: NDArray[np.integer],
    config: TrainConfig,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return which of the localizer's images are held back, as places in their order by class.

    A class keeps at least one of its labelled images, so that classifiers know it; unless that
    leaves too few to hold back.
    """
    num_images, kind = len(classes_N), config.localizer_kind
    fewest, most = kind.held_back_shares, min(kind.most_held_back or num_images, num_images)
    num_held_back = min(max(round(num_images * config.held_back_fraction), fewest), most)
    held_back = np.flatnonzero(_evenly(num_images, num_held_back / max(1, num_images), rng))
    classes, first = np.unique(classes_N[held_back], return_index=True)
    is_all = np.bincount(classes_N[held_back])[classes] == num_labelled_C[classes]
    spared = np.delete(held_back, first[is_all])
    return spared if len(spared) >= fewest else held_back


def _by_class(order_N: NDArray[np.int64], classes: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return rows in the order of their classes, and within a class in that of before."""
    return order_N[np.argsort(classes[order_N], kind="stable")]


def _evenly(num_rows: int, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose every 1/share-th row: of rows in the order of classes, an even draw from each."""
    reached = np.floor(np.arange(num_rows + 1) * share + rng.random())
    chosen: NDArray[np.bool_] = np.diff(reached) > 0
    return chosen


def classifier_rows(manifest: Manifest, config: TrainConfig) -> pa.Table:
    """Return the rows that classifiers learn from: all that carry a class, but those held back."""
    rows = _labelled(manifest)
    if len(boxed_rows(manifest)) < 2:
        return rows  # no scorer and no localizer will come of it
    held_back = split_boxed(manifest, config).held_back["image_id"].combine_chunks()
    return rows.filter(pc.invert(pc.is_in(rows["image_id"], held_back)))


def _labelled(manifest: Manifest) -> pa.Table:
    return manifest.table.filter(manifest.table["class_index"].is_valid())


def labelled_images(rows: pa.Table) -> LabelledImages:
    """Return the columns that a training reads."""
    boxes = rows["gt_boxes"]
    sides = pc.list_flatten(pc.list_flatten(boxes)).to_numpy().astype(np.float64)
    num_boxes = pc.fill_null(pc.list_value_length(boxes), 0).to_numpy()
    return LabelledImages(
        uris=Texts(rows["image_uri"].combine_chunks()),
        classes=rows["class_index"].to_numpy().astype(np.int64),
        boxes=Ragged(sides.reshape(-1, 4), np.cumsum(num_boxes, dtype=np.int64)),
    )


def sized(rows: pa.Table) -> pa.Table:
    """Return the rows whose images have known sizes."""
    return rows.filter(rows["width_px"].is_valid())


def unit_boxes(rows: pa.Table, labelled: LabelledImages) -> list[NDArray[np.float64]]:
    """Return the true boxes of sized rows as fractions of the image."""
    sides = np.array([rows["width_px"], rows["height_px"]] * 2, np.float64).T
    return [boxes / side for boxes, side in zip(labelled.boxes, sides, strict=True)]
