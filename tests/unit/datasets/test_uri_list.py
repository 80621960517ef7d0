"""A list of URIs on standard input: a manifest in chunks, and the same list once more."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cropscore_ray.bulk import run_folder
from cropscore_ray.datasets import uri_list
from cropscore_ray.datasets.manifest import open_manifest, read_manifest
from cropscore_ray.datasets.sources import parse_source
from cropscore_ray.errors import DataError, RunConflictError
from cropscore_ray.jobs import sources
from cropscore_ray.terminal.progress import Progress

LIST = [b"s3://bucket/b.jpg\n", b"/photos/a.png\r\n", b"\n", b"/photos/without extension\n"]
URIS = ["s3://bucket/b.jpg", "/photos/a.png", "/photos/without extension"]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uri_list, "CHUNK_IMAGES", 2)


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    uri_list.write_list(LIST, str(tmp_path / "manifest"), begun=False)
    return str(tmp_path / "manifest")


def test_lines_become_rows_in_their_order(manifest: str) -> None:
    table = read_manifest(manifest).table
    assert table["image_uri"].to_pylist() == URIS
    assert table["image_id"].to_pylist() == [0, 1, 2]
    assert open_manifest(manifest).num_images == 3


def test_a_path_counts_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri_list.write_list([b"photos/a.jpg"], "m", begun=False)
    assert read_manifest("m").table["image_uri"].to_pylist() == [str(tmp_path / "photos/a.jpg")]


def test_another_list_takes_the_place_of_one_that_no_run_began_with(manifest: str) -> None:
    uri_list.write_list(LIST[:1], manifest, begun=False)
    assert read_manifest(manifest).table["image_uri"].to_pylist() == URIS[:1]


def test_the_same_list_once_more_changes_nothing(manifest: str) -> None:
    before = {file: file.stat().st_mtime_ns for file in Path(manifest).iterdir()}
    assert uri_list.write_list(LIST, manifest, begun=True) == 3
    assert {file: file.stat().st_mtime_ns for file in Path(manifest).iterdir()} == before


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ([LIST[0], b"/photos/c.png"], "URI 2: /photos/a.png there, /photos/c.png now"),
        (LIST[:2], "URI 3: /photos/without extension there, none now"),
        (LIST[:1], "URI 2: /photos/a.png there, none now"),
        ([*LIST, b"/photos/d.jpg"], "URI 4: none there, /photos/d.jpg now"),
    ],
    ids=["another", "shorter by a chunk", "shorter", "longer"],
)
def test_a_list_that_is_not_the_one_a_run_began_with_is_refused_by_name(
    manifest: str, other: list[bytes], difference: str
) -> None:
    with pytest.raises(RunConflictError, match=difference):
        uri_list.write_list(other, manifest, begun=True)
    assert read_manifest(manifest).table["image_uri"].to_pylist() == URIS


@pytest.mark.parametrize("lines", [[], [b"\n", b"\r\n"]])
def test_a_list_without_a_uri_is_an_error(lines: list[bytes], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no URI"):
        uri_list.write_list(lines, str(tmp_path / "m"), begun=False)


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2 of the list is not UTF-8"):
        uri_list.write_list([b"/a.jpg\n", b"/\xff.jpg\n"], str(tmp_path / "m"), begun=False)


def test_only_what_an_earlier_manifest_left_makes_room(
    manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = Path(manifest) / "photo.jpg"
    photo.touch()
    monkeypatch.chdir(Path(manifest).parent)
    uri_list.write_list(LIST[:1], "manifest", begun=False)
    assert photo.exists()
    assert [file.name for file in Path(manifest).glob("chunk-*")] == ["chunk-0000000.parquet"]


@pytest.fixture
def type_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[bytes]], None]:
    """Give a list on standard input."""
    return lambda lines: monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(b"".join(lines)))
    )


@pytest.mark.parametrize("run_began", [True, False])
def test_an_indexed_source_takes_the_place_of_a_list_and_a_list_of_that(
    tmp_path: Path, type_in: Callable[[list[bytes]], None], *, run_began: bool
) -> None:
    (tmp_path / "set.csv").write_text("image\na.jpg\n")
    source, run, shown = f"csv:{tmp_path}/set.csv", str(tmp_path / "run"), Progress(io.StringIO())
    type_in(LIST)
    sources.manifest_of(parse_source("-"), run, shown, overwrite=False)
    if run_began:  # else that start failed before it did
        run_folder.open_run(run, table="predictions", identity={"config": 1}, facts={})
    manifest = sources.manifest_of(parse_source(source), run, shown, overwrite=run_began)
    assert open_manifest(manifest).num_images == 1
    type_in(LIST)
    sources.manifest_of(parse_source("-"), run, shown, overwrite=run_began)
    assert open_manifest(manifest).num_images == 3


def test_a_run_takes_the_list_from_standard_input_and_then_compares_it(
    tmp_path: Path, type_in: Callable[[list[bytes]], None]
) -> None:
    run, shown = str(tmp_path / "run"), Progress(io.StringIO())
    type_in(LIST)
    manifest = sources.manifest_of(parse_source("-"), run, shown, overwrite=False)
    assert read_manifest(manifest).table["image_uri"].to_pylist() == URIS
    run_folder.open_run(run, table="predictions", identity={"config": 1}, facts={})
    type_in(LIST)
    assert sources.manifest_of(parse_source("-"), run, shown, overwrite=False) == manifest
    type_in(LIST[:2])
    with pytest.raises(RunConflictError):
        sources.manifest_of(parse_source("-"), run, shown, overwrite=False)
    type_in(LIST[:2])
    sources.manifest_of(parse_source("-"), run, shown, overwrite=True)
    assert open_manifest(manifest).num_images == 2
