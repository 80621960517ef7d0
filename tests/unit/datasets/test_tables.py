"""CSV and Parquet tables of images."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cropscore_ray import schema
from cropscore_ray.datasets.manifest import write_manifest
from cropscore_ray.datasets.sources import Index, index_source
from cropscore_ray.errors import DataError, StorageError

HEADER = "image,label,xmin,ymin,xmax,ymax"


def image(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10)).save(folder / name)


def index_csv(folder: Path, *lines: str) -> Index:
    (folder / "set.csv").write_text("\n".join(lines) + "\n")
    return index_source(f"csv:{folder / 'set.csv'}")


def index_parquet(folder: Path, table: pa.Table) -> Index:
    pq.write_table(table, folder / "set.parquet")
    return index_source(f"parquet:{folder / 'set.parquet'}")


def rows(found: Index) -> list[dict[str, Any]]:
    return list(found.manifest.table.to_pylist())


def counts(found: Index) -> dict[str, int]:
    return {kind: problem.count for kind, problem in found.report.problems.items()}


def test_several_rows_of_one_image_are_several_boxes(tmp_path: Path) -> None:
    image(tmp_path, "p/a.png", "p/b.png")
    found = index_csv(
        tmp_path, HEADER, "p/b.png,cat,1,2,3,4", "p/a.png,dog,,,,", "p/b.png,cat,0,0,9,9"
    )
    assert [row["image_uri"] for row in rows(found)] == [f"{tmp_path}/p/{n}.png" for n in "ab"]
    assert [row["class_index"] for row in rows(found)] == [1, 0]
    assert [row["gt_boxes"] for row in rows(found)] == [None, [[1, 2, 3, 4], [0, 0, 9, 9]]]
    assert [row["width_px"] for row in rows(found)] == [None, 20]
    assert counts(found) == {}


def test_only_the_image_column_is_needed(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    found = index_csv(tmp_path, "image", "a.png")
    assert (rows(found)[0]["class_index"], found.manifest.classes) == (None, [])
    assert counts(found) == {}


def test_labels_stay_text(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    found = index_csv(tmp_path, "image,label", "a.png,0012")
    assert [one.id for one in found.manifest.classes] == ["0012"]


def test_ids_count_in_the_order_of_split_and_uri(tmp_path: Path) -> None:
    image(tmp_path, "a.png", "b.png", "c.png")
    found = index_csv(tmp_path, "image,split", "c.png,val", "b.png,train", "a.png,val")
    order = [(row["image_id"], row["split"], row["image_uri"][-5:]) for row in rows(found)]
    assert order == [(0, "train", "b.png"), (1, "val", "a.png"), (2, "val", "c.png")]


def test_stated_sizes_that_disagree_scale_the_boxes(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    found = index_csv(tmp_path, f"{HEADER},width,height", "a.png,cat,4,4,20,16,40,20")
    assert rows(found)[0]["gt_boxes"] == [[2, 2, 10, 8]]
    assert counts(found) == {"size_disagrees": 1}


def test_right_and_bottom_are_exclusive_so_one_beyond_is_outside(tmp_path: Path) -> None:
    image(tmp_path, "a.png", "b.png")
    found = index_csv(tmp_path, HEADER, "a.png,cat,0,0,20,10", "b.png,cat,0,0,21,10")
    assert [row["gt_boxes"] for row in rows(found)] == [[[0, 0, 20, 10]]] * 2
    assert counts(found) == {"box_outside_image": 1}


def test_rows_whose_image_is_missing_keep_their_row_and_are_counted(tmp_path: Path) -> None:
    found = index_csv(tmp_path, HEADER, "a.png,cat,1,1,5,5", "no/b.png,cat,,,,")
    assert found.report.num_images == 2
    assert rows(found)[0]["gt_boxes"] == [[1, 1, 5, 5]]
    assert counts(found) == {"image_without_file": 2}


def test_a_location_that_cannot_be_opened_does_not_stop_the_reading(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    found = index_csv(
        tmp_path, HEADER, "what://x/b.png,cat,1,1,5,5", "what://x/c.png,cat,,,,", "a.png,cat,,,,"
    )
    assert found.report.num_images == 3
    assert counts(found) == {"image_without_file": 1, "unreadable_header": 1}


def test_odd_rows_are_counted_by_kind(tmp_path: Path) -> None:
    image(tmp_path, "a.png", "b.png", "c.png", "d.png", "e.png")
    found = index_csv(
        tmp_path,
        f"{HEADER},split",
        "a.png,cat,1,1,5,5,train",
        "a.png,cat,1,1,5,5,train",
        "b.png,cat,1,1,,5,train",
        "c.png,,,,,,train",
        "d.png,cat,,,,,train",
        "d.png,dog,,,,,val",
        "e.png,cat,5,5,5,9,train",
        ",cat,,,,,train",
        "too,few",
        "e.png,one,two,many,,,,,,",
    )
    assert found.report.num_images == 5
    assert counts(found) == {
        "degenerate_box": 1,
        "unreadable_box": 1,
        "several_labels": 1,
        "several_splits": 1,
        "image_without_label": 1,
        "duplicate_image": 1,
        "unreadable_annotation": 3,
    }


def test_a_box_without_a_label_belongs_to_the_images_class(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    found = index_csv(tmp_path, HEADER, "a.png,,0,0,9,9", "a.png,cat,1,1,2,5")
    assert rows(found)[0]["gt_boxes"] == [[0, 0, 9, 9], [1, 1, 2, 5]]
    assert counts(found) == {"one_pixel_box": 1}


def test_a_byte_order_mark_and_spaces_in_the_header_are_harmless(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    found = index_csv(tmp_path, "\ufeffimage, label", "a.png,cat")
    assert found.manifest.classes[0].id == "cat"


@pytest.mark.parametrize(
    ("header", "message"),
    [("file,label", "no column 'image'"), ("image,xmin,ymin", "only xmin, ymin are there")],
)
def test_other_columns_are_refused_with_a_hint(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        index_csv(tmp_path, header)
    assert "xmin" in (caught.value.hint or "")


def test_a_file_that_is_no_csv_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DataError, match="not a CSV file"):
        index_source(f"csv:{tmp_path / 'set.csv'}")


def test_a_missing_table_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone\.csv"):
        index_source(f"csv:{tmp_path / 'gone.csv'}")


def test_parquet_takes_lists_of_boxes_and_numbers_as_labels(tmp_path: Path) -> None:
    image(tmp_path, "a.png", "b.png")
    table = pa.table(
        {
            "image_uri": [str(tmp_path / "a.png"), "b.png"],
            "class": [7, None],
            "gt_boxes": [[[0.0, 0.0, 4.0, 5.0], [1.0, 1.0, 9.0, 9.0]], None],
        }
    )
    found = index_parquet(tmp_path, table)
    assert [row["gt_boxes"] for row in rows(found)] == [[[0, 0, 4, 5], [1, 1, 9, 9]], None]
    assert [one.id for one in found.manifest.classes] == ["7"]
    assert counts(found) == {"image_without_label": 1}


def test_parquet_takes_the_csvs_columns_too(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    cells = {
        "image": ["a.png"],
        "label": ["cat"],
        "xmin": [1],
        "ymin": [2],
        "xmax": [3],
        "ymax": [4],
    }
    assert rows(index_parquet(tmp_path, pa.table(cells)))[0]["gt_boxes"] == [[1, 2, 3, 4]]


def test_a_manifest_is_a_source_and_stays_as_it_is(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    first = index_csv(tmp_path, HEADER, "a.png,cat,1,1,5,5")
    write_manifest(str(tmp_path / "m"), first.manifest)
    again = index_source(f"parquet:{tmp_path / 'm'}")
    assert again.manifest.fingerprint() == first.manifest.fingerprint()
    assert again.report.num_boxes == 1


def test_a_predictions_table_is_not_taken_for_ground_truth(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        index_parquet(tmp_path, schema.PREDICTIONS.empty_table())


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(StorageError, match=r"x\.parquet"):
        index_source(f"parquet:{tmp_path / 'x.parquet'}")
