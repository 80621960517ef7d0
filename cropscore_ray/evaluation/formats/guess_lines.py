"""What the two ILSVRC text formats share: one line per image, with up to five guesses.

A guess is a class and a box in whole inclusive pixels: left, top, right, bottom, where a
box of one pixel has left == right. Our half-open box has the same left and top, and
right and bottom one larger; IoU is the same in both (geometry.iou).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from cropscore_ray import schema, storage
from cropscore_ray.datasets.manifest import Manifest
from cropscore_ray.errors import DataError
from cropscore_ray.evaluation import ranking
from cropscore_ray.schema import OK, ImageClass

InclusiveBox = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Guess:
    """A class, or None where the manifest has no such class, and an inclusive box."""

    class_index: int | None
    box_inclusive: InclusiveBox


def image_stem(image_uri: str) -> str:
    """Return the file's name without folder and extension: ImageNet's image id."""
    name = image_uri.rsplit("/", 1)[-1]
    return name.rpartition(".")[0] or name


def inclusive_pixels(boxes_N4: ArrayLike) -> NDArray[np.int64]:
    """Return the nearest whole inclusive pixels of half-open boxes, (N, 4).

    Left and top are rounded, right and bottom rounded less one, so that each side
    moves by at most half a pixel; a box thinner than that keeps one pixel.
    """
    edges = np.rint(np.asarray(boxes_N4, np.float64)).astype(np.int64)
    edges[:, 2:] = np.maximum(edges[:, 2:] - 1, edges[:, :2])
    return edges


def best_guesses(predictions: pa.Table) -> pa.Table:
    """Return the up to five guesses of each image: ranks from 1, or rank 0 if that is all."""
    known_only = not ranking.has_ranked(predictions)
    named = predictions.filter(pc.is_valid(predictions["class_index"]))
    return ranking.first_guesses(named, class_known=known_only)


def lines_by_stem(predictions: pa.Table, class_words: list[str]) -> dict[str, str]:
    """Return the guesses of each image as text, by stem in sorted order; "" for a failed one.

    Args:
        predictions: A table of schema.PREDICTIONS.
        class_words: What stands for each class_index.

    Raises:
        DataError: Two images have the same stem, so that the format cannot tell them apart.
    """
    rows = best_guesses(predictions)
    boxes = inclusive_pixels(schema.boxes(rows))
    words: dict[int, list[str]] = {}
    columns = (rows["image_id"].to_pylist(), rows["class_index"].to_pylist(), boxes.tolist())
    for image_id, class_index, box in zip(*columns, strict=True):
        guess = " ".join([class_words[class_index], *map(str, box)])
        words.setdefault(image_id, []).append(guess)
    ids = ids_by_stem(predictions)
    return {stem: " ".join(words.get(ids[stem], [])) for stem in sorted(ids)}


def ids_by_stem(images: pa.Table) -> dict[str, int]:
    """Return the image_id of each stem of a manifest's or predictions' rows.

    Raises:
        DataError: Two images have the same stem.
    """
    uris = dict(zip(images["image_id"].to_pylist(), images["image_uri"].to_pylist(), strict=True))
    ids = {image_stem(uri): image_id for image_id, uri in uris.items()}
    if len(ids) < len(uris):
        stem, count = Counter(image_stem(uri) for uri in uris.values()).most_common(1)[0]
        raise DataError(
            f"{count} images are called {stem!r}; this format knows images by file name only",
            hint="choose one split, or export as coco or csv",
        )
    return ids


def require_classes(predictions: pa.Table, what: str) -> list[ImageClass]:
    """Return the classes in the table's metadata; DataError if it has none."""
    classes = schema.read_classes(predictions.schema)
    if not classes:
        raise DataError(
            f"the predictions do not list their classes, which {what} needs",
            hint="give the run folder (with run.json) instead of the table alone",
        )
    return classes


def to_predictions(manifest: Manifest, lines: Iterable[tuple[int, list[Guess]]]) -> pa.Table:
    """Return a predictions table of guesses, ranked 1, 2, … in the order of each line.

    Args:
        manifest: The image set; its classes are those of the guesses.
        lines: image_id and guesses, best first; without guesses an image gets no row.
    """
    columns = ["image_id", "image_uri", "width_px", "height_px"]
    images = {row["image_id"]: row for row in manifest.table.select(columns).to_pylist()}
    rows: list[dict[str, Any]] = []
    for image_id, line in lines:
        for rank, guess in enumerate(line, start=1):
            index = guess.class_index
            left, top, right, bottom = guess.box_inclusive
            rows.append(
                {
                    **images[image_id],
                    "class_rank": rank,
                    "class_index": index,
                    "class_name": None if index is None else manifest.classes[index].name,
                    **dict(zip(schema.SIDES, (left, top, right + 1, bottom + 1), strict=True)),
                    "status": OK,
                }
            )
    return schema.rows_to_table(rows, schema.with_classes(schema.PREDICTIONS, manifest.classes))


def parse_groups(words: list[str], where: str) -> list[tuple[str, InclusiveBox]]:
    """Split words into groups of five: a class and the four sides of its box.

    Raises:
        DataError: The number of words is no multiple of five, or a side is no number.
    """
    if len(words) % 5:
        raise DataError(
            f"{where}: {len(words)} words, not groups of five (class xmin ymin xmax ymax)"
        )
    try:
        sides = (map(float, words[first::5]) for first in range(1, 5))
        return list(zip(words[::5], zip(*sides, strict=True), strict=True))
    except ValueError as error:
        raise DataError(f"{where}: a side of a box is no number: {error}") from error


def read_text(uri: str) -> str:
    """Return a file's text; DataError if it is not UTF-8."""
    try:
        return storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{uri}: not a text file: {error}", hint="check --format") from error
