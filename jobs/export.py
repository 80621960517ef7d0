"""The job `export`: predictions in the format of another program."""

import logging

from cropscore_ray.errors import ConfigError
from cropscore_ray.evaluation.formats.coco import write_coco
from cropscore_ray.evaluation.formats.csv import write_csv
from cropscore_ray.evaluation.formats.devkit import read_ids, write_devkit
from cropscore_ray.evaluation.formats.ilsvrc import write_ilsvrc
from cropscore_ray.evaluation.formats.parquet import read_predictions

WRITERS = {"ilsvrc": write_ilsvrc, "coco": write_coco, "csv": write_csv}
FORMATS = ("ilsvrc", "devkit", "coco", "csv")

logger = logging.getLogger(__name__)


def run(predictions_uri: str, *, format: str, out: str, meta: str | None = None) -> None:
    """Write predictions to the file `out`.

    `predictions_uri` is a run folder, or a predictions folder or file; `format` is one of FORMATS,
    and `devkit` needs the development kit's `meta` file.
    """
    if format not in FORMATS:
        raise ConfigError(f"format: {format!r} is not one of {', '.join(FORMATS)}")
    ids = read_ids(meta) if format == "devkit" else None
    predictions = read_predictions(predictions_uri)
    if predictions.run is not None and not predictions.run.get("complete"):
        logger.warning("%s is not complete; images not done yet are left out", predictions_uri)
    if ids is not None:
        write_devkit(out, predictions.table, ids)
    else:
        WRITERS[format](out, predictions.table)
    logger.info("wrote %s as %s", out, format)
