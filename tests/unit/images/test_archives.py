"""Images inside tar archives and Parquet files: where they lie, how they are read and indexed."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cropscore_ray.datasets.sources import index_source
from cropscore_ray.errors import DataError, ImageError, StorageError
from cropscore_ray.images import archives, fetch
from cropscore_ray.images.archives import Cell, Member


def jpeg(side: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (side, side + 1)).save(sink, "JPEG")
    return sink.getvalue()


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def indexed(source: str) -> tuple[list[dict[str, Any]], Any]:
    found = index_source(source)
    return found.manifest.table.to_pylist(), found


@given(
    file=st.text(min_size=1),
    numbers=st.tuples(st.integers(0, 2**60), st.integers(0, 2**60)),
    name=st.text(),
)
def test_what_is_written_as_a_uri_is_read_back(
    file: str, numbers: tuple[int, int], name: str
) -> None:
    member = Member(f"s3://bucket/{file}.tar", *numbers, name)
    cell = Cell(f"{file}.parquet", numbers[0], name)
    for one in (member, cell):
        found = archives.parse(one.uri)
        assert found is not None
        assert found.uri == one.uri


@pytest.mark.parametrize(
    "uri",
    ["a.jpg", "s3://b/a#1.jpg", "x.tar", "x.tar#1+2", "x.tar#1536+345/a.jpg", "dir.tar#/a.jpg"],
)
def test_other_uris_are_files_of_their_own(uri: str) -> None:
    assert archives.parse(uri) is None


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 10**8), st.integers(0, 10**7)), max_size=30
    )
)
def test_spans_hold_every_member_once_and_stay_small(found: list[tuple[str, int, int]]) -> None:
    members = [Member(file, offset, size, "x") for file, offset, size in found]
    made = list(archives.spans(members))
    assert sorted(one.uri for span in made for one in span) == sorted(one.uri for one in members)
    for span in made:
        assert {one.file_uri for one in span} == {span[0].file_uri}
        assert len(span) == 1 or archives.stop_of(span) - span[0].offset <= 8 * 2**20


def test_neighbours_are_read_together_and_others_apart() -> None:
    near = [Member("a", 1000 * i, 900, str(i)) for i in range(5)]
    far = Member("a", 10**6, 10, "far")
    assert [len(span) for span in archives.spans([far, *near])] == [5, 1]


def test_members_of_an_archive_are_images(tmp_path: Path) -> None:
    files = {
        "./cat/7.jpg": jpeg(20),
        "./cat/7.cls": b"tabby\n",
        "./cat/7.json": json.dumps({"a": 1}).encode(),
        "cat/8.left.PNG": jpeg(30),
        "x" * 150 + ".jpg": jpeg(40),
        "broken.jpg": b"no image",
        "notes.txt": b"",
    }
    archive = make_tar(tmp_path / "set-000000.tar", files)
    rows, found = indexed(f"tar:{archive}")
    assert found.report.left_aside == {"json": 1, "txt": 1}
    assert found.report.problems["image_without_label"].count == 3
    names = [archives.parse(row["image_uri"]).name for row in rows]  # type: ignore[union-attr]
    assert sorted(names) == sorted(
        ["cat/7.jpg", "cat/8.left.PNG", "x" * 150 + ".jpg", "broken.jpg"]
    )
    by_name = dict(zip(names, rows, strict=True))
    assert by_name["cat/7.jpg"]["class_index"] == 0
    assert [one.id for one in found.manifest.classes] == ["tabby"]
    images = fetch.fetch_images(
        [by_name["cat/7.jpg"]["image_uri"], by_name["broken.jpg"]["image_uri"]]
    )
    assert images == [jpeg(20), b"no image"]
    assert fetch.fetch_image(by_name["x" * 150 + ".jpg"]["image_uri"]) == jpeg(40)


def test_archives_are_found_by_range_by_pattern_and_in_a_folder(tmp_path: Path) -> None:
    for number in (0, 1, 2):
        make_tar(tmp_path / f"set-{number:03d}.tar", {f"{number}.jpg": jpeg(20)})
    for location in ("set-{000..002}.tar", "set-*.tar", "", "set-00[012].tar"):
        assert len(indexed(f"tar:{tmp_path}/{location}")[0]) == 3
    assert len(indexed(f"tar:{tmp_path}/set-{{001..002}}.tar")[0]) == 2
    with pytest.raises(StorageError, match=r"set-003\.tar: no such file"):
        indexed(f"tar:{tmp_path}/set-{{002..003}}.tar")
    with pytest.raises(DataError, match=r"no \.tar file here"):
        indexed(f"tar:{tmp_path}/other-*.tar")


def test_an_archive_that_breaks_off_is_counted_and_its_images_say_so(tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "a.tar", {f"{i}.jpg": jpeg(100 + i) for i in range(3)})
    rows, _ = indexed(f"tar:{whole}")
    data = whole.read_bytes()
    second = archives.parse(rows[1]["image_uri"])
    assert isinstance(second, Member)
    whole.write_bytes(data[: second.offset + 10])
    first, *others = fetch.fetch_images(row["image_uri"] for row in rows)
    assert first == jpeg(100)
    assert [one.status for one in others if isinstance(one, ImageError)] == ["missing", "missing"]
    (tmp_path / "b.tar").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(DataError, match="unreadable_archive: 1"):
        indexed(f"tar:{tmp_path}/b.tar")


@pytest.mark.parametrize("as_structs", [False, True])
def test_a_table_may_hold_the_images_themselves(tmp_path: Path, *, as_structs: bool) -> None:
    images: list[Any] = [jpeg(20 + i) for i in range(10)]
    column = [{"bytes": one, "path": None} for one in images] if as_structs else images
    boxes = [[[0.0, 0.0, 9.0, 9.0]]] * 10
    table = pa.table({"picture": column, "label": [i % 3 for i in range(10)], "gt_boxes": boxes})
    pq.write_table(table, tmp_path / "set.parquet", row_group_size=4)
    rows, found = indexed(f"parquet:{tmp_path / 'set.parquet'}")
    assert [one.id for one in found.manifest.classes] == ["0", "1", "2"]
    by_uri = {row["image_uri"]: row for row in rows}
    uris = [f"{tmp_path}/set.parquet#{i:09d}/picture" for i in range(10)]
    assert [row["image_uri"] for row in rows] == uris
    assert [(by_uri[uri]["width_px"], by_uri[uri]["class_index"]) for uri in uris] == [
        (20 + i, i % 3) for i in range(10)
    ]
    assert fetch.fetch_images(reversed(uris)) == images[::-1]
    gone = fetch.fetch_images([uris[3], f"{tmp_path}/set.parquet#000000010/picture"])
    assert gone[0] == images[3]
    assert isinstance(gone[1], ImageError)
    assert gone[1].status == "missing"


def test_two_columns_of_bytes_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [b"1"], "b": [b"2"]}), tmp_path / "set.parquet")
    with pytest.raises(DataError, match="several columns hold bytes: a, b"):
        indexed(f"parquet:{tmp_path / 'set.parquet'}")


def test_a_missing_file_of_many_images_is_missing_for_each(tmp_path: Path) -> None:
    uris = [Cell(f"{tmp_path}/no.parquet", i, "image").uri for i in range(2)]
    uris += [Member(f"{tmp_path}/no.tar", i, 5, "a.jpg").uri for i in range(2)]
    found = fetch.fetch_images(uris)
    assert [one.status for one in found if isinstance(one, ImageError)] == ["missing"] * 4
