"""COCO's list of results, as pycocotools' loadRes takes it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cropscore_ray import schema, storage
from cropscore_ray.evaluation.formats import guess_lines


def write_coco(uri: str, predictions: pa.Table) -> None:
    """Write the up to five guesses of each image as a COCO result list.

    image_id and category_id are ours (image_id and class_index), bbox is left, top, width,
    height in float pixels, score the confidence, else the class score, else 1. The
    format has no place for an image without a box: a failed image is not in it.
    """
    rows = guess_lines.best_guesses(predictions)
    corners = schema.boxes(rows)
    bboxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    scores = pc.coalesce(rows["confidence"], rows["class_score"], pa.scalar(1.0, pa.float32()))
    columns = {
        "image_id": rows["image_id"].to_pylist(),
        "category_id": rows["class_index"].to_pylist(),
        "bbox": bboxes.tolist(),
        "score": scores.to_pylist(),
    }
    results = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    storage.write_bytes(uri, json.dumps(results).encode())
