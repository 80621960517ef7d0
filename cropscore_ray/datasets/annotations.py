"""Read one image's annotation: Pascal VOC's XML, which ILSVRC uses too, or Kaggle's string.

Both count inclusive pixels; what comes back is half-open (records.half_open).
"""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from cropscore_ray import storage
from cropscore_ray.datasets.records import Box, Size, half_open, parse_box, parse_size
from cropscore_ray.errors import StorageError
from cropscore_ray.schema import SIDES


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """The objects of one image; `<filename>` is not read, as it is sometimes a bare `%s`."""

    objects: list[tuple[str | None, Box]]
    """Name and half-open box of each object; boxes of an object's parts are not among them."""
    size: Size | None
    """Width and height in pixels that the file states."""
    unreadable: list[str]
    """Names of objects whose box is not four numbers."""


def read_annotation(uri: str) -> Annotation | str:
    """Read an annotation from a file; the reason if that cannot be done."""
    try:
        return parse_annotation(storage.read_bytes(uri))
    except (StorageError, ElementTree.ParseError, ValueError, LookupError) as error:
        return f"{type(error).__name__}: {error}"


def parse_annotation(data: bytes) -> Annotation:
    """Parse an XML annotation; ElementTree.ParseError, or ValueError for its encoding."""
    root = ElementTree.fromstring(data)
    named = [
        (item.findtext("name", "").strip(), [item.findtext(f"bndbox/{s}", "") for s in SIDES])
        for item in root.iterfind("object")
    ]
    return _annotation(named, parse_size(root.findtext("size/width"), root.findtext("size/height")))


def parse_solution(prediction: str) -> Annotation:
    """Parse Kaggle's `wnid xmin ymin xmax ymax`, repeated for each box."""
    words = prediction.split()
    return _annotation([(words[i], words[i + 1 : i + 5]) for i in range(0, len(words), 5)], None)


def _annotation(named: list[tuple[str, list[str]]], size: Size | None) -> Annotation:
    boxes = [(name, parse_box(sides)) for name, sides in named]
    return Annotation(
        objects=[(name or None, half_open(box)) for name, box in boxes if box is not None],
        size=size,
        unreadable=[name for name, box in boxes if box is None],
    )
