"""A part of a packed set, written in a plain process."""

from itertools import repeat
from pathlib import Path

import pytest

from cropscore_ray.bulk import packing, run_folder
from cropscore_ray.bulk.parts import BulkRun, as_row, fetch_part
from cropscore_ray.datasets.manifest import open_manifest, write_manifest
from cropscore_ray.datasets.sources import index_source
from cropscore_ray.errors import RunConflictError
from cropscore_ray.images import fetch
from cropscore_ray.storage.lock import Held


@pytest.fixture
def run(tmp_path: Path) -> BulkRun:
    for name in ("a.jpg", f"b.{'x' * 120}.jpg", f"c.jpg{'x' * 120}"):
        path = tmp_path / "set" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "list.csv").write_text(
        "image\n" + "".join(f"{path}\n" for path in sorted((tmp_path / "set").iterdir()))
    )
    write_manifest(str(tmp_path / "m"), index_source(f"csv:{tmp_path}/list.csv").manifest)
    return BulkRun(
        command="pack",
        manifest=open_manifest(str(tmp_path / "m")),
        part_images=3,
        folder=run_folder.open_run(str(tmp_path / "out"), table="manifest", identity={}, facts={}),
    )


def pack(run: BulkRun) -> None:
    [rows] = run.manifest.batches(repeat(3))
    packing.pack_part(fetch_part(as_row(0, rows)), run)


def test_images_of_any_name_go_into_an_archive(run: BulkRun) -> None:
    pack(run)
    packed = open_manifest(run.folder.table_uri)
    [rows] = packed.batches(repeat(3))
    [archive] = Path(run.folder.uri, "shards").iterdir()
    assert all(uri.startswith(f"{archive}#") for uri in rows["image_uri"].to_pylist())


def test_images_that_are_too_much_to_travel_together_are_packed_too(
    run: BulkRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(run)
    [archive] = Path(run.folder.uri, "shards").iterdir()
    together = archive.read_bytes()
    archive.unlink()
    monkeypatch.setattr(fetch, "_STEP", 1)
    monkeypatch.setattr(fetch, "_GROUP_BYTES", 1)
    pack(run)
    assert archive.read_bytes() == together


def test_a_run_that_lost_its_lock_writes_no_archive(
    run: BulkRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(held: Held) -> None:
        raise RunConflictError(f"another run took over {held.folder_uri}")

    monkeypatch.setattr(Held, "require", lost)
    with pytest.raises(RunConflictError):
        pack(run)
    assert not list(Path(run.folder.uri).rglob("*.tar"))
