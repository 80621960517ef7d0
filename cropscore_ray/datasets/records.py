"""What a reader hands on about each image, before anything is checked against the files.

Readers turn their format into these records; `assembly` turns records into a manifest.
Nothing here reads a file or knows a format.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from cropscore_ray.datasets.problems import ProblemLog
from cropscore_ray.schema import ImageClass

Box = tuple[float, float, float, float]
Size = tuple[int, int]

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})

# Inclusive formats count pixels from 0 or from 1 and do not say which: a box that touches
# the right border ends at width or, after the + 1 below, at width + 1. Both are inside.
INCLUSIVE_BORDER_PX = 1.0
# Half-open boxes end at width; the slack is for the rounding of scaled boxes.
HALF_OPEN_BORDER_PX = 0.01

_LARGEST_COORDINATE = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """One image as its source describes it."""

    image_uri: str
    label: str | None = None
    split: str | None = None
    boxes: tuple[Box, ...] = ()
    """Half-open boxes of the label's class, in the frame of `stated_size`."""
    stated_size: Size | None = None
    """Width and height that the annotation claims, in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """All that a reader hands on."""

    records: list[ImageRecord]
    classes: list[ImageClass] | None = None
    """The classes in the source's own order; None: the labels that occur, sorted."""
    left_aside: dict[str, int] = field(default_factory=dict)
    """Files that are no images: extension -> count."""
    border_px: float = HALF_OPEN_BORDER_PX
    """By how much a box may exceed the image's right and bottom and still be inside."""
    files_unseen: bool = False
    """True where a table named the images, so that nobody has seen the files yet."""


def parse_box(values: Sequence[object]) -> Box | None:
    """Return four numbers (or their texts) as a box; None if they are not four finite numbers."""
    try:
        numbers = [float(str(value)) for value in values]
    except ValueError:
        return None
    if len(numbers) != 4 or not all(
        math.isfinite(number) and abs(number) < _LARGEST_COORDINATE for number in numbers
    ):
        return None
    return (numbers[0], numbers[1], numbers[2], numbers[3])


def parse_size(width: object, height: object) -> Size | None:
    """Return a stated width and height in pixels; None unless both are positive and sane."""
    box = parse_box((0, 0, width, height))
    size = None if box is None else (int(box[2]), int(box[3]))
    return size if size and min(size) > 0 else None


def half_open(box: Box) -> Box:
    """Turn an inclusive pixel box into ours: same left and top, right and bottom plus one.

    So right - left is the ILSVRC development kit's width x2 - x1 + 1, and IoU equals that
    of its compute_overlap.m to the last bit. Nothing is shifted: a source that counts
    from 1 (Pascal VOC, most of ILSVRC) stays one pixel to the right and below, for boxes
    and predictions fitted on them alike.
    """
    left, top, right, bottom = box
    return (left, top, right + 1, bottom + 1)


def of_largest_class(
    objects: Sequence[tuple[str | None, Box]], log: ProblemLog, image_uri: str
) -> tuple[str | None, tuple[Box, ...]]:
    """Return the class of the largest box, and all boxes of that class; others are counted.

    Of equally large boxes the first counts. A manifest has one class per image, so an
    image of several classes gets that of its largest box.
    """
    label = max(objects, key=lambda named: _area(named[1]))[0]
    for other, box in objects:
        if other != label:
            log.add("other_class_box", image_uri, f"{other} {box} in an image of {label}; dropped")
    return label, tuple(box for other, box in objects if other == label)


def count_unlabelled(records: Sequence[ImageRecord], log: ProblemLog, reason: str) -> None:
    """Count images without a label, unless no image has one."""
    unlabelled = [record.image_uri for record in records if record.label is None]
    if len(unlabelled) < len(records):
        for image_uri in unlabelled:
            log.add("image_without_label", image_uri, reason)


def count_twins(images: Iterable[tuple[Hashable, str]], log: ProblemLog) -> None:
    """Count images, given by name and URI, that have the name of an earlier one."""
    first: dict[Hashable, str] = {}
    for name, uri in images:
        twin = first.setdefault(name, uri)
        if twin != uri:
            log.add("duplicate_image", uri, f"has the name of {twin}; both are kept")


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def part_images(files: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """Part files into images, by extension alone, and a count of the others by extension."""
    kinds = [(file, other_kind(file)) for file in files]
    others = Counter(kind for _, kind in kinds if kind is not None)
    return [file for file, kind in kinds if kind is None], dict(sorted(others.items()))


def other_kind(file: str) -> str | None:
    """Return what a file is that is no image: its extension, as a rule; None for an image."""
    if not is_text(file):
        return "(name is not UTF-8)"
    extension = PurePosixPath(file).suffix[1:].lower()
    return None if extension in IMAGE_EXTENSIONS else extension or "(none)"


def is_text(name: str) -> bool:
    """Return whether a file's name can stand in a table."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def stem(uri: str) -> str:
    """Return a file's name without folder and extension."""
    return PurePosixPath(uri).stem
