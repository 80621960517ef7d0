"""A part on its way: its images travel with it, and those that are too much follow."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cropscore_ray import fetch, parts, schema
from cropscore_ray.errors import ImageError, StorageError
from cropscore_ray.fetch import Fetched

NUM_IMAGES = 200


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    """Rows of images of ten bytes, every seventh of them missing, where 1,000 bytes travel."""
    monkeypatch.setattr(fetch, "_GROUP_BYTES", 1000)
    for i in range(NUM_IMAGES):
        if i % 7:
            (tmp_path / f"{i}.jpg").write_bytes(b"%10d" % i)
    columns: dict[str, Any] = {
        "image_id": np.arange(NUM_IMAGES),
        "image_uri": [str(tmp_path / f"{i}.jpg") for i in range(NUM_IMAGES)],
    }
    nulls = {one.name: pa.nulls(NUM_IMAGES, one.type) for one in schema.MANIFEST}
    return pa.table(nulls | columns, schema=schema.MANIFEST)


def fetched(rows: pa.Table) -> tuple[int, list[parts.Row]]:
    number, table = parts.from_row(parts.fetch_part(parts.as_row(3, rows)))
    return number, table.to_pylist()


def test_what_is_too_much_to_travel_is_fetched_where_it_is_wanted(rows: pa.Table) -> None:
    number, some = fetched(rows)
    assert [row["image_id"] for row in some] == list(range(NUM_IMAGES))
    assert 900 <= sum(len(row["data"] or b"") for row in some) <= 1100
    groups = list(parts.with_images(number, some))
    assert len(groups) > 1
    flat = [pair for group in groups for pair in zip(*group, strict=True)]
    assert [row["image_id"] for row, _ in flat] == list(range(NUM_IMAGES))
    for i, (_, one) in enumerate(flat):
        if i % 7:
            assert one == b"%10d" % i
        else:
            assert isinstance(one, ImageError)
            assert one.status == "missing"


def test_a_part_that_travels_whole_is_one_group(rows: pa.Table) -> None:
    number, some = fetched(rows.slice(0, 90))
    [(again, images)] = parts.with_images(number, some)
    assert again == some
    assert len(images) == 90


def test_a_store_that_goes_away_behind_the_first_images_is_no_fault_of_the_others(
    rows: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, some = fetched(rows)
    for row in some:
        row["image_uri"] = f"s3://bucket/{row['image_id']}.jpg"

    def away(uris: list[str]) -> list[Fetched]:
        return [ImageError("unreachable", f"{uri}: no route") for uri in uris]

    monkeypatch.setattr(fetch, "fetch_group", away)
    with pytest.raises(StorageError, match="no image of part 3 could be had"):
        list(parts.with_images(number, some))
