"""Packing a folder while it is listed: on a local Ray, and all else in this process."""

from pathlib import Path

import pytest
from models import random_model

from cropscore_ray import storage
from cropscore_ray.config.bulk import LocalizeConfig, RunConfig
from cropscore_ray.datasets import listing
from cropscore_ray.datasets.manifest import read_manifest
from cropscore_ray.errors import ConfigError, DataError, RunConflictError
from cropscore_ray.images.fetch import fetch_images
from cropscore_ray.jobs import index, localize, pack

here = pytest.mark.usefixtures("bulk_here")

NAMES = ["cat/1.jpg", "cat/2.jpg", "dog/1.png", "dog/deep/2.jpg", "top.jpg"]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    touch(tmp_path / "set", *NAMES, "cat/notes.txt")
    return tmp_path / "set"


def packed(out: Path) -> dict[bytes, str | None]:
    """Return the classes of a packed set's images by their content, in the order of rows."""
    manifest = read_manifest(f"{out}/manifest")
    rows = manifest.table.to_pylist()
    classes = [row["class_index"] for row in rows]
    return dict(
        zip(
            fetch_images(row["image_uri"] for row in rows),
            [None if at is None else manifest.classes[at].id for at in classes],
            strict=True,
        )
    )


def archives(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.rglob("*.tar"))}


WHOLE = dict(zip(map(str.encode, NAMES), ["cat", "cat", "dog", "dog", None], strict=True))


@pytest.mark.parametrize("where", ["ray_local", "bulk_here"])
def test_a_folder_is_packed_as_its_index_is(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    where: str,
) -> None:
    request.getfixturevalue(where)
    out, indexed = tmp_path / "packed", tmp_path / "indexed"
    record = pack.run(str(folder), out=str(out), shard_images=2)
    assert record["counts"] == {"images": 5, "rows": 5, "by_status": {"ok": 5}}
    assert "5 images found; other files left aside, by extension: 1 txt" in capsys.readouterr().err
    assert packed(out) == WHOLE
    index.run(str(folder), str(tmp_path / "m"))
    pack.run(str(tmp_path / "m"), out=str(indexed), shard_images=2)
    assert [len(archives(out)), archives(out)] == [3, archives(indexed)]


@here
def test_a_packing_that_was_stopped_goes_on_with_the_classes_of_its_beginning(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "packed"
    monkeypatch.setattr(listing, "CHUNK_IMAGES", 2)
    record = pack.run(str(folder), out=str(out), shard_images=2)
    before, (first, second, _) = archives(out), sorted(out.glob("manifest/*.parquet"))
    touch(folder, "ant/0.jpg", "emu/0.jpg")  # of another run, but for what is not listed yet
    for lost in (second, *out.glob("source/chunk-000000[12].parquet"), out / "source/listing.json"):
        lost.unlink()
    storage.write_json(f"{out}/run.json", {**record, "complete": False})
    kept = first.stat().st_mtime_ns
    (out / "manifest" / "part-0000002.parquet").unlink()
    record = pack.run(str(folder), out=str(out), shard_images=2)
    said = capsys.readouterr().err
    assert "6 images found; 1 of them in folders that came later, so without a class" in said
    assert record["counts"]["images"] == 6
    assert packed(out) == {**WHOLE, b"emu/0.jpg": None}
    assert first.stat().st_mtime_ns == kept
    assert archives(out)["shard-0000001.tar"] == before["shard-0000001.tar"]
    pack.run(str(folder), out=str(out), shard_images=2)
    assert "6 images; nothing to do" in capsys.readouterr().err


@here
def test_overwrite_packs_what_the_folder_holds_now(folder: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "packed", tmp_path / "other"
    pack.run(str(folder), out=str(out), shard_images=2)
    touch(other, "ant/0.jpg")
    with pytest.raises(RunConflictError, match=r"manifest: .*set.* there, .*other.* now"):
        pack.run(str(other), out=str(out), shard_images=2)
    assert packed(out) == WHOLE
    pack.run(str(other), out=str(out), shard_images=2, overwrite=True)
    assert packed(out) == {b"ant/0.jpg": "ant"}
    (tmp_path / "set.csv").write_text("image\nset/top.jpg\n")
    pack.run(f"csv:{tmp_path}/set.csv", out=str(out), shard_images=2, overwrite=True)
    assert packed(out) == {b"top.jpg": None}
    assert len(archives(out)) == 1


@here
def test_a_set_that_is_packed_anew_does_not_make_room_for_itself(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "packed"
    pack.run(str(folder), out=str(out), shard_images=2)
    index.run(f"tar:{out}/shards/*.tar", str(tmp_path / "elsewhere"))
    for source in (f"{out}/manifest", f"tar:{out}/shards/*.tar", f"{tmp_path}/elsewhere"):
        with pytest.raises(ConfigError, match=f"those of {out}, which --overwrite would delete"):
            pack.run(source, out=str(out), shard_images=3, overwrite=True)
        assert packed(out) == WHOLE
    pack.run(f"{out}/manifest", out=str(tmp_path / "larger"), shard_images=5, overwrite=True)
    assert packed(tmp_path / "larger") == WHOLE


@here
def test_a_packed_set_makes_no_room_for_boxes(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    pack.run(str(folder), out=str(out), shard_images=2)
    random_model(str(tmp_path / "model"))
    model = str(tmp_path / "model")
    run = RunConfig(source=str(folder), model=model, out=str(out), overwrite=True)
    with pytest.raises(RunConflictError, match=f"{out} holds a run of pack"):
        localize.run("localize", run, LocalizeConfig())
    assert packed(out) == WHOLE


@here
def test_a_folder_without_images_leaves_nothing(tmp_path: Path) -> None:
    touch(tmp_path / "set", "notes.txt")
    with pytest.raises(DataError, match=r"no image here; .*1 txt"):
        pack.run(str(tmp_path / "set"), out=str(tmp_path / "packed"))
    assert not [
        path for path in (tmp_path / "packed").rglob("*") if path.is_file() and path.name != ".lock"
    ]
