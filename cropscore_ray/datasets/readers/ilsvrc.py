"""The ImageNet CLS-LOC tree as Kaggle hands it out.

    ROOT/ILSVRC/Data/CLS-LOC/{train/<wnid>,val,test}   images; ROOT may be ILSVRC itself
    ROOT/ILSVRC/Annotations/CLS-LOC/**.xml             boxes, and the size they refer to
    ROOT/LOC_{train,val}_solution.csv                  boxes, where there is no XML
    ROOT/LOC_synset_mapping.txt                        the classes: wnid and names
    ROOT/**/data/ILSVRC20??_clsloc_validation_blacklist.txt     of a devkit, optional

The files below Data are the images; an annotation without an image is counted. The class is
the folder's wnid, or the first wnid of the annotation. Classes stand in the order of
sorted wnids, which is torchvision's and not the devkit's own. Images of train without
boxes are normal (half of ImageNet); test images are unlabelled.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from cropscore_ray import storage
from cropscore_ray.datasets.annotations import Annotation, parse_solution, read_annotation
from cropscore_ray.datasets.files import ReadProgress, read_all
from cropscore_ray.datasets.problems import ProblemLog
from cropscore_ray.datasets.readers.folder import require_folder
from cropscore_ray.datasets.records import (
    INCLUSIVE_BORDER_PX,
    Box,
    ImageRecord,
    Scan,
    count_twins,
    part_images,
    stem,
)
from cropscore_ray.errors import DataError
from cropscore_ray.schema import ImageClass

Key = tuple[str, str]
"""Split and file name without extension: what ties an image to its annotation."""

_DATA = re.compile(r"(?:ILSVRC/)?Data/CLS-LOC/(train|val|test)/(?:([^/]+)/)?(?:.*/)?[^/]+")
_XML = re.compile(r"(?:ILSVRC/)?Annotations/CLS-LOC/(train|val)/(?:.*/)?[^/]+\.xml")
_SOLUTION = re.compile(r"(?:ILSVRC/)?LOC_(train|val)_solution\.csv")
_MAPPING = re.compile(r"(?:ILSVRC/)?LOC_synset_mapping\.txt")
_BLACKLIST = re.compile(r"(?:.*/)?data/ILSVRC20\d\d_clsloc_validation_blacklist\.txt")
_WNID = re.compile(r"n\d{8}")
_VAL_NUMBER = re.compile(r"ILSVRC20\d\d_val_(\d{8})")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tree:
    """The files below ROOT by what they are."""

    images: list[ImageRecord] = field(default_factory=list)
    """Each of the class of its folder."""
    left_aside: dict[str, int] = field(default_factory=dict)
    xml_uris: dict[Key, str] = field(default_factory=dict)
    solution_uris: dict[str, str] = field(default_factory=dict)
    mapping_uris: list[str] = field(default_factory=list)
    blacklist_uris: list[str] = field(default_factory=list)


def scan(root_uri: str, log: ProblemLog, progress: ReadProgress | None = None) -> Scan:
    """Read a CLS-LOC tree; DataError if there is none at ROOT."""
    require_folder(root_uri)
    tree = _list_tree(root_uri)
    if not tree.images:
        raise DataError(
            f"ilsvrc:{root_uri}: no images in ILSVRC/Data/CLS-LOC/{{train,val,test}} here",
            hint="give the folder that holds ILSVRC/ and LOC_synset_mapping.txt",
        )
    annotations = _read_annotations(tree, log, progress)
    _count_strays(tree.images, annotations, log)
    blacklisted = _blacklisted(tree, log)
    records = [
        _annotated(image, annotations.get(_key(image)), image.image_uri in blacklisted, log)
        for image in tree.images
    ]
    classes = _read_classes(tree.mapping_uris[0]) if tree.mapping_uris else None
    return Scan(
        records=records, classes=classes, left_aside=tree.left_aside, border_px=INCLUSIVE_BORDER_PX
    )


def _list_tree(root_uri: str) -> _Tree:
    tree, data = _Tree(), dict[str, tuple[str, str | None]]()
    for uri in storage.list_files(root_uri):
        path = uri.removeprefix(root_uri).lstrip("/")
        if match := _DATA.fullmatch(path):
            data[uri] = (match[1], match[2])
        elif match := _XML.fullmatch(path):
            tree.xml_uris[match[1], stem(uri)] = uri
        elif match := _SOLUTION.fullmatch(path):
            tree.solution_uris[match[1]] = uri
        elif _MAPPING.fullmatch(path):
            tree.mapping_uris.append(uri)
        elif _BLACKLIST.fullmatch(path):
            tree.blacklist_uris.append(uri)
    images, others = part_images(data)
    tree.left_aside.update(others)
    for uri in images:
        split, folder = data[uri]
        tree.images.append(ImageRecord(image_uri=uri, split=split, label=folder))
    return tree


def _key(image: ImageRecord) -> Key:
    return image.split or "", stem(image.image_uri)


def _read_classes(mapping_uri: str) -> list[ImageClass]:
    """Read lines of `wnid names`; the result is sorted by wnid."""
    lines = storage.read_bytes(mapping_uri).decode(errors="replace").splitlines()
    words = sorted(line.split(maxsplit=1) for line in lines if line.strip())
    return [ImageClass(id=wnid, name=" ".join(name) or wnid) for wnid, *name in words]


def _read_annotations(
    tree: _Tree, log: ProblemLog, progress: ReadProgress | None
) -> dict[Key, Annotation]:
    """Read what is known about each image: its XML, which states a size, or Kaggle's row."""
    annotations: dict[Key, Annotation] = {}
    for split, uri in tree.solution_uris.items():
        for name, prediction in _solution_rows(uri):
            if (split, name) in annotations:
                log.add("duplicate_image", uri, f"{name} has several rows; the first is taken")
            else:
                annotations[split, name] = parse_solution(prediction)
    xml_uris = list(tree.xml_uris.values())
    read = read_all(read_annotation, xml_uris, progress)
    for key, uri, annotation in zip(tree.xml_uris, xml_uris, read, strict=True):
        if isinstance(annotation, Annotation):
            annotations[key] = annotation
        else:
            log.add("unreadable_annotation", uri, annotation)
    return annotations


def _solution_rows(uri: str) -> Iterable[tuple[str, str]]:
    lines = storage.read_bytes(uri).decode("utf-8-sig", errors="replace").splitlines()
    for line in lines[1:]:
        name, _, prediction = line.partition(",")
        if name.strip():
            yield name.strip(), prediction.strip(' "')


def _count_strays(images: list[ImageRecord], annotated: Iterable[Key], log: ProblemLog) -> None:
    count_twins(((_key(image), image.image_uri) for image in images), log)
    known = set(map(_key, images))
    for split, name in annotated:
        if (split, name) not in known:
            log.add("image_without_file", name, f"annotated in {split}, but not below Data")


def _blacklisted(tree: _Tree, log: ProblemLog) -> set[str]:
    """Return the validation images that the devkit leaves out of localization.

    The list counts images of val from 1 in alphabetical order. ImageNet's file names
    carry that number, so it stays right where some files are missing.
    """
    numbers: set[int] = set()
    for uri in tree.blacklist_uris:
        for word in storage.read_bytes(uri).decode(errors="replace").split():
            if word.isdecimal():
                numbers.add(int(word))
            else:
                log.add("unreadable_annotation", uri, f"{word!r} is no number")
    uris = [image.image_uri for image in tree.images if image.split == "val"]
    blacklisted: set[str] = set()
    for position, (name, uri) in enumerate(sorted((stem(uri), uri) for uri in uris), start=1):
        match = _VAL_NUMBER.fullmatch(name)
        if (int(match[1]) if match else position) in numbers:
            blacklisted.add(uri)
    return blacklisted


def _annotated(
    image: ImageRecord, annotation: Annotation | None, blacklisted: bool, log: ProblemLog
) -> ImageRecord:
    uri = image.image_uri
    if image.split == "test":
        return replace(image, label=None)
    if annotation is None:
        if image.label is None:
            log.add("image_without_annotation", uri, "neither XML nor row, nor class folder")
        return image
    for name in annotation.unreadable:
        log.add("unreadable_box", uri, f"object {name!r}")
    label = image.label or _first_wnid(annotation)
    if label is None:
        log.add("image_without_label", uri, "no WordNet id in its annotation")
    boxes = _boxes_of_class(annotation, label, uri, log)
    if blacklisted:
        log.add("blacklisted", uri, f"{len(boxes)} boxes put aside")
        boxes = ()
    return replace(image, label=label, boxes=boxes, stated_size=annotation.size)


def _first_wnid(annotation: Annotation) -> str | None:
    names = (name for name, _ in annotation.objects if name)
    return next((name for name in names if _WNID.fullmatch(name)), None)


def _boxes_of_class(
    annotation: Annotation, label: str | None, image_uri: str, log: ProblemLog
) -> tuple[Box, ...]:
    """Return the boxes that the metric looks at.

    Some dogs are called by name instead of wnid (Scottish_deerhound); as in TensorFlow's
    process_bounding_boxes.py only a box of another wnid is dropped.
    """
    boxes: list[Box] = []
    for name, box in annotation.objects:
        if name != label and name and _WNID.fullmatch(name):
            log.add("other_class_box", image_uri, f"{name} {box} in an image of {label}; dropped")
            continue
        if name != label:
            log.add("human_label", image_uri, f"{name!r} in an image of {label}; kept")
        boxes.append(box)
    return tuple(boxes)
