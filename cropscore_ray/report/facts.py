"""The words and counts of the page: notes, tiles, statuses, and run.json as a list."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from cropscore_ray import schema
from cropscore_ray.evaluation.metrics import Evaluation
from cropscore_ray.report.cases import Cases

MAX_FAILURES = 500  # listed by name; a page stays readable, the table has the rest
_SHOWN_ELSEWHERE = ("format", "classes", "counts")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """A label and its text."""

    label: str
    value: str


def notes(run: Mapping[str, Any], evaluation: Evaluation, cases: Cases) -> Iterator[str]:
    """Yield what a reader must know before believing the figures."""
    if not run.get("complete", True):
        yield "This run is not complete: images that it has not reached count as errors."
    if not evaluation.overall.num_boxed:
        yield "These images have no true boxes, so there are no errors to show."
    elif not len(cases.shown):
        yield "No image of this run has a box, so there is nothing to measure but the baselines."
    elif not cases.is_class_known:
        yield (
            "This run has no boxes for the given class (--classes predicted), so the page "
            "shows the first guess, which is wrong when its class or its box is wrong."
        )


def tiles(run: Mapping[str, Any], evaluation: Evaluation) -> Iterator[Fact]:
    """Return the run in a handful of numbers; what run.json lacks is left out."""
    yield Fact(label="Images", value=f"{evaluation.num_images:,}")
    yield Fact(label="Failed", value=f"{evaluation.num_failed:,}")
    if evaluation.overall.num_boxed:
        yield Fact(label="With true boxes", value=f"{evaluation.overall.num_boxed:,}")
    if evaluation.classes:
        yield Fact(label="Classes", value=f"{len(evaluation.classes):,}")
    wall_s = (run.get("times") or {}).get("wall_s")
    if wall_s:
        yield Fact(label="Time", value=_duration(float(wall_s)))
        yield Fact(label="Images a second", value=f"{evaluation.num_images / float(wall_s):,.3g}")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def statuses(cases: Cases) -> dict[str, Any]:
    """Count images by status, and list the failed ones, which have no usable row."""
    counts = cases.rows.group_by("status").aggregate([("image_id", "count_distinct")]).to_pylist()
    rows = [
        _status(row["status"], row["image_id_count_distinct"], schema.STATUSES.get(row["status"]))
        for row in counts
    ]
    num_absent = len(cases.truth.image_id) - len(pc.unique(cases.rows["image_id"]))
    if num_absent:
        rows.append(_status("not done", num_absent, "the run has no row for it"))
    failed = cases.rows.filter(pc.not_equal(cases.rows["status"], schema.OK)).sort_by("image_id")
    listed = failed.select(["image_uri", "status", "error"]).slice(0, MAX_FAILURES)
    return {
        "statuses": sorted(rows, key=lambda row: (row["status"] != schema.OK, -row["num_images"])),
        "failures": listed.to_pylist(),
        "num_failures": len(failed),
    }


def _status(status: str, num_images: int, meaning: str | None) -> dict[str, Any]:
    return {"status": status, "num_images": num_images, "meaning": meaning or ""}


def run_facts(run: Mapping[str, Any]) -> list[Fact]:
    """Flatten run.json to dotted names, without what the page shows elsewhere."""
    kept = {key: value for key, value in run.items() if key not in _SHOWN_ELSEWHERE}
    # The identity repeats facts of the run: its command, split and config.
    identity = (run.get("identity") or {}).items()
    kept["identity"] = {key: value for key, value in identity if run.get(key) != value}
    return list(_flatten(kept, ""))


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[Fact]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif value is not None:
            yield Fact(label=f"{prefix}{key}", value=_text(value))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)
