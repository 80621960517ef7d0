"""Which images the page shows, and what it needs to show each of them.

Where images come from and who scores them are arguments; an image that cannot be read
any more, or a model that is gone, leaves a note in its place and never stops the page.
"""

import base64
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cropscore_ray.errors import CropscoreError, ImageError
from cropscore_ray.grid import NUM_SQUARES
from cropscore_ray.images.decode import DAMAGED, to_rgb
from cropscore_ray.report.cases import Cases
from cropscore_ray.report.charts import HeatMap, heat_maps
from cropscore_ray.schema import SIDES

ReadImage = Callable[[str], bytes]
ScoreSquares = Callable[[bytes, int], NDArray[np.floating]]

THUMBNAIL_PX = 400
THUMBNAIL_QUALITY = 78  # about 25 kB an image: 18 of them stay well below a megabyte

_READ_ERRORS = (CropscoreError, ImageError, OSError)
_SCORE_ERRORS = (*_READ_ERRORS, RuntimeError, ValueError, IndexError)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One image of the gallery; boxes are xyxy in pixels of the original image."""

    image_id: int
    image_uri: str
    width_px: int
    height_px: int
    class_name: str
    confidence: float | None
    iou: float | None
    pred_box: list[float]
    gt_boxes: list[list[float]]
    jpeg_base64: str | None
    """The image, at most 400 pixels on a side; None where it could not be read."""
    image_note: str
    """Why there is no image; empty where there is an image."""
    maps: list[HeatMap]
    score_range: tuple[float, float] | None
    """Lowest and highest of the 140 scores (before softmax)."""
    maps_note: str
    """Why there are no heat maps; empty where there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A row of the gallery."""

    title: str
    cards: list[Card]


def choose(
    values: NDArray[np.float64], ids: NDArray[np.int64], per_group: int
) -> list[NDArray[np.int64]]:
    """Choose positions of the highest, typical and lowest values, shape (N,) each at most.

    Typical are those at evenly spaced ranks of the middle half. The choice
    depends on values and ids alone; equal values are mixed by a hash of the id, so that
    a thousand images with IoU 0 are not all of the first class. Few images are shared
    out among the three, so that none is shown twice.
    """
    # Fibonacci hashing (Knuth, TAOCP vol. 3, section 6.4), in 64 bits.
    mixed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    order = np.lexsort((mixed, values))[::-1]
    if len(order) <= 3 * per_group:
        return list(np.array_split(order, 3))
    middle = order[per_group:-per_group]
    width = max(per_group, len(middle) // 2)
    start = (len(middle) - width) // 2
    typical = start + (2 * np.arange(per_group) + 1) * width // (2 * per_group)
    return [order[:per_group], middle[typical], order[-per_group:][::-1]]


def build_gallery(
    cases: Cases,
    *,
    read_image: ReadImage,
    score_squares: ScoreSquares | None,
    per_group: int,
) -> list[Group]:
    """Return up to three groups of images with boxes: by IoU, or by confidence without labels."""
    has_box = cases.row >= 0
    shown = np.flatnonzero(has_box & cases.is_boxed)
    titles, values = ("Best", "Typical", "Worst"), cases.iou[shown]
    if not len(shown):
        shown = np.flatnonzero(has_box)
        confidence = cases.shown["confidence"].to_numpy().astype(np.float64)[cases.row[shown]]
        titles = ("Most confident", "Typical", "Least confident")
        values = np.nan_to_num(confidence, nan=-1.0)
    chosen = choose(values, cases.truth.image_id[shown], per_group)
    return [
        Group(
            title=title,
            cards=[_card(cases, int(i), read_image, score_squares) for i in shown[part]],
        )
        for title, part in zip(titles, chosen, strict=True)
        if len(part)
    ]


def _card(
    cases: Cases, position: int, read_image: ReadImage, score_squares: ScoreSquares | None
) -> Card:
    row: dict[str, Any] = cases.shown.slice(int(cases.row[position]), 1).to_pylist()[0]
    iou = float(cases.iou[position])
    data, jpeg, image_note = _picture(row["image_uri"], read_image)
    scores, maps_note = _scores(data, row["class_index"], score_squares)
    return Card(
        image_id=row["image_id"],
        image_uri=row["image_uri"],
        width_px=row["width_px"],
        height_px=row["height_px"],
        class_name=row["class_name"] or "",
        confidence=row["confidence"],
        iou=None if np.isnan(iou) else iou,
        pred_box=[row[side] for side in SIDES],
        gt_boxes=cases.gt_boxes(position),
        jpeg_base64=jpeg,
        image_note=image_note,
        maps=heat_maps(scores) if scores is not None else [],
        score_range=(float(scores.min()), float(scores.max())) if scores is not None else None,
        maps_note=maps_note,
    )


def _picture(image_uri: str, read_image: ReadImage) -> tuple[bytes | None, str | None, str]:
    """Return the image's bytes, a small JPEG as base64, and why there is none."""
    try:
        data = read_image(image_uri)
    except _READ_ERRORS as error:
        logger.warning("the report goes without %s: %s", image_uri, error)
        return None, None, f"The image is no longer reachable: {error}"
    try:
        return data, base64.b64encode(thumbnail(data)).decode(), ""
    except DAMAGED as error:
        logger.warning("the report goes without %s: %s", image_uri, error)
        reason = "not an image any more" if isinstance(error, UnidentifiedImageError) else error
        return None, None, f"The image can no longer be decoded: {reason}"


def thumbnail(data: bytes, side_px: int = THUMBNAIL_PX) -> bytes:
    """Return an encoded image as a JPEG of at most side_px on each side.

    EXIF rotation is not applied: boxes live in the stored frame.
    """
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (2 * side_px, 2 * side_px))
        small = to_rgb(image)
    small.thumbnail((side_px, side_px))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=THUMBNAIL_QUALITY, optimize=True)
    return out.getvalue()


def _scores(
    data: bytes | None, class_index: int | None, score_squares: ScoreSquares | None
) -> tuple[NDArray[np.floating] | None, str]:
    """Return the 140 scores, or why there are none."""
    if score_squares is None:
        return None, ""  # said once, for all images
    if data is None or class_index is None:
        return None, "No score maps: there is nothing to score."
    try:
        scores = np.asarray(score_squares(data, class_index), np.float64)
    except _SCORE_ERRORS as error:
        logger.warning("no score maps: %s", error)
        return None, f"No score maps: {error}"
    if scores.shape != (NUM_SQUARES,) or not np.isfinite(scores).all():
        return None, f"No score maps: the model did not return {NUM_SQUARES} finite scores."
    return scores, ""
