"""The Pascal VOC reader on small hand-made trees."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cropscore_ray.datasets.sources import Index, index_source
from cropscore_ray.errors import DataError


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def add(root: Path, name: str, objects: str = "", *, split: str | None = None) -> None:
    """Write a 20 x 10 image and its XML."""
    (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10)).save(root / "JPEGImages" / f"{name}.jpg")
    size = "<size><width>20</width><height>10</height></size>"
    write(root / "Annotations" / f"{name}.xml", f"<annotation>{size}{objects}</annotation>")
    if split:
        listed = root / "ImageSets" / "Main" / f"{split}.txt"
        write(listed, (listed.read_text() if listed.exists() else "") + f"{name}\n")


def thing(name: str, x1: float, y1: float, x2: float, y2: float, inside: str = "") -> str:
    box = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    return f"<object><name>{name}</name>{inside}<bndbox>{box}</bndbox></object>"


def index(root: Path) -> Index:
    return index_source(f"voc:{root}")


def rows(found: Index) -> list[dict[str, Any]]:
    return list(found.manifest.table.to_pylist())


def counts(found: Index) -> dict[str, int]:
    return {kind: problem.count for kind, problem in found.report.problems.items()}


def test_an_image_of_several_classes_gets_that_of_its_largest_box(tmp_path: Path) -> None:
    add(
        tmp_path,
        "a",
        thing("dog", 1, 1, 3, 3) + thing("cat", 1, 1, 9, 9) + thing("cat", 2, 2, 3, 3),
    )
    found = index(tmp_path)
    assert [one.id for one in found.manifest.classes] == ["cat"]
    assert rows(found)[0]["gt_boxes"] == [[1, 1, 10, 10], [2, 2, 4, 4]]
    assert counts(found) == {"other_class_box": 1}


def test_the_last_pixel_counted_from_one_is_inside(tmp_path: Path) -> None:
    add(tmp_path, "a", thing("cat", 1, 1, 20, 10))
    found = index(tmp_path)
    assert rows(found)[0]["gt_boxes"] == [[1, 1, 21, 11]]
    assert counts(found) == {}


def test_splits_come_from_image_sets_and_trainval_only_fills_in(tmp_path: Path) -> None:
    for name, split in {"a": "train", "b": "val", "c": "test", "d": None}.items():
        add(tmp_path, name, thing("cat", 1, 1, 5, 5), split=split)
    write(tmp_path / "ImageSets" / "Main" / "trainval.txt", "a\nb\nd\n")
    write(tmp_path / "ImageSets" / "Main" / "cat_train.txt", "a  1\n")
    found = index(tmp_path)
    assert found.report.splits == {"test": 1, "train": 1, "trainval": 1, "val": 1}
    assert counts(found) == {}


def test_an_image_in_two_splits_and_a_listed_image_without_file_are_counted(tmp_path: Path) -> None:
    add(tmp_path, "a", thing("cat", 1, 1, 5, 5), split="train")
    write(tmp_path / "ImageSets" / "Main" / "val.txt", "a\ngone\n")
    found = index(tmp_path)
    assert rows(found)[0]["split"] == "train"
    assert counts(found) == {"several_splits": 1, "image_without_file": 1}


def test_boxes_of_parts_are_not_objects(tmp_path: Path) -> None:
    head = "<part><name>head</name><bndbox><xmin>2</xmin></bndbox></part>"
    add(tmp_path, "a", thing("person", 1, 1, 9, 9, head))
    found = index(tmp_path)
    assert rows(found)[0]["gt_boxes"] == [[1, 1, 10, 10]]
    assert counts(found) == {}


def test_decimal_corners_are_read(tmp_path: Path) -> None:
    add(tmp_path, "a", thing("cat", 1.5, 2, 5.25, 6))
    assert rows(index(tmp_path))[0]["gt_boxes"] == [[1.5, 2, 6.25, 7]]


def test_every_kind_of_broken_annotation_is_counted_and_keeps_its_image(tmp_path: Path) -> None:
    add(tmp_path, "empty")
    add(tmp_path, "fine", thing("cat", 1, 1, 5, 5))
    add(tmp_path, "no_xml")
    (tmp_path / "Annotations" / "no_xml.xml").unlink()
    add(tmp_path, "bad_xml")
    write(tmp_path / "Annotations" / "bad_xml.xml", "<annotation")
    add(tmp_path, "bad_box", "<object><name>cat</name></object>")
    write(tmp_path / "Annotations" / "stray.xml", "<annotation/>")
    found = index(tmp_path)
    assert found.report.num_images == 5
    assert counts(found) == {
        "unreadable_box": 1,
        "image_without_label": 2,
        "image_without_annotation": 1,
        "image_without_file": 1,
        "unreadable_annotation": 1,
    }


def test_two_images_of_one_name_are_counted(tmp_path: Path) -> None:
    add(tmp_path, "a", thing("cat", 1, 1, 5, 5))
    Image.new("RGB", (20, 10)).save(tmp_path / "JPEGImages" / "a.png")
    assert counts(index(tmp_path)) == {"duplicate_image": 1}


def test_a_folder_of_another_kind_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Annotations and JPEGImages") as caught:
        index(tmp_path)
    assert "VOC2012" in (caught.value.hint or "")
