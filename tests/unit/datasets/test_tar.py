"""Indexing tar archives: samples, damaged archives, archives that cannot be had."""

import gzip
import io
import json
import tarfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cropscore_ray import storage
from cropscore_ray.datasets.sources import Index, index_source
from cropscore_ray.errors import DataError, StorageError
from cropscore_ray.images import archives
from cropscore_ray.storage import retries

BLOCK = tarfile.BLOCKSIZE
NAMES = [f"{number}.jpg" for number in range(5)]


def tar_of(*files: tuple[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as tar:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return sink.getvalue()


def indexed(folder: Path, data: bytes) -> tuple[dict[str, Any], Index]:
    """Index one archive; return its images' classes by name, and the rest."""
    (folder / "set.tar").write_bytes(data)
    index = index_source(f"tar:{folder}")
    table = index.manifest.table
    names = [archives.parse(uri).name for uri in table["image_uri"].to_pylist()]  # type: ignore[union-attr]
    ids = [
        None if at is None else index.manifest.classes[at].id
        for at in table["class_index"].to_pylist()
    ]
    return dict(zip(names, ids, strict=True)), index


FIVE = tar_of(*((name, b"image") for name in NAMES))  # a block of header and one of data each


def test_every_image_of_a_sample_is_a_row_with_its_class(tmp_path: Path) -> None:
    data = tar_of(("a/7.left.jpg", b"1"), ("a/7.right.jpg", b"2"), ("a/7.cls", b"cat"))
    classes, _ = indexed(tmp_path, data)
    assert classes == {"a/7.left.jpg": "cat", "a/7.right.jpg": "cat"}


def test_of_an_image_written_again_the_last_counts_and_that_is_told(tmp_path: Path) -> None:
    _, index = indexed(tmp_path, tar_of(("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"333")))
    uris = index.manifest.table["image_uri"].to_pylist()
    sizes = {one.name: one.size for one in map(archives.parse, uris)}  # type: ignore[union-attr]
    assert sizes == {"a.jpg": 3, "b.jpg": 1}
    [example] = index.report.problems["duplicate_image"].examples
    assert (example.uri, example.detail) == (
        f"{tmp_path}/set.tar",
        "a.jpg stands there twice; the last is taken",
    )


@pytest.mark.parametrize(
    ("length", "num_left"),
    [
        (4 * BLOCK + BLOCK // 2, 2),  # within a header
        (5 * BLOCK, 3),  # after a header
        (5 * BLOCK + 2, 3),  # within an image
        (5 * BLOCK + 5, 3),  # after an image, before its block is full
    ],
)
def test_what_stands_before_a_cut_is_kept(tmp_path: Path, length: int, num_left: int) -> None:
    classes, index = indexed(tmp_path, FIVE[:length])
    assert sorted(classes) == NAMES[:num_left]
    problem = index.report.problems["unreadable_archive"]
    assert [one.uri for one in problem.examples] == [f"{tmp_path}/set.tar"]


def test_an_end_without_empty_blocks_is_an_end(tmp_path: Path) -> None:
    for stop in (10 * BLOCK, 10 * BLOCK + 100, 11 * BLOCK):
        classes, index = indexed(tmp_path, FIVE[:stop])
        assert sorted(classes) == NAMES
        assert not index.report.problems


def test_images_after_a_damaged_header_are_not_lost_without_a_word(tmp_path: Path) -> None:
    damaged = bytearray(FIVE)
    damaged[4 * BLOCK + 10] ^= 255
    classes, index = indexed(tmp_path, bytes(damaged))
    assert sorted(classes) == NAMES[:2]
    [example] = index.report.problems["unreadable_archive"].examples
    assert f"byte {4 * BLOCK}" in example.detail


def test_a_class_that_is_cut_is_no_class(tmp_path: Path) -> None:
    data = tar_of(("7.jpg", b"1"), ("7.cls", b"tabby"))
    classes, index = indexed(tmp_path, data[: 3 * BLOCK + 3])
    assert classes == {"7.jpg": None}
    assert "unreadable_archive" in index.report.problems


def test_a_name_that_is_not_text_costs_no_other_image_its_row(tmp_path: Path) -> None:
    files = [("caf\udce9.jpg", b"1"), ("b.jpg", b"2")]
    data = tar_of(*files, format=tarfile.GNU_FORMAT)
    classes, index = indexed(tmp_path, data)
    assert list(classes) == ["b.jpg"]
    assert index.report.left_aside == {"(name is not UTF-8)": 1}
    _, index = indexed(tmp_path, tar_of(files[1], files[0], format=tarfile.GNU_FORMAT)[: 3 * BLOCK])
    json.dumps(asdict(index.report), ensure_ascii=False).encode()  # as index.json is written


def test_a_compressed_archive_is_not_read_as_if_it_were_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unreadable_archive: 1"):
        indexed(tmp_path, gzip.compress(FIVE))


class Breaking(io.BytesIO):
    """An archive whose store goes away in the midst of it."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= 4 * BLOCK:
            raise OSError("the store has gone")
        return super().read(size)


def stored(monkeypatch: pytest.MonkeyPatch, num_failures: int) -> Counter[str]:
    """Put an archive into a store that answers after so many failures; return how often asked."""
    asked: Counter[str] = Counter()

    def open_file(uri: str, **_: object) -> io.BytesIO:
        asked[uri] += 1
        return Breaking(FIVE) if asked[uri] <= num_failures else io.BytesIO(FIVE)

    monkeypatch.setattr(storage, "open_file", open_file)
    monkeypatch.setattr(storage, "is_folder", lambda uri: False)
    monkeypatch.setattr(storage, "exists", lambda uri: True)
    monkeypatch.setattr(retries, "sleep", lambda seconds: None)
    return asked


def test_a_store_that_is_away_for_a_while_costs_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stored(monkeypatch, num_failures=2)
    index = index_source("tar:s3://bucket/set.tar")
    assert (index.report.num_images, index.report.problems) == (5, {})
    assert asked["s3://bucket/set.tar"] == 3


def test_an_archive_that_cannot_be_had_stops_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    stored(monkeypatch, num_failures=10**9)
    monkeypatch.setattr(retries, "TOTAL_S", 0.01)
    with pytest.raises(StorageError, match=r"s3://bucket/set\.tar: the store has gone") as caught:
        index_source("tar:s3://bucket/set.tar")
    assert caught.value.hint
