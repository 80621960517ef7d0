"""A manifest that grows while its folder is listed: order, waiting, going on, failing."""

import io
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cropscore_ray import storage
from cropscore_ray.bulk import run_folder
from cropscore_ray.datasets import listing, uri_list
from cropscore_ray.datasets.listing import GrowingManifest, Lister, growing_manifest
from cropscore_ray.datasets.manifest import open_manifest, read_manifest
from cropscore_ray.datasets.sources import parse_source
from cropscore_ray.errors import DataError, RunConflictError, StorageError
from cropscore_ray.jobs import sources
from cropscore_ray.storage.lock import Held
from cropscore_ray.terminal.progress import Progress

WAIT_S = 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/1.jpg", "a/2.png", "a-b/1.jpg", "a/notes.txt", "b/x/deep.JPEG", "top.jpg"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "set"


@pytest.fixture
def manifest(folder: Path, tmp_path: Path) -> GrowingManifest:
    return growing_manifest(str(folder), str(tmp_path / "manifest"), begun=False)


def lister_of(manifest: GrowingManifest) -> Lister:
    return Lister(manifest, Held(folder_uri=manifest.uri))


def list_to_the_end(manifest: GrowingManifest) -> None:
    lister = lister_of(manifest)
    lister.start()
    lister.has_images.wait(WAIT_S)
    for _ in manifest.batches(itertools.repeat(100)):
        pass


def names(manifest: GrowingManifest) -> list[str]:
    uris = read_manifest(manifest.uri).table["image_uri"].to_pylist()
    return [uri.removeprefix(manifest.folder_uri + "/") for uri in uris]


def test_files_come_in_the_order_of_their_whole_names(folder: Path) -> None:
    (folder / "a" / "up").symlink_to(folder)
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    (folder / "self.jpg").symlink_to(folder / "self.jpg")
    found = list(storage.iter_files(str(folder)))
    assert found == sorted(found) == storage.list_files(str(folder))
    for after in found:
        assert list(storage.iter_files(str(folder), after)) == found[found.index(after) + 1 :]


def test_images_get_ids_and_classes_in_that_order(manifest: GrowingManifest) -> None:
    list_to_the_end(manifest)
    assert names(manifest) == ["a-b/1.jpg", "a/1.jpg", "a/2.png", "b/x/deep.JPEG", "top.jpg"]
    rows = read_manifest(manifest.uri).table
    assert rows["image_id"].to_pylist() == list(range(5))
    assert [one.id for one in manifest.classes] == ["a", "a-b", "b"]
    assert rows["class_index"].to_pylist() == [1, 0, 0, 2, None]
    ended = manifest.ended()
    assert ended == {"num_images": 5, "num_late": 0, "left_aside": {"txt": 1}, "error": None}
    assert open_manifest(manifest.uri).num_images == manifest.num_images == 5


def test_work_begins_before_the_listing_ends(
    manifest: GrowingManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "CHUNK_S", 0.0)
    go_on = threading.Event()

    def slow(uri: str, after: str = "") -> Iterator[str]:
        for number in itertools.count():
            if number == 3:
                assert go_on.wait(WAIT_S)
            if number == 5:
                return
            yield f"{uri}/{number}.jpg"

    monkeypatch.setattr(storage, "iter_files", slow)
    lister = lister_of(manifest)
    lister.start()
    batches = manifest.batches(itertools.repeat(2))
    assert next(batches)["image_id"].to_pylist() == [0, 1]
    assert manifest.num_images is None
    go_on.set()
    assert [batch["image_id"].to_pylist() for batch in batches] == [[2, 3], [4]]
    assert manifest.num_images == 5


@pytest.mark.parametrize("num_chunks", [1, 3, 5])
def test_a_listing_that_was_stopped_goes_on_after_its_last_chunk(
    manifest: GrowingManifest, monkeypatch: pytest.MonkeyPatch, num_chunks: int
) -> None:
    monkeypatch.setattr(listing, "CHUNK_IMAGES", 1)
    list_to_the_end(manifest)
    whole = names(manifest)
    chunks = storage.list_files(manifest.uri)
    assert len(chunks) == 6
    for lost in [*chunks[num_chunks:5], chunks[5]]:
        os.unlink(lost)
    monkeypatch.setattr(listing, "CHUNK_IMAGES", 100)
    list_to_the_end(manifest)
    assert names(manifest) == whole
    assert read_manifest(manifest.uri).table["image_id"].to_pylist() == list(range(5))


def test_a_listing_that_ended_is_not_begun_again(
    manifest: GrowingManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_to_the_end(manifest)
    (Path(manifest.folder_uri) / "late.jpg").touch()
    list_to_the_end(manifest)
    assert manifest.num_images == 5


def test_a_listing_that_fails_says_so_and_can_be_begun_again(
    manifest: GrowingManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: Callable[..., Iterator[str]] = storage.iter_files

    def breaks_off(uri: str, after: str = "") -> Iterator[str]:
        yield from itertools.islice(whole(uri, after), 2)
        raise StorageError("the store has gone")

    monkeypatch.setattr(storage, "iter_files", breaks_off)
    with pytest.raises(DataError, match="the store has gone"):
        list_to_the_end(manifest)
    assert manifest.num_images is None, "what was found is not all"
    monkeypatch.setattr(storage, "iter_files", whole)
    list_to_the_end(manifest)
    assert len(names(manifest)) == 5


def test_a_lister_whose_folder_another_run_took_writes_nothing_there(
    manifest: GrowingManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "CHUNK_IMAGES", 1)
    looks = iter([True, True])

    def require(held: Held) -> None:
        if not next(looks, False):
            raise RunConflictError(f"another run took over {held.folder_uri}")

    monkeypatch.setattr(Held, "require", require)
    lister = lister_of(manifest)
    lister.start()
    lister._thread.join(WAIT_S)
    assert len(names(manifest)) == 2
    assert manifest.ended() is None
    assert "took over" in str(lister.conflict)


def test_a_command_hears_that_another_took_its_folder_before_the_first_image(
    manifest: GrowingManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def require(held: Held) -> None:
        raise RunConflictError(f"another run took over {held.folder_uri}")

    monkeypatch.setattr(Held, "require", require)
    listed = sources.listed(manifest, Held(folder_uri="run"), Progress(io.StringIO()))
    with pytest.raises(RunConflictError, match="took over run"), listed:
        raise AssertionError("it began")
    assert storage.list_files(manifest.uri) == []


def test_a_run_that_fails_takes_its_lister_with_it(
    folder: Path, manifest: GrowingManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "CHUNK_IMAGES", 1)
    failed = threading.Event()

    def slow(uri: str, after: str = "") -> Iterator[str]:
        yield f"{uri}/0.jpg"
        assert failed.wait(WAIT_S)
        yield f"{uri}/1.jpg"

    monkeypatch.setattr(storage, "iter_files", slow)
    run = str(folder.parent / "run")
    with (
        pytest.raises(ZeroDivisionError),
        sources.listed(manifest, Held(folder_uri=run), Progress(io.StringIO())),
    ):
        raise ZeroDivisionError
    failed.set()
    [lister] = [thread for thread in threading.enumerate() if thread.name == "lister"]
    lister.join(WAIT_S)
    assert names(manifest) == ["0.jpg"]
    assert manifest.ended() is None


def test_how_a_listing_ended_is_written_once_that_can_be(
    manifest: GrowingManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_AGAIN_S", 0.01)
    write, failures = storage.write_json, iter([StorageError("the disk is full")] * 3)

    def write_at_last(uri: str, value: object) -> None:
        if failure := next(failures, None):
            raise failure
        write(uri, value)

    monkeypatch.setattr(storage, "write_json", write_at_last)
    list_to_the_end(manifest)
    assert manifest.num_images == 5
    assert next(failures, None) is None


def test_a_failure_that_names_what_is_no_text_is_told(
    manifest: GrowingManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(uri: str, after: str = "") -> Iterator[str]:
        raise StorageError(f"cannot list {uri}/{os.fsdecode(b'caf' + bytes([233]))}: denied")
        yield

    monkeypatch.setattr(storage, "iter_files", denied)
    with pytest.raises(DataError, match=r"caf\\udce9: denied"):
        list_to_the_end(manifest)


def test_files_left_aside_are_counted_once_however_often_the_listing_was_stopped(
    folder: Path, manifest: GrowingManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("0.md", "a/1b.txt", "b/x/notes.txt", "z.md"):
        (folder / name).touch()
    monkeypatch.setattr(listing, "CHUNK_IMAGES", 1)
    list_to_the_end(manifest)
    whole = (manifest.ended() or {})["left_aside"]
    assert whole == {"md": 2, "txt": 3}
    chunks = storage.list_files(manifest.uri)[:-1]
    for lost in reversed(chunks):
        os.unlink(storage.join(manifest.uri, "listing.json"))
        list_to_the_end(manifest)
        assert (manifest.ended() or {})["left_aside"] == whole
        os.unlink(lost)


def test_a_folder_is_not_listed_to_see_that_it_is_no_manifest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(uri: str, after: str = "") -> list[str]:
        raise AssertionError(f"{uri} was listed whole")

    monkeypatch.setattr(storage, "list_files", never)
    monkeypatch.setattr(storage, "iter_files", never)
    assert parse_source(str(folder)).is_folder()


def test_a_folder_whose_run_lies_inside_is_no_manifest(folder: Path) -> None:
    inside = growing_manifest(str(folder), str(folder / "run" / "manifest"), begun=False)
    list_to_the_end(inside)
    assert parse_source(str(folder)).is_folder()
    assert not parse_source(inside.uri).is_folder()


def test_the_folder_that_a_run_lies_in_is_no_class(folder: Path) -> None:
    (folder / "runs" / "1").mkdir(parents=True)
    found = growing_manifest(str(folder), str(folder / "runs" / "1" / "manifest"), begun=False)
    assert [one.id for one in found.classes] == ["a", "a-b", "b"]


def test_very_many_folders_are_no_classes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_MOST_CLASSES", 2)
    found = growing_manifest(str(folder), str(tmp_path / "manifest"), begun=False)
    assert found.classes == []
    list_to_the_end(found)
    assert read_manifest(found.uri).table["class_index"].null_count == 5


def test_folders_whose_names_are_no_text_are_no_classes(folder: Path, tmp_path: Path) -> None:
    os.mkdir(os.fsencode(folder) + b"/caf\xe9")
    found = growing_manifest(str(folder), str(tmp_path / "manifest"), begun=False)
    assert [one.id for one in found.classes] == ["a", "a-b", "b"]


def stop_after_one_chunk(manifest: GrowingManifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave what a listing leaves that was killed when it had written one image."""
    monkeypatch.setattr(listing, "CHUNK_IMAGES", 1)
    list_to_the_end(manifest)
    for later in storage.list_files(manifest.uri)[1:]:
        os.unlink(later)


def class_names(manifest: GrowingManifest) -> dict[str, str | None]:
    indexes = read_manifest(manifest.uri).table["class_index"].to_pylist()
    classes = [None if at is None else manifest.classes[at].id for at in indexes]
    return dict(zip(names(manifest), classes, strict=True))


def test_a_folder_that_came_later_changes_no_class_and_is_counted(
    folder: Path, manifest: GrowingManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after_one_chunk(manifest, monkeypatch)
    for name in ("a-a/0.jpg", "aa/1.jpg", "z/1.jpg", "z/deep/2.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    again = growing_manifest(str(folder), manifest.uri, begun=True)
    list_to_the_end(again)
    assert class_names(again) == {
        "a-b/1.jpg": "a-b",
        "a/1.jpg": "a",
        "a/2.png": "a",
        "aa/1.jpg": None,
        "b/x/deep.JPEG": "b",
        "top.jpg": None,
        "z/1.jpg": None,
        "z/deep/2.jpg": None,
    }
    assert (again.ended() or {})["num_late"] == 3


def test_late_images_of_an_earlier_start_are_counted_too(
    folder: Path, manifest: GrowingManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after_one_chunk(manifest, monkeypatch)
    (folder / "a" / "1.jpg").rename(folder / "a.jpg")
    (folder / "aa").mkdir()
    (folder / "aa" / "1.jpg").touch()
    for _ in range(2):
        list_to_the_end(growing_manifest(str(folder), manifest.uri, begun=True))
        ended = manifest.ended()
        assert ended is not None
        assert ended["num_late"] == 1
        os.unlink(storage.join(manifest.uri, "listing.json"))


def test_a_folder_that_is_gone_leaves_the_others_their_classes(
    folder: Path, manifest: GrowingManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after_one_chunk(manifest, monkeypatch)
    shutil.rmtree(folder / "a")
    shutil.rmtree(folder / "a-b")
    again = growing_manifest(str(folder), manifest.uri, begun=True)
    list_to_the_end(again)
    assert class_names(again) == {"a-b/1.jpg": "a-b", "b/x/deep.JPEG": "b", "top.jpg": None}


def test_chunks_of_no_run_are_not_gone_on_with(folder: Path, tmp_path: Path) -> None:
    run, shown = str(tmp_path / "run"), Progress(io.StringIO())
    uri_list.write_list([b"/elsewhere/0.jpg"], f"{run}/manifest", begun=False)
    manifest = sources.open_source(parse_source(str(folder)), run, shown, overwrite=False)
    assert isinstance(manifest, GrowingManifest)
    sources.make_room(manifest, Held(folder_uri=run), overwrite=False)
    run_folder.open_run(run, table="predictions", identity={}, facts={})
    list_to_the_end(manifest)
    assert names(manifest) == ["a-b/1.jpg", "a/1.jpg", "a/2.png", "b/x/deep.JPEG", "top.jpg"]
    again = sources.open_source(parse_source(str(folder)), run, shown, overwrite=False)
    assert again == manifest
    sources.make_room(again, Held(folder_uri=run), overwrite=False)
    assert manifest.num_images == 5
