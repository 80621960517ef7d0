"""The job `evaluate`: predictions in, figures out, and tables that people read."""

import logging
import time
from collections.abc import Callable

import pyarrow as pa

from cropscore_ray import storage
from cropscore_ray.datasets.manifest import Manifest, read_manifest
from cropscore_ray.errors import ConfigError
from cropscore_ray.evaluation.calibration import Reliability
from cropscore_ray.evaluation.formats.devkit import read_devkit, read_ids
from cropscore_ray.evaluation.formats.ilsvrc import read_ilsvrc
from cropscore_ray.evaluation.formats.parquet import read_predictions
from cropscore_ray.evaluation.metrics import Evaluation, Figures, Rate, evaluate
from cropscore_ray.terminal.tables import Table

FORMATS = ("parquet", "ilsvrc", "devkit")

logger = logging.getLogger(__name__)


def run(
    predictions_uri: str,
    data_uri: str,
    *,
    split: str | None = None,
    json_path: str | None = None,
    format: str = "parquet",
    meta: str | None = None,
) -> Evaluation:
    """Evaluate predictions against a manifest.

    Args:
        predictions_uri: A run folder, a predictions folder or file, or a file in `format`.
        data_uri: The manifest.
        split: The manifest's split; None: the one that the predictions are for.
        json_path: Where to write the figures as JSON, if anywhere.
        format: One of FORMATS.
        meta: The development kit's meta file, for `devkit`.
    """
    started = time.perf_counter()
    manifest = read_manifest(data_uri)
    table, constant_box = _read(predictions_uri, manifest, split, format, meta)
    evaluation = evaluate(table, manifest, split=split, constant_box=constant_box)
    if json_path is not None:
        storage.write_json(json_path, evaluation.to_json())
    seconds = time.perf_counter() - started
    logger.info("evaluated %d images in %.1f s", evaluation.num_images, seconds)
    return evaluation


def is_model(uri: str) -> bool:
    """Return whether a model bundle is at the URI, instead of predictions."""
    return storage.exists(storage.join(uri, "model.json"))


def _read(
    uri: str, manifest: Manifest, split: str | None, format: str, meta: str | None
) -> tuple[pa.Table, list[float] | None]:
    """Return the predictions, and the constant box that their run recorded."""
    if format == "parquet":
        predictions = read_predictions(uri)
        run = predictions.run or {}
        if run and not run.get("complete"):
            logger.warning("%s is not complete; images not done yet count as errors", uri)
        return predictions.table, (run.get("baselines") or {}).get("constant_box")
    if format == "ilsvrc":
        return read_ilsvrc(uri, manifest if split is None else manifest.only(split)), None
    if format != "devkit":
        raise ConfigError(f"format: {format!r} is not one of {', '.join(FORMATS)}")
    return read_devkit(uri, _one_split(manifest, split), read_ids(meta)), None


def _one_split(manifest: Manifest, split: str | None) -> Manifest:
    if split is None and len(manifest.splits) > 1:
        raise ConfigError(
            "the devkit format does not say which split it is for;"
            f" the manifest has {', '.join(manifest.splits)}",
            hint="choose one with --split NAME",
        )
    return manifest.only(split)


def render(evaluation: Evaluation) -> list[Table | str]:
    """Return the figures as tables: percentages with their standard errors."""
    groups = (evaluation.overall, evaluation.single_box, evaluation.multi_box)
    sources: list[tuple[str, Callable[[Figures], Rate | None]]] = [
        ("this run", lambda figures: figures.error.gt_known),
        ("class activation map", lambda figures: figures.baselines.cam),
        ("best constant box", lambda figures: figures.baselines.constant_box),
        ("whole image", lambda figures: figures.baselines.whole_image),
    ]
    error = evaluation.overall.error
    return [
        table(
            ("error with the class known, %", "all", "single-box", "multi-box"),
            *((f"  {name}", *(percent(of(group)) for group in groups)) for name, of in sources),
            ("  images with boxes", *(f"{group.num_boxed:,}" for group in groups)),
        ),
        "",
        table(
            ("error of the guesses, %", "top 1", "top 5"),
            ("  localization", percent(error.loc_top1), percent(error.loc_top5)),
            ("  classification", percent(error.cls_top1), percent(error.cls_top5)),
        ),
        "",
        table(
            ("accuracy of the box, %", *(f"IoU >= {key}" for key in evaluation.max_box_acc)),
            ("  MaxBoxAcc", *map(percent, evaluation.max_box_acc.values())),
        ),
        "",
        *(_confidence(evaluation.confidence) if evaluation.confidence else []),
        _counts(evaluation),
    ]


def _confidence(reliability: Reliability) -> list[Table | str]:
    errors = reliability.error_at_coverage
    return [
        table(
            ("error of the most confident, %", *(f"{float(key):.0%}" for key in errors)),
            ("  class known", *(f"{100 * value:.1f}" for value in errors.values())),
        ),
        table(
            ("confidence against hits", "ECE, points", "by chance", "Brier score", "without"),
            (
                "  class known",
                *(f"{100 * ece:.1f}" for ece in (reliability.ece, reliability.ece_by_chance)),
                *(f"{brier:.3f}" for brier in (reliability.brier, reliability.brier_base_rate)),
            ),
        ),
        "",
    ]


def _counts(evaluation: Evaluation) -> str:
    where = f" of split {evaluation.split!r}" if evaluation.split else ""
    return (
        f"{evaluation.num_images:,} images{where}, {evaluation.num_failed:,} of them without a"
        " prediction: these count as errors.\n± is one standard error, - is not available."
    )


def percent(rate: Rate | None) -> str:
    """Return a rate as a percentage with its standard error; a dash for None."""
    if rate is None:
        return "-"
    return f"{100 * rate.fraction:.1f} ± {100 * rate.standard_error:.1f}"


def table(*rows: tuple[str, ...]) -> Table:
    """Return a table of errors; the first row names the columns."""
    return Table(rows=rows, columns=("<32", ">14"), has_head=True)
