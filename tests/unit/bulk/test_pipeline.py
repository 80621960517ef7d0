"""What the command of a bulk run does beside its workers' work: it counts what is written."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cropscore_ray import schema, storage
from cropscore_ray.bulk import pipeline, run_folder
from cropscore_ray.bulk.parts import BulkRun
from cropscore_ray.datasets.manifest import open_manifest
from cropscore_ray.datasets.uri_list import write_list
from cropscore_ray.errors import StorageError
from cropscore_ray.storage import files, retries
from cropscore_ray.storage.s3 import S3

NUM_PARTS, PART_IMAGES = 70, 2


@pytest.fixture
def run(tmp_path: Path) -> BulkRun:
    """A run of which one part is left to do."""
    write_list(
        [f"/images/{i:03d}.jpg".encode() for i in range(NUM_PARTS * PART_IMAGES)],
        str(tmp_path / "manifest"),
        begun=False,
    )
    folder = run_folder.open_run(str(tmp_path), table="scores", identity={}, facts={})
    made = BulkRun(
        command="score",
        manifest=open_manifest(str(tmp_path / "manifest")),
        part_images=PART_IMAGES,
        folder=folder,
    )
    for number in range(NUM_PARTS - 1):
        write(made, number)
    return made


def write(run: BulkRun, number: int) -> None:
    rows = [
        {"image_id": PART_IMAGES * number + i, "status": "ok" if i else "missing"}
        for i in range(PART_IMAGES)
    ]
    run.folder.write_part(number, schema.rows_to_table(rows, schema.SCORES), reached=True)


def do_the_last_part(run: BulkRun, *others: Any) -> None:
    write(run, NUM_PARTS - 1)
    others[-1].wrote({"ok": 1, "missing": 1}, PART_IMAGES)


def run_parts(run: BulkRun) -> None:
    pipeline.run_parts(run, lambda fetched, todo: fetched, pipeline.SCORED)


def test_what_earlier_starts_wrote_is_counted(run, monkeypatch):
    monkeypatch.setattr(pipeline, "_do_parts", do_the_last_part)
    run_parts(run)
    record = json.loads(Path(run.folder.uri, "run.json").read_text())
    assert record["complete"]
    assert record["counts"]["by_status"] == {"ok": NUM_PARTS, "missing": NUM_PARTS}


def test_ctrl_c_does_not_wait_until_all_is_counted(run, monkeypatch):
    counting, goes_on = threading.Event(), threading.Event()

    def read_slowly(files: list[str], columns: list[str]) -> list[pa.Table]:
        counting.set()
        goes_on.wait(20)
        return []

    def interrupted(*_: Any) -> None:
        assert counting.wait(20)
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "read_files", read_slowly)
    monkeypatch.setattr(pipeline, "_do_parts", interrupted)
    began_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_parts(run)
    assert time.monotonic() - began_s < 10
    goes_on.set()


def test_what_could_not_be_counted_beside_the_work_is_counted_after_it(run, monkeypatch):
    read_files, failures = storage.read_files, []

    def read_once_more(files: list[str], columns: list[str]) -> Any:
        if not failures:
            failures.append("the store was away")
            raise StorageError(failures[0])
        return read_files(files, columns)

    monkeypatch.setattr(storage, "read_files", read_once_more)
    monkeypatch.setattr(pipeline, "_do_parts", do_the_last_part)
    run_parts(run)
    assert failures
    assert run.folder.record["counts"]["images"] == NUM_PARTS * PART_IMAGES


def test_a_store_that_is_away_is_waited_for_with_the_count(run, monkeypatch):
    store_of = files.store_of
    monkeypatch.setattr(files, "store_of", lambda u: S3() if "part-" in u else store_of(u))
    monkeypatch.setattr(retries, "_FIRST_S", 0.01)
    answers = iter([StorageError("away"), StorageError("away"), [], StorageError("away"), []])

    def read(files: list[str], columns: list[str]) -> list[pa.Table]:
        answer = next(answers)
        if isinstance(answer, StorageError):
            raise answer
        return answer

    monkeypatch.setattr(storage, "read_files", read)
    uncounted = [run.folder.part_uri(number) for number in run.folder.written_parts()]
    pipeline._count(uncounted, pipeline.SCORED, progress=None)
    assert uncounted == []
    assert next(answers, None) is None


def test_a_part_that_cannot_be_counted_ends_the_run_with_a_hint(run, monkeypatch):
    monkeypatch.setattr(pipeline, "_do_parts", do_the_last_part)
    Path(run.folder.part_uri(3)).write_bytes(b"no Parquet")
    with pytest.raises(StorageError, match=r"could not be counted: .*part-0000003") as caught:
        run_parts(run)
    assert "the same command counts again" in str(caught.value.hint)
