"""Run folders: begun, gone on with, refused to another run, discarded."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cropscore_ray.bulk.run_folder import RunFolder, discard, open_run, read_record
from cropscore_ray.errors import RunConflictError

IDENTITY = {
    "command": "localize",
    "model": "f00d",
    "split": None,
    "config": {"top_k": 5, "classes": "both"},
}


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "run")


def open_with(uri: str, **changes: Any) -> RunFolder:
    identity = {**IDENTITY, **changes}
    return open_run(uri, table="predictions", identity=identity, facts={"source_uri": "here"})


ROWS = pa.table({"image_id": [1]})


def write_part(run: RunFolder, part: int, *, reached: bool = True) -> None:
    run.write_part(part, ROWS, reached=reached)


def test_a_new_run_tells_what_it_is_before_any_row(uri: str) -> None:
    run = open_with(uri)
    record = json.loads((Path(uri) / "run.json").read_text())
    assert record == run.record == read_record(uri)
    assert record["identity"] == IDENTITY
    assert record["source_uri"] == "here"
    assert record["complete"] is run.complete is False
    assert run.written_parts() == set()


def test_parts_that_are_written_are_known(uri: str) -> None:
    run = open_with(uri)
    for part in (0, 12, 1_234_567, 12_345_678):
        write_part(run, part)
    table = Path(run.table_uri)
    (table / ".part-0000003.parquet.f00").write_bytes(b"half")
    (table / "summary.parquet").write_bytes(b"")
    assert (table / "part-0000012.parquet").exists()
    assert run.written_parts() == {0, 12, 1_234_567, 12_345_678}


def test_the_same_run_goes_on_with_its_record(uri: str) -> None:
    first = open_with(uri)
    write_part(first, 4)
    first.update({"counts": {"images": 3}})
    again = open_with(uri)
    assert again.record == first.record
    assert again.record["counts"] == {"images": 3}
    assert again.written_parts() == {4}


def test_a_part_that_the_store_did_not_answer_for_is_marked_until_it_does(uri: str) -> None:
    run = open_with(uri)
    write_part(run, 4)
    write_part(run, 7, reached=False)
    assert run.written_parts() == {4, 7}
    again = open_with(uri)
    assert again.unreached == {7}
    write_part(again, 7, reached=False)
    assert open_with(uri).unreached == {7}
    write_part(again, 7)
    assert open_with(uri).unreached == frozenset()
    assert again.written_parts() == {4, 7}


def test_a_run_that_is_discarded_leaves_no_mark(uri: str) -> None:
    write_part(open_with(uri), 7, reached=False)
    discard(uri)
    assert open_with(uri).unreached == frozenset()


def test_a_complete_run_says_so_when_it_is_opened(uri: str) -> None:
    open_with(uri).update({"complete": True})
    assert open_with(uri).complete


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"model": "beef"}, 'model: "f00d" there, "beef" now'),
        ({"split": "val"}, 'split: null there, "val" now'),
        ({"config": {"top_k": 1, "classes": "both"}}, "config.top_k: 5 there, 1 now"),
        ({"config": {"top_k": 5}}, 'config.classes: "both" there, null now'),
        ({"colour": True}, "colour: null there, true now"),
    ],
)
def test_another_run_is_refused_and_the_difference_named(
    uri: str, changes: dict[str, Any], difference: str
) -> None:
    open_with(uri)
    before = read_record(uri)
    with pytest.raises(RunConflictError) as caught:
        open_with(uri, **changes)
    assert str(caught.value) == f"{uri} holds another run; {difference}"
    assert "--overwrite" in str(caught.value.hint)
    assert read_record(uri) == before


def test_all_differences_are_named(uri: str) -> None:
    open_with(uri)
    with pytest.raises(RunConflictError, match=r"model: .*; split: "):
        open_with(uri, model="beef", split="val")


def test_rows_that_belong_to_nobody_are_not_touched(uri: str) -> None:
    stray = Path(uri) / "predictions" / "part-0000000.parquet"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"precious")
    with pytest.raises(RunConflictError, match="predictions folder but no run"):
        open_with(uri)
    discard(uri)
    assert stray.read_bytes() == b"precious"


def test_a_run_json_of_another_program_is_refused(uri: str) -> None:
    Path(uri).mkdir()
    (Path(uri) / "run.json").write_text('{"name": "theirs"}')
    with pytest.raises(RunConflictError, match='command: null there, "localize" now'):
        open_with(uri)
    discard(uri)
    assert read_record(uri) == {"name": "theirs"}


def test_a_discarded_run_leaves_room_for_another(uri: str) -> None:
    write_part(open_with(uri), 0)
    notes = Path(uri) / "notes.txt"
    notes.write_text("mine")
    discard(uri)
    assert list(Path(uri).iterdir()) == [notes]
    discard(uri)
    assert open_with(uri, model="beef").written_parts() == set()


def test_a_folder_with_other_files_can_hold_a_run(uri: str) -> None:
    notes = Path(uri) / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    assert not open_with(uri).complete
    assert notes.exists()


def test_no_record_is_none(uri: str) -> None:
    assert read_record(uri) is None
