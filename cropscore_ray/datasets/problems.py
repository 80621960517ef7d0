"""The report of `index`: counts, and every oddity with a few examples.

A reader never stops at a bad file and never hides it: it adds to the ProblemLog, and
the log becomes the problems of the IndexReport.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_EXAMPLES = 5

KINDS = {
    "degenerate_box": "a box without area (min > max); dropped",
    "one_pixel_box": "a degenerate box, at most one pixel wide or high; kept",
    "box_outside_image": "a box that leaves the image; clipped, or dropped if nothing is left",
    "unreadable_box": "a box that is not four numbers; dropped",
    "other_class_box": "a box of another class than its image's; dropped",
    "human_label": "a box with a name in place of a WordNet id; kept as of the image's class",
    "label_without_class": "a label that the list of classes lacks; the image has no class",
    "several_labels": "an image with several labels; the first is taken",
    "several_splits": "an image in several splits; the first is taken",
    "image_without_label": "an image with no label among labelled ones",
    "image_without_annotation": "an image that no annotation describes",
    "image_without_file": "an annotation, list or row whose image file is not there",
    "blacklisted": "on the devkit's blacklist: counts for classification, has no boxes",
    "duplicate_image": "an image that stands there twice",
    "size_disagrees": "the annotation's size is not the image's; boxes are scaled",
    "unreadable_archive": "a tar file that is damaged; what stands before the damage is kept",
    "unreadable_annotation": "an annotation file or row that cannot be read",
    "unreadable_header": "an image file whose size cannot be read; boxes are not fully checked",
}


class Finding(NamedTuple):
    """One oddity: a word of KINDS, and what exactly was seen."""

    kind: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """Where a problem was seen."""

    uri: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """All occurrences of one kind: how many, what it means, the first few."""

    count: int
    meaning: str
    examples: list[Example]


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexReport:
    """What an image set holds. Counts are of manifest rows and of the boxes in them."""

    num_images: int
    num_boxed_images: int = 0
    num_boxes: int = 0
    num_classes: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    """Images by split; images of no split are not in it."""
    left_aside: dict[str, int] = field(default_factory=dict)
    """Files that are no images, by extension."""
    problems: dict[str, Problem] = field(default_factory=dict)
    """By kind, a word of KINDS."""


def aside_in_words(left_aside: dict[str, int]) -> str:
    """Return how many files of each extension are no images; empty if there are none."""
    counts = ", ".join(f"{count:,} {kind}" for kind, count in left_aside.items())
    return f"other files left aside, by extension: {counts}" if counts else ""


class ProblemLog:
    """Counts problems by kind and keeps the first few of each. Not for several threads."""

    def __init__(self) -> None:
        self._counts = Counter[str]()
        self._examples = defaultdict[str, list[Example]](list)

    def add(self, kind: str, uri: str, detail: str) -> None:
        """Count a problem; `kind` is a word of KINDS, `uri` the image or file concerned."""
        assert kind in KINDS, kind
        self._counts[kind] += 1
        if self._counts[kind] <= MAX_EXAMPLES:
            self._examples[kind].append(Example(uri=uri, detail=detail))

    def problems(self) -> dict[str, Problem]:
        """Return what was counted, in the order of KINDS."""
        return {
            kind: Problem(count=self._counts[kind], meaning=meaning, examples=examples)
            for kind, meaning in KINDS.items()
            if (examples := self._examples.get(kind))
        }
