"""A part on its way: its images travel with it, and those that are too much follow."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cropscore_ray import schema, storage
from cropscore_ray.bulk import part_sizes, parts, run_folder
from cropscore_ray.datasets.manifest import StoredManifest, open_manifest
from cropscore_ray.datasets.uri_list import write_list
from cropscore_ray.errors import ImageError, StorageError
from cropscore_ray.images import fetch
from cropscore_ray.images.fetch import Fetched
from cropscore_ray.storage import retries

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
    assert number == 3
    groups = list(parts.with_images(some))
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
    _, some = fetched(rows.slice(0, 90))
    [(again, images)] = parts.with_images(some)
    assert again == some
    assert len(images) == 90


def away(uris: list[str], kept: object = None) -> list[Fetched]:
    return [ImageError("unreachable", f"{uri}: no route") for uri in uris]


def test_a_store_that_is_away_is_no_fault_of_a_parts_images(
    rows: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "fetch_group", away)
    uris = pa.array([f"s3://bucket/{i}.jpg" for i in range(NUM_IMAGES)])
    rows = rows.set_column(rows.schema.get_field_index("image_uri"), "image_uri", uris)
    with pytest.raises(StorageError, match="no image of part 3 could be had"):
        fetched(rows)


def test_a_store_that_goes_away_later_costs_only_the_images_behind(
    rows: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, some = fetched(rows)
    monkeypatch.setattr(fetch, "fetch_group", away)
    found = [one for _, images in parts.with_images(some) for one in images]
    statuses = [one.status for one in found if isinstance(one, ImageError)]
    assert len(found) == NUM_IMAGES
    assert {*statuses} == {"missing", "unreachable"}


def test_a_planned_part_is_small_and_has_its_rows(tmp_path: Path) -> None:
    uris = [f"s3://a-bucket/a/long/way/to/images/{i:09d}.jpg".encode() for i in range(256)]
    write_list(uris, str(tmp_path / "m"), begun=False)
    manifest = open_manifest(str(tmp_path / "m"))
    folder = run_folder.open_run(str(tmp_path / "out"), table="scores", identity={}, facts={})
    run = parts.BulkRun(command="score", manifest=manifest, part_images=256, folder=folder)
    [part] = parts.plan_parts(pa.table({}), run, frozenset())
    [rows] = manifest.batches([256, 1])
    assert part.nbytes < rows.nbytes / 3
    assert parts.from_row(part)[1].equals(rows)


def test_a_plan_of_growing_parts_goes_on_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of 2, 2, 4, 4, 8, 8, ...; what is read a second time has the same parts."""
    monkeypatch.setattr(retries, "sleep", lambda seconds: None)
    monkeypatch.setattr(
        storage, "persistently", lambda _, action: retries.persistently(action, lambda error: True)
    )
    for name, value in {"SMALLEST": 2, "LARGEST": 8, "_PARTS_OF_A_SIZE": 2}.items():
        monkeypatch.setattr(part_sizes, name, value)
    write_list([f"/{i}.jpg".encode() for i in range(40)], str(tmp_path / "m"), begun=False)
    manifest = open_manifest(str(tmp_path / "m"))
    whole, num_reads = type(manifest).batches, 0

    def breaks_off(self: StoredManifest, sizes: Iterable[int]) -> Iterator[pa.Table]:
        nonlocal num_reads
        num_reads += 1
        for number, some in enumerate(whole(self, sizes)):
            if number == 3 and num_reads == 1:
                raise StorageError("no route")
            yield some

    monkeypatch.setattr(StoredManifest, "batches", breaks_off)
    folder = run_folder.open_run(str(tmp_path / "out"), table="scores", identity={}, facts={})
    run = parts.BulkRun(command="score", manifest=manifest, part_images=None, folder=folder)
    planned = [parts.from_row(one) for one in parts.plan_parts(pa.table({}), run, frozenset({1}))]
    found = {number: some["image_id"].to_pylist() for number, some in planned}
    starts = {0: 0, 2: 4, 3: 8, 4: 12, 5: 20, 6: 28, 7: 36, 8: 40}
    assert num_reads == 2
    assert found == {
        number: list(range(starts[number], starts[number + 1])) for number in (2, 3, 4, 5, 6, 7)
    } | {0: [0, 1]}
