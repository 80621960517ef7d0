"""The order in which a predictions table guesses, shared by the metrics and the formats.

A guess is one row with status ok. Guesses of an image come by class_rank, then by
falling confidence (several objects of one class), then by the box's sides, so that
the order of rows in the files never matters.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cropscore_ray.schema import OK, SIDES

MAX_GUESSES = 5  # ILSVRC CLS-LOC: extra guesses are ignored
_ORDER = [
    ("image_id", "ascending"),
    ("class_rank", "ascending"),
    ("confidence", "descending"),
    *((side, "ascending") for side in SIDES),
]


def has_class_known(predictions: pa.Table) -> bool:
    """Return whether any row, failed images included, was made with its class given (rank 0)."""
    return bool(pc.any(pc.equal(predictions["class_rank"], 0)).as_py())


def has_ranked(predictions: pa.Table) -> bool:
    """Return whether any row, failed images included, is for a predicted class (rank 1 to K)."""
    return bool(pc.any(pc.greater_equal(predictions["class_rank"], 1)).as_py())


def first_guesses(
    predictions: pa.Table, *, limit: int = MAX_GUESSES, class_known: bool = False
) -> pa.Table:
    """Return the first `limit` guesses of each image, by image_id and best first.

    Args:
        predictions: A table of schema.PREDICTIONS.
        limit: The most rows per image.
        class_known: Take the rows of rank 0 instead of those of rank 1 and above.
    """
    rank = predictions["class_rank"]
    wanted = pc.equal(rank, 0) if class_known else pc.greater_equal(rank, 1)
    usable = pc.and_(wanted, pc.equal(predictions["status"], OK))
    ordered = predictions.filter(usable).sort_by(_ORDER)
    ids = ordered["image_id"].to_numpy()
    place = np.arange(len(ids))
    first = np.searchsorted(ids, ids, side="left")
    return ordered.filter(pa.array(place - first < limit))
