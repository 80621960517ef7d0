"""Sources, folders, the index job, and the real image sets."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cropscore_ray.datasets.files import image_sizes, read_all
from cropscore_ray.datasets.manifest import read_manifest
from cropscore_ray.datasets.problems import Finding
from cropscore_ray.datasets.sources import FORMS, Index, index_source, parse_source
from cropscore_ray.errors import ConfigError, DataError, RunConflictError, StorageError
from cropscore_ray.jobs import index as index_job

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real image sets (../shared/data) are not here"
)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no picture")


def rows(found: Index) -> list[dict[str, Any]]:
    return list(found.manifest.table.to_pylist())


def test_the_first_folder_is_the_class_and_every_image_name_gets_a_row(tmp_path: Path) -> None:
    touch(tmp_path, "dog/x.JPEG", "cat/deep/y.TiF", "cat/z.webp", "cat/notes.txt", "readme")
    found = index_source(str(tmp_path))
    assert [row["image_uri"] for row in rows(found)] == [
        f"{tmp_path}/cat/deep/y.TiF",
        f"{tmp_path}/cat/z.webp",
        f"{tmp_path}/dog/x.JPEG",
    ]
    assert [row["class_index"] for row in rows(found)] == [0, 0, 1]
    assert [one.id for one in found.manifest.classes] == ["cat", "dog"]
    assert found.report.left_aside == {"(none)": 1, "txt": 1}
    assert found.report.problems == {}


@pytest.mark.parametrize(
    "extension", ["jpg", "jpeg", "JPEG", "png", "webp", "bmp", "gif", "tif", "TIFF"]
)
def test_an_image_is_known_by_its_extension_alone(tmp_path: Path, extension: str) -> None:
    touch(tmp_path, f"a.{extension}")
    assert index_source(str(tmp_path)).report.num_images == 1


def test_images_at_the_top_have_no_class(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    found = index_source(f"{tmp_path}/")
    assert [row["class_index"] for row in rows(found)] == [None, None]
    assert found.report.problems == {}


def test_images_beside_class_folders_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "cat/b.jpg")
    found = index_source(str(tmp_path))
    assert [row["class_index"] for row in rows(found)] == [None, 0]
    assert found.report.problems["image_without_label"].count == 1


def test_a_relative_folder_gives_absolute_uris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "set/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert rows(index_source("set"))[0]["image_uri"] == f"{tmp_path}/set/a.jpg"
    assert parse_source("csv:x/t.csv").absolute == f"csv:{tmp_path}/x/t.csv"
    assert parse_source("s3://bucket/set/").absolute == "s3://bucket/set"


def test_a_location_in_a_store_makes_a_source_of_another_form_no_folder() -> None:
    source = parse_source("csv:s3://bucket/set.csv")
    assert (source.form, source.location_uri) == ("csv", "s3://bucket/set.csv")
    assert not source.is_folder()


def test_a_manifest_is_known_whatever_its_path(tmp_path: Path) -> None:
    touch(tmp_path, "set/a.jpg")
    index_job.run(str(tmp_path / "set"), str(tmp_path / "a:b"))
    assert parse_source(str(tmp_path / "a:b")).is_manifest()


@pytest.mark.parametrize("source", ["coco:x", "ilsvrc:", ""])
def test_an_unknown_source_is_refused_with_all_forms(source: str) -> None:
    with pytest.raises(ConfigError) as caught:
        index_source(source)
    assert all(form in (caught.value.hint or "") for form in FORMS)


@pytest.mark.parametrize("form", ["", "ilsvrc:", "voc:"])
def test_a_missing_root_is_refused_with_a_hint(tmp_path: Path, form: str) -> None:
    with pytest.raises(StorageError, match="no such folder") as caught:
        index_source(f"{form}{tmp_path}/gone")
    assert caught.value.hint


def test_a_folder_without_images_is_refused_and_says_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "b.txt")
    with pytest.raises(DataError, match="2 txt"):
        index_source(str(tmp_path))


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "table.csv")
    with pytest.raises(DataError, match="not a folder"):
        index_source(str(tmp_path / "table.csv"))


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    seen: list[tuple[int, int | None]] = []
    index_source(str(tmp_path), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2, 2)


def test_many_files_are_read_in_order() -> None:
    assert list(read_all(lambda n: n * n, range(3000))) == [n * n for n in range(3000)]


def test_a_header_longer_than_the_first_request_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    picture = Image.new("RGB", (20, 10))
    picture.save(path, icc_profile=bytes(200_000))
    assert list(image_sizes([str(path)])) == [(20, 10)]


def test_a_huge_image_is_measured_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (10_000, 10_000)).save(path)
    assert list(image_sizes([str(path)])) == [(10_000, 10_000)]


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\x00"]
)
def test_damaged_headers_are_findings(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    (found,) = image_sizes([str(tmp_path / "a.jpg")])
    assert isinstance(found, Finding)
    assert found.kind == "unreadable_header"


def test_the_job_writes_a_manifest_and_what_it_found(tmp_path: Path) -> None:
    touch(tmp_path, "set/cat/a.jpg", "set/b.jpg")
    out = str(tmp_path / "m")
    report = index_job.run(str(tmp_path / "set"), out)
    manifest = read_manifest(out)
    facts = json.loads((tmp_path / "m" / "index.json").read_text())
    assert (report.num_images, manifest.table.num_rows) == (2, 2)
    assert facts["source"] == str(tmp_path / "set")
    assert facts["fingerprint"] == manifest.fingerprint()
    assert facts["report"]["problems"]["image_without_label"]["count"] == 1


def test_the_job_refuses_the_manifest_of_another_source_unless_told(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.jpg", "two/a.jpg", "two/b.jpg")
    one, two, out = (str(tmp_path / name) for name in ("one", "two", "m"))
    index_job.run(one, out)
    index_job.run(one, out)
    with pytest.raises(RunConflictError, match="one") as caught:
        index_job.run(two, out)
    assert "--overwrite" in (caught.value.hint or "")
    index_job.run(two, out, overwrite=True)
    assert read_manifest(out).table.num_rows == 2


@needs_shared
def test_the_real_ilsvrc_tree_is_read_whole_and_without_problems() -> None:
    report = index_source(f"ilsvrc:{SHARED / 'ilsvrc-4k'}").report
    assert (report.num_images, report.num_boxes, report.num_classes) == (4000, 6450, 1000)
    assert report.splits == {"train": 3500, "val": 500}
    assert report.problems == {}


@needs_shared
def test_the_degenerate_boxes_of_tiny_imagenet_are_reported() -> None:
    report = index_source(f"csv:{SHARED / 'tiny-imagenet-20' / 'val.csv'}").report
    assert (report.num_images, report.num_boxes, report.num_classes) == (1000, 1000, 20)
    assert {kind: one.count for kind, one in report.problems.items()} == {"one_pixel_box": 2}


def test_odd_names_and_broken_links_are_told(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"")
    found = index_source(str(tmp_path))
    names = [Path(uri).name for uri in found.manifest.table["image_uri"].to_pylist()]
    assert names == ["broken.jpg", "good.png"]
    assert found.report.left_aside == {"(name is not UTF-8)": 1}
