"""The tables' contract, and the manifest."""

from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cropscore_ray import schema, storage
from cropscore_ray.datasets import manifest
from cropscore_ray.datasets.manifest import (
    Manifest,
    is_manifest,
    match_classes,
    open_manifest,
    read_manifest,
    write_manifest,
)
from cropscore_ray.errors import ConfigError, DataError
from cropscore_ray.schema import ImageClass

CLASSES = [ImageClass(id="n02165105", name="tiger beetle"), ImageClass(id="n1", name="Käfer, ☃")]


def make_row(image_id: int, **changes: Any) -> dict[str, Any]:
    row = {
        "image_id": image_id,
        "image_uri": f"/images/{image_id}.jpg",
        "width_px": 500,
        "height_px": 375,
        "class_index": image_id % 2,
        "gt_boxes": [[1.0, 2.0, 30.0, 40.0]],
        "split": "train",
    }
    return row | changes


def make_manifest(*rows: dict[str, Any]) -> Manifest:
    return Manifest(table=schema.rows_to_table(list(rows), schema.MANIFEST), classes=CLASSES)


def test_classes_come_back_from_the_schema_that_holds_them() -> None:
    assert schema.read_classes(schema.with_classes(schema.MANIFEST, CLASSES)) == CLASSES


def test_a_schema_without_classes_has_none() -> None:
    assert schema.read_classes(schema.MANIFEST) == []
    assert schema.read_classes(pa.schema([])) == []


def test_classes_leave_the_schema_version_in_place() -> None:
    schema.check_table(schema.with_classes(schema.MANIFEST, CLASSES), schema.MANIFEST, "m")


def test_a_table_may_have_more_columns_in_another_order() -> None:
    fields = [pa.field("extra", pa.string()), *reversed(list(schema.SCORES))]
    more = pa.schema(fields, metadata=schema.SCORES.metadata)
    schema.check_table(more, schema.SCORES, "scores")


def test_a_table_of_another_version_is_refused_with_both_versions() -> None:
    newer = schema.MANIFEST.with_metadata({schema.VERSION_KEY: b"2"})
    with pytest.raises(DataError, match=r"m\.parquet.*schema 1 but of schema 2"):
        schema.check_table(newer, schema.MANIFEST, "m.parquet")


def test_a_table_that_is_not_ours_is_refused() -> None:
    with pytest.raises(DataError, match=r"not a table of cropscore schema 1$") as caught:
        schema.check_table(schema.MANIFEST.remove_metadata(), schema.MANIFEST, "m")
    assert caught.value.hint


def test_a_missing_column_is_named() -> None:
    less = schema.MANIFEST.remove(schema.MANIFEST.get_field_index("split"))
    with pytest.raises(DataError, match="column 'split' is None, not string"):
        schema.check_table(less, schema.MANIFEST, "m")


def test_a_column_of_another_type_is_named_with_both_types() -> None:
    at = schema.MANIFEST.get_field_index("image_id")
    other = schema.MANIFEST.set(at, pa.field("image_id", pa.string()))
    with pytest.raises(DataError, match="column 'image_id' is string, not int64"):
        schema.check_table(other, schema.MANIFEST, "m")


def test_one_kind_of_table_is_not_taken_for_another() -> None:
    with pytest.raises(DataError, match="column"):
        schema.check_table(schema.SCORES, schema.PREDICTIONS, "scores")


def test_absent_keys_become_nulls() -> None:
    table = schema.rows_to_table([{"image_id": 7, "image_uri": "a"}], schema.MANIFEST)
    assert table.schema.equals(schema.MANIFEST, check_metadata=True)
    assert table.to_pylist()[0]["gt_boxes"] is None


def test_a_scores_row_needs_exactly_140_scores() -> None:
    row = {"image_id": 0, "status": schema.OK}
    assert schema.rows_to_table([row | {"scores": [0.0] * 140}], schema.SCORES).num_rows == 1
    with pytest.raises(pa.ArrowInvalid):
        schema.rows_to_table([row | {"scores": [0.0] * 139}], schema.SCORES)


def test_a_written_manifest_comes_back(tmp_path: Path) -> None:
    manifest = make_manifest(
        make_row(0, gt_boxes=[[0.5, 1.0, 2.0, 3.0], [0.0, 0.0, 1.0, 1.0]]),
        make_row(1, gt_boxes=[], split="val"),
        make_row(2, gt_boxes=None, class_index=None, width_px=None, height_px=None, split=None),
    )
    write_manifest(str(tmp_path), manifest)
    back = read_manifest(str(tmp_path))
    assert back.table.to_pylist() == manifest.table.to_pylist()
    assert back.classes == CLASSES


def test_rows_are_read_in_the_order_of_image_id(tmp_path: Path) -> None:
    write_manifest(str(tmp_path), make_manifest(make_row(2), make_row(0), make_row(1)))
    assert read_manifest(str(tmp_path)).table["image_id"].to_pylist() == [0, 1, 2]


def test_writing_again_replaces_the_manifest(tmp_path: Path) -> None:
    write_manifest(str(tmp_path), make_manifest(make_row(0), make_row(1)))
    write_manifest(str(tmp_path), make_manifest(make_row(5)))
    assert read_manifest(str(tmp_path)).table["image_id"].to_pylist() == [5]


def test_splits_are_sorted_and_leave_out_null() -> None:
    manifest = make_manifest(make_row(0, split="val"), make_row(1), make_row(2, split=None))
    assert manifest.splits == ["train", "val"]


def test_only_keeps_the_rows_of_a_split_and_all_classes() -> None:
    manifest = make_manifest(make_row(0), make_row(1, split="val"), make_row(2, split=None))
    assert manifest.only("val").table["image_id"].to_pylist() == [1]
    assert manifest.only("val").classes == CLASSES
    assert manifest.only(None) is manifest


def test_an_unknown_split_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="no split 'test'") as caught:
        make_manifest(make_row(0), make_row(1, split="val")).only("test")
    assert caught.value.hint == "its splits: train, val"
    with pytest.raises(ConfigError) as caught:
        make_manifest(make_row(0, split=None)).only("test")
    assert caught.value.hint == "its splits: none"


@settings(max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_a_fingerprint_does_not_depend_on_how_rows_are_cut(cuts: list[int]) -> None:
    whole = make_manifest(*[make_row(i) for i in range(sum(cuts))])
    starts = [sum(cuts[:i]) for i in range(len(cuts))]
    pieces = [whole.table.slice(start, size) for start, size in zip(starts, cuts, strict=True)]
    cut = Manifest(table=pa.concat_tables(pieces), classes=CLASSES)
    assert cut.table["image_id"].num_chunks == len(cuts)
    assert cut.fingerprint() == whole.fingerprint()


def test_a_fingerprint_does_not_depend_on_the_number_of_files(tmp_path: Path) -> None:
    rows = [make_row(i, gt_boxes=None if i == 3 else [[i, 0.0, i + 1.0, 9.0]]) for i in range(10)]
    whole = make_manifest(*rows)
    full = schema.with_classes(schema.MANIFEST, CLASSES)
    for name, part in (("b", whole.table.slice(0, 4)), ("a", whole.table.slice(4))):
        storage.write_table(str(tmp_path / "cut" / f"{name}.parquet"), part.cast(full))
    write_manifest(str(tmp_path / "whole"), whole)
    prints = {read_manifest(str(tmp_path / name)).fingerprint() for name in ("cut", "whole")}
    assert prints == {whole.fingerprint()}


@pytest.mark.parametrize(
    "change",
    [
        {"gt_boxes": [[1.0, 2.0, 30.0, 41.0]]},
        {"gt_boxes": None},
        {"gt_boxes": []},
        {"class_index": None},
        {"split": "val"},
        {"image_uri": "/images/other.jpg"},
    ],
)
def test_a_fingerprint_changes_with_any_value(change: dict[str, Any]) -> None:
    before = make_manifest(make_row(0), make_row(1))
    assert make_manifest(make_row(0), make_row(1, **change)).fingerprint() != before.fingerprint()


def test_a_fingerprint_changes_with_the_names_of_classes() -> None:
    before = make_manifest(make_row(0))
    after = Manifest(table=before.table, classes=CLASSES[::-1])
    assert after.fingerprint() != before.fingerprint()


def test_only_a_table_of_this_kind_is_a_manifest(tmp_path: Path) -> None:
    write_manifest(str(tmp_path / "m"), make_manifest(make_row(0)))
    storage.write_table(str(tmp_path / "other.parquet"), pa.table({"image_id": [1]}))
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    assert is_manifest(str(tmp_path / "m"))
    assert is_manifest(str(tmp_path / "m" / "manifest.parquet"))
    for name in ("other.parquet", "damaged.parquet", "gone"):
        assert not is_manifest(str(tmp_path / name))


def test_reading_what_is_not_a_manifest_says_where(tmp_path: Path) -> None:
    uri = str(tmp_path / "other.parquet")
    storage.write_table(uri, pa.table({"image_id": [1]}))
    with pytest.raises(DataError, match=r"other\.parquet: this is not a table of cropscore"):
        read_manifest(uri)


def stored(folder: Path, *pieces: list[int]) -> str:
    """Write a manifest of several files, each with these ids; every third image is of val."""
    full = schema.with_classes(schema.MANIFEST, CLASSES)
    for number, ids in enumerate(pieces):
        rows = [make_row(i, split="val" if i % 3 == 0 else "train") for i in ids]
        storage.write_table(
            str(folder / f"{number}.parquet"), make_manifest(*rows).table.cast(full)
        )
    return str(folder)


@pytest.mark.parametrize(
    "pieces",
    [
        [[0, 1, 2, 3, 4, 5, 6, 7]],
        [[5, 6, 7], [], [0, 1], [2, 3, 4]],
        [[0, 2, 4, 6], [1, 3, 5, 7]],
        [[7, 6, 5, 4, 3, 2, 1, 0]],
    ],
    ids=["one file", "files out of order", "files that overlap", "rows out of order"],
)
@pytest.mark.parametrize("split", [None, "val"])
@pytest.mark.parametrize("small", [0, 2, 9])
def test_a_stored_manifest_has_the_rows_of_one_in_memory(
    tmp_path: Path,
    pieces: list[list[int]],
    split: str | None,
    small: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manifest, "_SMALL_ROWS", small)
    uri = stored(tmp_path, *pieces)
    whole, found = read_manifest(uri).only(split), open_manifest(uri, split)
    assert found.fingerprint == whole.fingerprint()
    assert found.classes == whole.classes
    assert found.num_images == len(whole.table)
    for size in (1, 3, 100):
        batches = list(found.batches(repeat(size)))
        assert pa.concat_tables(batches).to_pylist() == whole.table.to_pylist()
        assert [len(one) for one in batches[:-1]] == [size] * (len(batches) - 1)


def test_files_in_order_are_read_without_being_sorted(tmp_path: Path) -> None:
    found = open_manifest(stored(tmp_path, [2, 3], [0, 1]))
    assert [Path(file).name for file in found.files] == ["1.parquet", "0.parquet"]


def test_an_image_id_that_stands_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="image_id 3 stands there twice"):
        open_manifest(stored(tmp_path, [0, 3], [1, 3]))


def test_a_split_that_a_stored_manifest_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no split 'test'") as caught:
        open_manifest(stored(tmp_path, [0, 1]), "test")
    assert caught.value.hint == "its splits: train, val"


def test_classes_are_matched_by_id() -> None:
    known = [schema.ImageClass(id="dog", name="Dog"), *CLASSES]
    expected = [i + 1 for i in range(len(CLASSES))]
    assert match_classes(CLASSES, known) == expected
    assert match_classes(CLASSES, known[:1]) == [None] * len(CLASSES)
