"""The job `report`: a run folder in, one HTML page out."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from cropscore_ray import storage
from cropscore_ray.datasets.manifest import Manifest, is_manifest, read_manifest
from cropscore_ray.errors import CropscoreError, DataError
from cropscore_ray.evaluation.formats.parquet import read_predictions
from cropscore_ray.evaluation.metrics import evaluate
from cropscore_ray.images.fetch import fetch_image
from cropscore_ray.report.gallery import ScoreSquares
from cropscore_ray.report.page import RunInputs, build_report

logger = logging.getLogger(__name__)


def run(run_uri: str, *, out: str | None = None, split: str | None = None) -> str:
    """Write the page of a run and return where it is.

    Args:
        run_uri: The folder that `localize` wrote.
        out: The HTML file; None: report.html in the run folder.
        split: The manifest's split; None: the run's own.

    Raises:
        DataError: The folder holds no run, or its tables do not fit together.
        StorageError: A table cannot be read, or the page cannot be written.
        ConfigError: The run has images of several splits and none was named.
    """
    started = time.perf_counter()
    predictions = read_predictions(run_uri)
    if predictions.run is None:
        raise DataError(f"{run_uri}: no run.json here", hint="name the folder that localize wrote")
    manifest = _read_manifest(run_uri, predictions.run)
    evaluation = evaluate(
        predictions.table,
        manifest,
        split=split or predictions.run.get("split"),
        constant_box=(predictions.run.get("baselines") or {}).get("constant_box"),
    )
    score_squares, note = _load_scorer(predictions.run)
    page = build_report(
        RunInputs(
            run=predictions.run,
            predictions=predictions.table,
            manifest=manifest,
            evaluation=evaluation,
            notes=(note,) if note else (),
        ),
        read_image=fetch_image,
        score_squares=score_squares,
    )
    target = out or storage.join(run_uri, "report.html")
    storage.write_bytes(target, page.encode())
    seconds = time.perf_counter() - started
    logger.info("reported %d images in %.1f s: %s", evaluation.num_images, seconds, target)
    return target


def _read_manifest(run_uri: str, run: Mapping[str, Any]) -> Manifest:
    """Read the run's manifest where it was, or, of a run that moved, beside its predictions."""
    own = storage.join(run_uri, "manifest")
    recorded = run.get("manifest_uri") or own
    return read_manifest(own if not storage.exists(recorded) and is_manifest(own) else recorded)


def _load_scorer(run: Mapping[str, Any]) -> tuple[ScoreSquares | None, str]:
    """Return the function that scores 140 squares, or why there is none."""
    # Only the score maps need torch, which takes seconds to import.
    from cropscore_ray.models.bundle import SCORER, load_bundle
    from cropscore_ray.models.scorer import CropScorer

    uri = run.get("model_uri")
    if uri is None:
        return None, "There are no score maps: the run does not name its model."
    try:
        bundle = load_bundle(uri)
        bundle.require(SCORER)
    except CropscoreError as error:
        logger.warning("no score maps: %s", error)
        return None, f"There are no score maps: {error}."
    if bundle.fingerprint != (run.get("identity") or {}).get("model"):
        return None, f"There are no score maps: the model {uri} has changed since the run."
    return CropScorer(bundle).score_squares, ""
