"""Check annotated boxes against the image that they lie on. Pure arithmetic."""

from collections.abc import Sequence

from cropscore_ray.datasets.problems import Finding
from cropscore_ray.datasets.records import Box, Size


def check_boxes(
    boxes: Sequence[Box], *, stated_size: Size | None, true_size: Size | None, border_px: float
) -> tuple[list[Box], list[Finding]]:
    """Return the boxes that can be used, in pixels of the image, and what was wrong.

    Args:
        boxes: half-open boxes in the frame of `stated_size`.
        stated_size: width and height by the annotation; None if it says nothing.
        true_size: width and height of the file; None if it could not be read, then only
            the stated size bounds the boxes.
        border_px: how far right and bottom may exceed the size in the annotation's frame
            without being outside (see records.INCLUSIVE_BORDER_PX).
    """
    findings: list[Finding] = []
    scale_x = scale_y = 1.0
    size = true_size or stated_size
    if stated_size and true_size and stated_size != true_size:
        scale_x, scale_y = true_size[0] / stated_size[0], true_size[1] / stated_size[1]
        findings.append(Finding("size_disagrees", f"{_by(stated_size)}, not {_by(true_size)}"))
    kept: list[Box] = []
    for left, top, right, bottom in boxes:
        box = (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y)
        border = (border_px * scale_x, border_px * scale_y)
        usable, finding = _check_box(box, size, border)
        kept += [usable] if usable else []
        findings += [finding] if finding else []
    return kept, findings


def _check_box(
    box: Box, size: Size | None, border: tuple[float, float]
) -> tuple[Box | None, Finding | None]:
    if not _has_area(box):
        return None, Finding("degenerate_box", f"{box}; dropped")
    if size and not _lies_inside(box, size, border):
        width, height = size
        left, top, right, bottom = box
        clipped = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
        kept = clipped if _has_area(clipped) else None
        outcome = "clipped" if kept else "dropped"
        return kept, Finding("box_outside_image", f"{box} in {_by(size)} pixels; {outcome}")
    if min(box[2] - box[0], box[3] - box[1]) <= 1:
        return box, Finding("one_pixel_box", f"{box}; kept")
    return box, None


def _has_area(box: Box) -> bool:
    return box[2] > box[0] and box[3] > box[1]


def _lies_inside(box: Box, size: Size, border: tuple[float, float]) -> bool:
    left, top, right, bottom = box
    return left >= 0 and top >= 0 and right <= size[0] + border[0] and bottom <= size[1] + border[1]


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
