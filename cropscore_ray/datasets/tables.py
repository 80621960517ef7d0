"""Tables of images, whether they came as CSV or as Parquet.

Columns (of several names the first counts):
    image or image_uri      path or URI; a relative one starts at the table's folder
    label or class          class id, optional, empty where unknown
    xmin ymin xmax ymax     one box, right and bottom exclusive, optional, empty for none
    gt_boxes                list of boxes, optional (Parquet)
    width and height (or width_px and height_px), split: optional
Several rows for one image are several boxes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cropscore_ray import storage
from cropscore_ray.datasets.problems import ProblemLog
from cropscore_ray.datasets.records import (
    Box,
    ImageRecord,
    Scan,
    Size,
    of_largest_class,
    parse_box,
    parse_size,
)
from cropscore_ray.errors import DataError
from cropscore_ray.schema import SIDES

Cells = Mapping[str, Any]

_NAMES = {
    "image": ("image", "image_uri"),
    "label": ("label", "class"),
    "width": ("width", "width_px"),
    "height": ("height", "height_px"),
    "split": ("split",),
    "gt_boxes": ("gt_boxes",),
    **{side: (side,) for side in SIDES},
}


class _Row(NamedTuple):
    label: str | None
    split: str | None
    size: Size | None
    boxes: tuple[Box, ...]


def scan_table(
    columns: Sequence[str],
    rows: Iterable[Cells],
    *,
    table_uri: str,
    folder_uri: str,
    log: ProblemLog,
) -> Scan:
    """Turn rows into records; DataError if the columns are not those of an image table.

    Args:
        columns: the names that the table has.
        rows: name -> value; numbers may be text.
        table_uri: where the rows came from, for messages.
        folder_uri: where relative image paths start.
        log: takes what is odd.
    """
    names = _known_columns(columns, table_uri)
    rows_by_image: dict[str, list[_Row]] = {}
    for number, row in enumerate(rows, start=1):
        cells = {ours: row[theirs] for ours, theirs in names.items()}
        image = cells["image"]
        if not (isinstance(image, str) and image.strip()):
            log.add("unreadable_annotation", table_uri, f"row {number} names no image")
            continue
        uri = resolve(image.strip(), folder_uri)
        rows_by_image.setdefault(uri, []).append(_parse_row(cells, uri, log))
    labelled = "label" in names
    records = [_record(uri, rows, labelled, log) for uri, rows in rows_by_image.items()]
    return Scan(records=records, files_unseen=True)


def resolve(path: str, folder_uri: str) -> str:
    """Return the absolute URI of a path that a table in `folder_uri` names."""
    if storage.is_remote(path) or path.startswith(("/", storage.FILE_SCHEME)):
        return storage.absolute_uri(path)
    return storage.absolute_uri(storage.join(folder_uri, path))


def _known_columns(columns: Sequence[str], table_uri: str) -> dict[str, str]:
    """Return our name -> the table's name for each column that we know."""
    names = {
        ours: next(name for name in theirs if name in columns)
        for ours, theirs in _NAMES.items()
        if any(name in columns for name in theirs)
    }
    sides = [side for side in SIDES if side in names]
    if "image" not in names:
        problem = "no column 'image'"
    elif sides and len(sides) < len(SIDES):
        problem = f"of the box columns only {', '.join(sides)} are there"
    else:
        return names
    raise DataError(
        f"{table_uri}: {problem}; its columns are {', '.join(columns)}",
        hint="columns: image, label, and optionally xmin, ymin, xmax, ymax, width, height, split",
    )


def _text(value: object) -> str | None:
    return (str(value).strip() or None) if value is not None else None


def _parse_row(cells: Cells, image_uri: str, log: ProblemLog) -> _Row:
    boxes: list[Box] = []
    for values in _box_cells(cells):
        box = parse_box(values)
        if box is None:
            log.add("unreadable_box", image_uri, f"{values}")
        else:
            boxes.append(box)
    width, height = _text(cells.get("width")), _text(cells.get("height"))
    size = parse_size(width, height)
    if size is None and (width or height):
        log.add("unreadable_annotation", image_uri, f"its size is {width} x {height}")
    return _Row(_text(cells.get("label")), _text(cells.get("split")), size, tuple(boxes))


def _box_cells(cells: Cells) -> list[list[Any]]:
    """Return the values of each box in a row; a row without any has none."""
    listed = [list(box or []) for box in cells.get("gt_boxes") or []]
    sides = [_text(cells.get(side)) for side in SIDES]
    return [*listed, sides] if any(sides) else listed


def _record(image_uri: str, rows: list[_Row], labelled: bool, log: ProblemLog) -> ImageRecord:
    unique = list(dict.fromkeys(rows))  # a row that repeats another is no further box
    if len(unique) < len(rows):
        log.add("duplicate_image", image_uri, f"{len(rows)} rows, {len(unique)} of them differ")
    labels = list(dict.fromkeys(row.label for row in unique if row.label))
    splits = list(dict.fromkeys(row.split for row in unique if row.split))
    label = labels[0] if labels else None
    # A box without a label of its own belongs to the image's first.
    objects = [(row.label or label, box) for row in unique for box in row.boxes]
    boxes: tuple[Box, ...] = ()
    if objects:
        label, boxes = of_largest_class(objects, log, image_uri)
    elif len(labels) > 1:
        log.add("several_labels", image_uri, ", ".join(labels))
    if len(splits) > 1:
        log.add("several_splits", image_uri, ", ".join(splits))
    if labelled and label is None:
        log.add("image_without_label", image_uri, "its label is empty")
    return ImageRecord(
        image_uri=image_uri,
        label=label,
        split=splits[0] if splits else None,
        boxes=boxes,
        stated_size=next((row.size for row in unique if row.size), None),
    )
