"""The CLS-LOC reader on small hand-made trees, with the quirks that ImageNet is known for."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cropscore_ray.datasets.sources import Index, index_source
from cropscore_ray.errors import DataError

TENCH, FISH, DEERHOUND = "n01440764", "n01443537", "n02092002"
DATA = "ILSVRC/Data/CLS-LOC"
XML = "ILSVRC/Annotations/CLS-LOC"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_image(
    path: Path, size: tuple[int, int] = (20, 10), mode: str = "RGB", form: str = "JPEG"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path, form)


def xml(*objects: tuple[str, int, int, int, int], size: tuple[int, int] = (20, 10)) -> str:
    boxes = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2 in objects
    )
    return (
        f"<annotation><filename>%s</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height><depth>3</depth></size>{boxes}</annotation>"
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(
        tmp_path / "LOC_synset_mapping.txt",
        f"{DEERHOUND} Scottish deerhound, deerhound\n{TENCH} tench, Tinca tinca\n{FISH} goldfish\n",
    )
    return tmp_path


def train_image(root: Path, wnid: str, annotation: str | None = None, number: int = 1) -> None:
    name = f"{wnid}_{number}"
    write_image(root / DATA / "train" / wnid / f"{name}.JPEG")
    if annotation is not None:
        write(root / XML / "train" / wnid / f"{name}.xml", annotation)


def index(root: Path) -> Index:
    return index_source(f"ilsvrc:{root}")


def rows(found: Index) -> list[dict[str, Any]]:
    return list(found.manifest.table.to_pylist())


def counts(found: Index) -> dict[str, int]:
    return {kind: problem.count for kind, problem in found.report.problems.items()}


def test_all_splits_are_read_with_their_labels_and_boxes(root: Path) -> None:
    train_image(root, TENCH, xml((TENCH, 1, 2, 5, 6)))
    write_image(root / DATA / "val" / "ILSVRC2012_val_00000001.JPEG")
    write_image(root / DATA / "test" / "ILSVRC2012_test_00000001.JPEG")
    write(
        root / "LOC_val_solution.csv",
        f"ImageId,PredictionString\nILSVRC2012_val_00000001,{FISH} 0 0 9 9 {FISH} 1 2 3 4 \n",
    )
    found = index(root)
    brief = [(row["split"], row["class_index"], row["gt_boxes"]) for row in rows(found)]
    assert brief == [
        ("test", None, None),
        ("train", 0, [[1, 2, 6, 7]]),
        ("val", 1, [[0, 0, 10, 10], [1, 2, 4, 5]]),
    ]
    assert [row["image_id"] for row in rows(found)] == [0, 1, 2]
    assert [row["width_px"] for row in rows(found)] == [None, 20, 20]
    assert (found.report.num_boxed_images, found.report.num_boxes) == (2, 3)
    assert found.report.splits == {"test": 1, "train": 1, "val": 1}
    assert counts(found) == {}


def test_classes_stand_in_sorted_wnid_order_with_their_names(root: Path) -> None:
    train_image(root, FISH)
    found = index(root)
    assert [one.id for one in found.manifest.classes] == [TENCH, FISH, DEERHOUND]
    assert found.manifest.classes[0].name == "tench, Tinca tinca"
    assert rows(found)[0]["class_index"] == 1


def test_without_a_mapping_the_classes_are_the_labels_that_occur(tmp_path: Path) -> None:
    train_image(tmp_path, FISH)
    assert [one.id for one in index(tmp_path).manifest.classes] == [FISH]


def test_train_images_without_boxes_are_normal(root: Path) -> None:
    train_image(root, TENCH)
    found = index(root)
    assert rows(found)[0]["gt_boxes"] is None
    assert counts(found) == {}


def test_the_xml_is_preferred_because_it_states_a_size(root: Path) -> None:
    train_image(root, TENCH, xml((TENCH, 0, 0, 19, 19), size=(40, 20)))
    write(
        root / "LOC_train_solution.csv",
        f"ImageId,PredictionString\n{TENCH}_1,{TENCH} 0 0 19 19\n",
    )
    found = index(root)
    assert rows(found)[0]["gt_boxes"] == [[0, 0, 10, 10]]
    assert counts(found) == {"size_disagrees": 1}


def test_an_xml_that_cannot_be_parsed_falls_back_to_kaggles_row(root: Path) -> None:
    train_image(root, TENCH, "<annotation><object>")
    write(root / "LOC_train_solution.csv", f"ImageId,PredictionString\n{TENCH}_1,{TENCH} 0 0 4 4")
    found = index(root)
    assert rows(found)[0]["gt_boxes"] == [[0, 0, 5, 5]]
    assert counts(found) == {"unreadable_annotation": 1}


def test_a_dog_under_its_human_name_keeps_its_box(root: Path) -> None:
    train_image(root, DEERHOUND, xml(("Scottish_deerhound", 1, 1, 5, 5)))
    found = index(root)
    assert rows(found)[0]["gt_boxes"] == [[1, 1, 6, 6]]
    assert counts(found) == {"human_label": 1}


def test_boxes_of_other_wnids_are_dropped_and_counted(root: Path) -> None:
    train_image(root, TENCH, xml((FISH, 0, 0, 9, 9), (TENCH, 1, 1, 5, 5)))
    found = index(root)
    assert rows(found)[0]["gt_boxes"] == [[1, 1, 6, 6]]
    assert counts(found) == {"other_class_box": 1}


def test_min_above_max_is_dropped_and_the_image_has_no_box_left(root: Path) -> None:
    train_image(root, TENCH, xml((TENCH, 8, 1, 3, 5)))
    found = index(root)
    assert rows(found)[0]["gt_boxes"] is None
    assert counts(found) == {"degenerate_box": 1}


def test_boxes_may_touch_the_border_but_not_cross_it(root: Path) -> None:
    train_image(root, TENCH, xml((TENCH, 0, 0, 20, 10), (TENCH, 5, 5, 40, 8)))
    found = index(root)
    assert rows(found)[0]["gt_boxes"] == [[0, 0, 21, 11], [5, 5, 20, 9]]
    assert counts(found) == {"box_outside_image": 1}


def test_a_box_that_is_not_four_numbers_is_counted(root: Path) -> None:
    write_image(root / DATA / "val" / "v.JPEG")
    write(root / "LOC_val_solution.csv", f"ImageId,PredictionString\nv,{TENCH} 1 2 3 4 {TENCH} 5 6")
    found = index(root)
    assert rows(found)[0]["gt_boxes"] == [[1, 2, 4, 5]]
    assert counts(found) == {"unreadable_box": 1}


def test_cmyk_and_a_png_called_jpeg_have_their_sizes_read(root: Path) -> None:
    for number, (mode, form) in enumerate([("CMYK", "JPEG"), ("RGB", "PNG")]):
        train_image(root, TENCH, xml((TENCH, 0, 0, 4, 4)), number)
        path = root / DATA / "train" / TENCH / f"{TENCH}_{number}.JPEG"
        write_image(path, (20, 10), mode, form)
    found = index(root)
    assert [row["width_px"] for row in rows(found)] == [20, 20]
    assert counts(found) == {}


def test_a_broken_exif_block_does_not_hide_the_size(root: Path) -> None:
    train_image(root, TENCH, xml((TENCH, 0, 0, 4, 4)))
    path = root / DATA / "train" / TENCH / f"{TENCH}_1.JPEG"
    exif = b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"
    Image.new("RGB", (20, 10)).save(path, "JPEG", exif=exif)
    found = index(root)
    assert rows(found)[0]["height_px"] == 10
    assert counts(found) == {}


def test_exif_rotation_is_not_applied(root: Path) -> None:
    train_image(root, TENCH, xml((TENCH, 0, 0, 19, 9)))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = root / DATA / "train" / TENCH / f"{TENCH}_1.JPEG"
    Image.new("RGB", (20, 10)).save(path, "JPEG", exif=exif)
    found = index(root)
    assert (rows(found)[0]["width_px"], rows(found)[0]["gt_boxes"]) == (20, [[0, 0, 20, 10]])


def test_an_unreadable_image_keeps_its_row_box_and_stated_size(root: Path) -> None:
    train_image(root, TENCH, xml((TENCH, 0, 0, 4, 4)))
    (root / DATA / "train" / TENCH / f"{TENCH}_1.JPEG").write_bytes(b"not a picture")
    found = index(root)
    assert rows(found)[0]["gt_boxes"] == [[0, 0, 5, 5]]
    assert rows(found)[0]["width_px"] == 20
    assert counts(found) == {"unreadable_header": 1}


def test_annotations_without_an_image_are_counted_once(root: Path) -> None:
    train_image(root, TENCH)
    write(root / XML / "train" / TENCH / f"{TENCH}_9.xml", xml((TENCH, 1, 1, 2, 2)))
    write(root / "LOC_train_solution.csv", f"ImageId,PredictionString\n{TENCH}_9,{TENCH} 1 1 2 2")
    found = index(root)
    assert found.report.num_images == 1
    assert counts(found) == {"image_without_file": 1}


def test_a_val_image_that_nothing_describes_is_counted(root: Path) -> None:
    write_image(root / DATA / "val" / "v.JPEG")
    found = index(root)
    assert rows(found)[0]["class_index"] is None
    assert counts(found) == {"image_without_annotation": 1}


def test_a_wnid_that_the_mapping_lacks_leaves_the_image_without_class(root: Path) -> None:
    train_image(root, "n99999999")
    found = index(root)
    assert rows(found)[0]["class_index"] is None
    assert counts(found) == {"label_without_class": 1}


def val_set(root: Path, numbers: list[int]) -> None:
    lines = ["ImageId,PredictionString"]
    for number in numbers:
        name = f"ILSVRC2012_val_{number:08d}"
        write_image(root / DATA / "val" / f"{name}.JPEG")
        lines.append(f"{name},{TENCH} 1 1 4 4")
    write(root / "LOC_val_solution.csv", "\n".join(lines))


def test_blacklisted_val_images_keep_their_class_and_lose_their_boxes(root: Path) -> None:
    val_set(root, [1, 2, 3])
    devkit = root / "ILSVRC2014_devkit" / "data"
    write(devkit / "ILSVRC2014_clsloc_validation_blacklist.txt", "2\n")
    found = index(root)
    assert [row["gt_boxes"] is None for row in rows(found)] == [False, True, False]
    assert [row["class_index"] for row in rows(found)] == [0, 0, 0]
    assert counts(found) == {"blacklisted": 1}


def test_the_blacklist_means_the_number_in_the_name_where_files_are_missing(root: Path) -> None:
    val_set(root, [3, 7, 9])
    write(root / "data" / "ILSVRC2012_clsloc_validation_blacklist.txt", "1\n9\n")
    assert [row["gt_boxes"] is None for row in rows(index(root))] == [False, False, True]


def test_root_may_be_the_ilsvrc_folder_itself(root: Path) -> None:
    train_image(root, TENCH, xml((TENCH, 0, 0, 4, 4)))
    found = index_source(f"ilsvrc:{root}/ILSVRC/")
    assert rows(found)[0]["gt_boxes"] == [[0, 0, 5, 5]]


def test_files_that_are_no_images_are_left_aside_and_counted(root: Path) -> None:
    train_image(root, TENCH)
    write(root / DATA / "train" / TENCH / "readme.txt", "x")
    assert index(root).report.left_aside == {"txt": 1}


def test_a_folder_of_another_kind_is_refused_with_a_hint(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="no images in ILSVRC/Data/CLS-LOC") as caught:
        index(tmp_path)
    assert caught.value.hint
