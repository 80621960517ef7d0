"""One self-contained HTML page about a run.

It needs the tables of a run and two functions, to read an image and to score
its 140 crops; it writes nothing, and the same inputs give the same page. Figures
are those of `evaluate`, broken down by its own rules.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
import pyarrow as pa

from cropscore_ray.datasets.manifest import Manifest
from cropscore_ray.evaluation.metrics import Evaluation
from cropscore_ray.report import charts, facts
from cropscore_ray.report.cases import Cases, find_cases
from cropscore_ray.report.gallery import ReadImage, ScoreSquares, build_gallery

CLASS_ROWS = 10  # classes in each of the tables of the hardest and the easiest

METHOD_NAMES = {
    "cam": "CAM",
    "constant_box": "Best constant box",
    "whole_image": "Whole image",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInputs:
    """What a page is made of."""

    run: Mapping[str, Any]
    """run.json; absent facts are left out of the page."""
    predictions: pa.Table
    """schema.PREDICTIONS"""
    manifest: Manifest
    """The image set that was localized."""
    evaluation: Evaluation
    """`evaluate` of the two; without labels all its rates are None."""
    notes: tuple[str, ...] = ()
    """What the reader should know first, such as why the model is missing."""


def build_report(
    inputs: RunInputs,
    *,
    read_image: ReadImage,
    score_squares: ScoreSquares | None,
    images_per_group: int = 6,
) -> str:
    """Return the page as HTML without any external part.

    Args:
        inputs: The run and its figures.
        read_image: Returns an image's encoded bytes by URI. Where it raises
            CropscoreError, ImageError or OSError, the page says so in the image's place.
        score_squares: Returns the 140 scores of a class (an index of the model's classes)
            for encoded bytes, in the order of `grid`; None where there is no model.
        images_per_group: Most images shown of the best, the typical and the worst.
    """
    evaluation = inputs.evaluation
    cases = find_cases(
        inputs.predictions,
        inputs.manifest,
        split=evaluation.split,
        constant_box=evaluation.constant_box,
    )
    gallery = build_gallery(
        cases, read_image=read_image, score_squares=score_squares, per_group=images_per_group
    )
    page = {
        **_head(inputs, cases),
        **_errors(evaluation, cases),
        **_breakdown(evaluation, cases),
        **facts.statuses(cases),
        "gallery": gallery,
        "has_model": score_squares is not None,
        "facts": facts.run_facts(inputs.run),
    }
    return _environment().get_template("page.html.j2").render(page=page)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cropscore_ray.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda number: f"{number:,}"
    environment.filters["percent"] = lambda fraction, digits=1: f"{100 * fraction:.{digits}f}%"
    environment.filters["score"] = lambda number: f"{number:.1f}".replace("-", "\N{MINUS SIGN}")
    return environment


def _head(inputs: RunInputs, cases: Cases) -> dict[str, Any]:
    run, evaluation = inputs.run, inputs.evaluation
    source = str(run.get("source_uri") or run.get("manifest_uri") or "a run")
    name = source.rstrip("/").rsplit("/", 1)[-1]
    split = f" · {evaluation.split}" if evaluation.split else ""
    return {
        "title": name + split,
        "lead": f"{evaluation.num_images:,} images of {source}",
        "notes": [*inputs.notes, *facts.notes(run, evaluation, cases)],
        "tiles": list(facts.tiles(run, evaluation)),
    }


def _main_error(cases: Cases) -> str:
    return "gt_known" if cases.is_class_known else "loc_top1"


def _errors(evaluation: Evaluation, cases: Cases) -> dict[str, Any]:
    groups = (evaluation.overall, evaluation.single_box, evaluation.multi_box)
    ours = [getattr(group.error, _main_error(cases)) for group in groups]
    rates = {"This run": ours} | {
        label: [getattr(group.baselines, name) for group in groups]
        for name, label in METHOD_NAMES.items()
    }
    columns = ("name", "all", "single", "multi")
    methods = [dict(zip(columns, (name, *row), strict=True)) for name, row in rates.items()]
    return {
        "methods": methods if evaluation.overall.num_boxed else [],
        "group_sizes": [group.num_boxed for group in groups],
        "errors": evaluation.overall.error,
        "max_box_acc": evaluation.max_box_acc,
        "is_class_known": cases.is_class_known,
    }


def _breakdown(evaluation: Evaluation, cases: Cases) -> dict[str, Any]:
    error = _main_error(cases)
    if error not in cases.wrong or not cases.is_boxed.any():
        return {"num_boxed": 0, "by_class": []}
    columns = {error: "This run"} | {
        name: label for name, label in METHOD_NAMES.items() if name in cases.wrong
    }
    return {
        "num_boxed": int(cases.is_boxed.sum()),
        "histogram": charts.histogram(cases.iou),
        "size_columns": columns,
        "by_size": charts.rows_by_size(cases, list(columns)),
        "by_class": charts.rows_by_class(cases, evaluation.classes, error),
        "class_rows": CLASS_ROWS,
        "confidence": evaluation.confidence,
    }
