"""The job behind `cropscore index`: an image set becomes a manifest."""

import sys
from dataclasses import asdict

from cropscore_ray import storage
from cropscore_ray.datasets.files import ReadProgress
from cropscore_ray.datasets.manifest import is_manifest, open_manifest, write_manifest
from cropscore_ray.datasets.problems import IndexReport, aside_in_words
from cropscore_ray.datasets.sources import Source, index_source, parse_source
from cropscore_ray.datasets.uri_list import write_list
from cropscore_ray.errors import RunConflictError


def run(
    source: Source | str, out: str, *, overwrite: bool = False, progress: ReadProgress | None = None
) -> IndexReport:
    """Index a source into the folder `out`, which gets a manifest and index.json.

    The same source is indexed again. RunConflictError if `out` holds the manifest of
    another source and `overwrite` is not set; else the errors of `index_source`.
    """
    source = parse_source(source) if isinstance(source, str) else source
    if not overwrite:
        require_source(source, out)
    if source.is_list:
        num_images = write_list(sys.stdin.buffer, out, begun=False, progress=progress)
        report = IndexReport(num_images=num_images)
        fingerprint = open_manifest(out).fingerprint
    else:
        index = index_source(source, progress=progress)
        write_manifest(out, index.manifest)
        report, fingerprint = index.report, index.manifest.fingerprint()
    facts = {"source": source.absolute, "fingerprint": fingerprint, "report": asdict(report)}
    storage.write_json(storage.join(out, "index.json"), facts)
    return report


def require_source(source: Source, out: str) -> bool:
    """Return whether `out` holds a manifest; RunConflictError if it is of another source."""
    facts_uri = storage.join(out, "index.json")
    if not is_manifest(out):
        return False
    known = storage.read_json(facts_uri).get("source") if storage.exists(facts_uri) else None
    if known != source.absolute:
        raise RunConflictError(
            f"{out} holds a manifest of {known or 'an unknown source'}, not of {source}",
            hint="choose another --out, or replace it with --overwrite",
        )
    return True


def render(report: IndexReport) -> str:
    """Return a report as plain text, with examples of what was wrong."""
    splits = ", ".join(f"{name} {count:,}" for name, count in report.splits.items())
    where = f" ({splits})" if splits else ""
    lines = [
        f"{report.num_images:,} images{where}, {report.num_boxes:,} boxes on "
        f"{report.num_boxed_images:,} of them, {report.num_classes:,} classes"
    ]
    lines += filter(None, [aside_in_words(report.left_aside)])
    for kind, problem in report.problems.items():
        lines.append(f"{problem.count:,} x {kind}: {problem.meaning}")
        lines += [f"    {example.uri}: {example.detail}" for example in problem.examples]
    return "\n".join(lines)
