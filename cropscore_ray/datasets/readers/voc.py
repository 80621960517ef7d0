"""Pascal VOC: Annotations/*.xml, JPEGImages/*, ImageSets/Main/{train,val,test,trainval}.txt.

An image's class is that of its largest box, and only boxes of that class are kept; the
others are counted. The XML's pixels are inclusive and count from 1; see records.half_open.
"""

from dataclasses import replace

from cropscore_ray import storage
from cropscore_ray.datasets.annotations import Annotation, read_annotation
from cropscore_ray.datasets.files import ReadProgress, read_all
from cropscore_ray.datasets.problems import ProblemLog
from cropscore_ray.datasets.readers.folder import require_folder
from cropscore_ray.datasets.records import (
    INCLUSIVE_BORDER_PX,
    ImageRecord,
    Scan,
    count_twins,
    of_largest_class,
    part_images,
    stem,
)
from cropscore_ray.errors import DataError

# In the order of precedence: trainval only names what train and val do not.
SPLITS = ("train", "val", "test", "trainval")


def scan(root_uri: str, log: ProblemLog, progress: ReadProgress | None = None) -> Scan:
    """Read a VOC folder, such as VOCdevkit/VOC2012; DataError if it is none."""
    require_folder(root_uri)
    annotations_uri = storage.join(root_uri, "Annotations")
    images_uri = storage.join(root_uri, "JPEGImages")
    if not (storage.is_folder(annotations_uri) and storage.is_folder(images_uri)):
        raise DataError(
            f"voc:{root_uri}: no folders Annotations and JPEGImages here",
            hint="give the folder that holds both, for example voc:VOCdevkit/VOC2012",
        )
    images, left_aside = part_images(storage.list_files(images_uri))
    xml_uris = [uri for uri in storage.list_files(annotations_uri) if uri.endswith(".xml")]
    _count_strays(images, xml_uris, log)
    splits = _read_splits(root_uri, {stem(image) for image in images}, log)
    annotations = dict(
        zip(map(stem, xml_uris), read_all(read_annotation, xml_uris, progress), strict=True)
    )
    records = [
        _record(image, annotations.get(stem(image)), splits.get(stem(image)), log)
        for image in images
    ]
    return Scan(records=records, left_aside=left_aside, border_px=INCLUSIVE_BORDER_PX)


def _count_strays(images: list[str], xml_uris: list[str], log: ProblemLog) -> None:
    count_twins(((stem(image), image) for image in images), log)
    names = set(map(stem, images))
    for uri in xml_uris:
        if stem(uri) not in names:
            log.add("image_without_file", uri, "no image of this name in JPEGImages")


def _read_splits(root_uri: str, stems: set[str], log: ProblemLog) -> dict[str, str]:
    """Return the split of each image that a list of ImageSets/Main names."""
    splits: dict[str, str] = {}
    for split in SPLITS:
        uri = storage.join(root_uri, "ImageSets", "Main", f"{split}.txt")
        if not storage.exists(uri):
            continue
        for name in storage.read_bytes(uri).decode(errors="replace").split():
            first = splits.setdefault(name, split)
            if name not in stems:
                log.add("image_without_file", uri, f"{name} is not in JPEGImages")
            elif first != split and split != "trainval":
                log.add("several_splits", uri, f"{name} is in {first} already")
    return splits


def _record(
    image_uri: str, annotation: Annotation | str | None, split: str | None, log: ProblemLog
) -> ImageRecord:
    plain = ImageRecord(image_uri=image_uri, split=split)
    if annotation is None:
        log.add("image_without_annotation", image_uri, "no XML of this name in Annotations")
        return plain
    if isinstance(annotation, str):
        log.add("unreadable_annotation", image_uri, annotation)
        return plain
    for name in annotation.unreadable:
        log.add("unreadable_box", image_uri, f"object {name!r} in its XML")
    if not annotation.objects:
        log.add("image_without_label", image_uri, "its XML has no object with a box")
        return plain
    label, boxes = of_largest_class(annotation.objects, log, image_uri)
    if label is None:
        log.add("image_without_label", image_uri, "the largest object of its XML has no name")
    return replace(plain, label=label, boxes=boxes, stated_size=annotation.size)
