"""From a reader's records to a manifest: order, ids, sizes, checked boxes, the report.

It knows no format of a source, and does not write the manifest.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from cropscore_ray import schema
from cropscore_ray.datasets.checks import check_boxes
from cropscore_ray.datasets.files import ReadProgress, image_sizes, missing_files
from cropscore_ray.datasets.manifest import Manifest
from cropscore_ray.datasets.problems import Finding, IndexReport, ProblemLog
from cropscore_ray.datasets.records import Box, ImageRecord, Scan, Size
from cropscore_ray.schema import ImageClass


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """An image set as a manifest, and what is odd about it."""

    manifest: Manifest
    report: IndexReport


def assemble(scan: Scan, log: ProblemLog, progress: ReadProgress | None = None) -> Index:
    """Check a reader's records against the files and number them.

    image_id is the position, from 0, in the order of (split, image_uri). Images with boxes
    are opened for their size; the others are not and have none. gt_boxes is null, and
    never an empty list, where no usable box is known.
    """
    records = sorted(scan.records, key=lambda record: (record.split or "", record.image_uri))
    if scan.files_unseen:
        _count_missing(records, log)
    classes = scan.classes if scan.classes is not None else _sorted_classes(records)
    sizes: list[Size | None] = []
    boxes: list[list[Box] | None] = []
    for size, checked in _checked(records, scan.border_px, log, progress):
        sizes.append(size)
        boxes.append(checked or None)
    columns = {
        "image_id": range(len(records)),
        "image_uri": [record.image_uri for record in records],
        "width_px": [size and size[0] for size in sizes],
        "height_px": [size and size[1] for size in sizes],
        "class_index": _class_indexes(records, classes, log),
        "gt_boxes": boxes,
        "split": [record.split for record in records],
    }
    table = pa.Table.from_pydict(columns, schema.with_classes(schema.MANIFEST, classes))
    manifest = Manifest(table=table, classes=classes)
    return Index(manifest=manifest, report=summarize(manifest, scan.left_aside, log))


def _count_missing(records: list[ImageRecord], log: ProblemLog) -> None:
    """Count images without boxes whose file is not there; the others are opened anyway."""
    unopened = [record.image_uri for record in records if not record.boxes]
    for uri, finding in missing_files(unopened).items():
        log.add(finding.kind, uri, finding.detail)


def _sorted_classes(records: list[ImageRecord]) -> list[ImageClass]:
    labels = sorted({record.label for record in records if record.label is not None})
    return [ImageClass(id=label, name=label) for label in labels]


def _class_indexes(
    records: list[ImageRecord], classes: list[ImageClass], log: ProblemLog
) -> list[int | None]:
    index_of = {known.id: index for index, known in enumerate(classes)}
    for record in records:
        if record.label is not None and record.label not in index_of:
            log.add("label_without_class", record.image_uri, f"{record.label!r} is not a class")
    return [index_of.get(record.label) if record.label else None for record in records]


def _checked(
    records: list[ImageRecord], border_px: float, log: ProblemLog, progress: ReadProgress | None
) -> Iterator[tuple[Size | None, list[Box]]]:
    """Yield each image's size and usable boxes."""
    sizes = image_sizes([record.image_uri for record in records if record.boxes], progress)
    for record in records:
        if not record.boxes:
            yield None, []
            continue
        size = next(sizes)
        true_size, unread = (None, [size]) if isinstance(size, Finding) else (size, [])
        boxes, findings = check_boxes(
            record.boxes, stated_size=record.stated_size, true_size=true_size, border_px=border_px
        )
        for finding in [*unread, *findings]:
            log.add(finding.kind, record.image_uri, finding.detail)
        yield true_size or record.stated_size, boxes


def summarize(
    manifest: Manifest, left_aside: dict[str, int] | None = None, log: ProblemLog | None = None
) -> IndexReport:
    """Count what a manifest holds."""
    table = manifest.table
    counts = pc.value_counts(table["split"]).to_pylist()
    splits = {count["values"]: count["counts"] for count in counts if count["values"]}
    return IndexReport(
        num_images=table.num_rows,
        num_boxed_images=table.num_rows - table["gt_boxes"].null_count,
        num_boxes=pc.sum(pc.list_value_length(table["gt_boxes"])).as_py() or 0,
        num_classes=len(manifest.classes),
        splits=dict(sorted(splits.items())),
        left_aside=left_aside or {},
        problems=log.problems() if log else {},
    )
