"""Storage on a local disk; tests/s3 holds the same against an object store."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cropscore_ray import storage
from cropscore_ray.errors import DataError, StorageError
from cropscore_ray.storage import retries


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("uri", "remote"),
    [
        ("s3://bucket/key", True),
        ("gs://bucket", True),
        ("file:///data", False),
        ("/data", False),
        ("run", False),
    ],
)
def test_a_uri_with_a_scheme_other_than_file_is_remote(uri: str, remote: bool) -> None:
    assert storage.is_remote(uri) is remote


def test_absolute_uri_does_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute_uri("a/../run/") == f"{os.getcwd()}/run"
    assert storage.absolute_uri("file:///data/x/") == "/data/x"
    assert storage.absolute_uri("s3://bucket/x/") == "s3://bucket/x"


def test_join_puts_one_slash_between_parts() -> None:
    assert storage.join("s3://bucket/run/", "predictions", "0.parquet") == (
        "s3://bucket/run/predictions/0.parquet"
    )


def test_bytes_come_back_as_written_and_folders_are_made(tmp_path: Path) -> None:
    uri = str(tmp_path / "new" / "folder" / "x.bin")
    storage.write_bytes(uri, b"\x00\xff")
    assert storage.read_bytes(uri) == b"\x00\xff"
    assert storage.read_bytes(f"file://{uri}") == b"\x00\xff"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "t.parquet")
    storage.write_table(uri, pa.table({"id": [1]}))

    def write_half(table: pa.Table, stream: Any, **_: object) -> None:
        stream.write(b"PAR1 half a file")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", write_half)
    with pytest.raises(StorageError, match=f"cannot write {uri}: disk full"):
        storage.write_table(uri, pa.table({"id": [2]}))
    assert files_below(tmp_path) == ["t.parquet"]
    assert storage.read_table(uri)["id"].to_pylist() == [1]


def test_a_first_write_that_fails_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(KeyboardInterrupt):
        storage.write_table(str(tmp_path / "t.parquet"), pa.table({"id": [2]}))
    assert files_below(tmp_path) == []


def test_a_half_written_file_of_a_killed_writer_is_not_read(tmp_path: Path) -> None:
    storage.write_table(str(tmp_path / "a.parquet"), pa.table({"id": [1]}))
    (tmp_path / ".b.parquet.0123").write_bytes(b"PAR1 half")
    (tmp_path / ".b.parquet").write_bytes(b"PAR1 half")
    assert storage.read_table(str(tmp_path))["id"].to_pylist() == [1]


def test_json_keeps_its_value_and_is_legible(tmp_path: Path) -> None:
    uri = str(tmp_path / "run.json")
    storage.write_json(uri, {"name": "Käfer", "rows": [1, None]})
    assert storage.read_json(uri) == {"name": "Käfer", "rows": [1, None]}
    assert "Käfer" in Path(uri).read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00"])
def test_a_file_that_is_not_json_is_a_data_error_that_names_it(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(DataError, match=r"run\.json: not JSON"):
        storage.read_json(str(tmp_path / "run.json"))


def test_a_missing_file_is_a_storage_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*gone") as caught:
        storage.read_bytes(str(tmp_path / "gone"))
    assert caught.value.hint is not None
    assert "\n" not in str(caught.value)


def test_a_file_where_a_folder_should_be_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        storage.write_bytes(str(tmp_path / "file" / "x"), b"1")


def test_an_unknown_scheme_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="cannot open carrier-pigeon://x"):
        storage.exists("carrier-pigeon://x/y")


def test_exists_and_is_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert storage.exists(str(tmp_path))
    assert storage.is_folder(str(tmp_path))
    assert storage.exists(str(tmp_path / "file"))
    assert not storage.is_folder(str(tmp_path / "file"))
    assert not storage.exists(str(tmp_path / "gone"))


def test_files_are_listed_at_any_depth_in_order(tmp_path: Path) -> None:
    for name in ("b", "a/2", "a/1"):
        storage.write_bytes(str(tmp_path / name), b"")
    assert storage.list_files(str(tmp_path)) == [f"{tmp_path}/{n}" for n in ("a/1", "a/2", "b")]
    assert storage.list_files(str(tmp_path / "gone")) == []


def test_a_folder_that_goes_away_while_it_is_listed_has_no_files(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        storage.write_bytes(str(tmp_path / name / "1"), b"")
    files = storage.iter_files(str(tmp_path))
    assert next(files) == f"{tmp_path}/a/1"
    shutil.rmtree(tmp_path / "b")
    assert list(files) == [f"{tmp_path}/c/1"]


def test_a_table_of_several_files_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    metadata = {b"classes": b"[]"}
    for name, ids in (("b.parquet", [3]), ("a.parquet", [2, 1])):
        table = pa.table({"id": ids, "x": ids}).replace_schema_metadata(metadata)
        storage.write_table(str(tmp_path / name), table)
    (tmp_path / "notes.txt").write_text("not a table")
    table = storage.read_table(str(tmp_path), columns=["id"])
    assert table.to_pydict() == {"id": [2, 1, 3]}
    assert table.schema.metadata[b"classes"] == b"[]"


def test_what_lies_in_folders_of_a_folder_is_of_its_table_only_where_asked_for(
    tmp_path: Path,
) -> None:
    for name, ids in (("b.parquet", [2]), ("a/run.parquet", [1])):
        storage.write_table(str(tmp_path / name), pa.table({"id": ids}))
    assert storage.read_table(str(tmp_path))["id"].to_pylist() == [2]
    assert storage.read_table(str(tmp_path), below=True)["id"].to_pylist() == [1, 2]


def test_files_of_different_columns_are_no_table(tmp_path: Path) -> None:
    storage.write_table(str(tmp_path / "a.parquet"), pa.table({"id": [1]}))
    storage.write_table(str(tmp_path / "b.parquet"), pa.table({"x": ["1"]}))
    with pytest.raises(DataError, match="different columns"):
        storage.read_table(str(tmp_path))


def test_row_groups_have_the_size_that_was_asked(tmp_path: Path) -> None:
    uri = str(tmp_path / "t.parquet")
    storage.write_table(uri, pa.table({"id": list(range(10))}), row_group_rows=4)
    assert pq.ParquetFile(uri).num_row_groups == 3


@pytest.mark.parametrize("name", ["gone", "gone.parquet", "."])
def test_no_table_is_a_data_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no Parquet table here"):
        storage.read_table(str(tmp_path / name))


def test_a_damaged_table_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(StorageError, match="cannot read"):
        storage.read_table(str(tmp_path / "t.parquet"))


def test_deleting_a_folder_leaves_its_neighbour(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "run" / "x" / "1"), b"")
    storage.write_bytes(str(tmp_path / "run2" / "1"), b"")
    storage.delete_folder(str(tmp_path / "run"))
    storage.delete_folder(str(tmp_path / "gone"))
    assert files_below(tmp_path) == ["run2/1"]


@pytest.mark.parametrize(
    ("cause", "tries"),
    [(FileNotFoundError(2, "gone"), 1), (PermissionError(13, "no"), 1), (ConnectionError(), 3)],
)
def test_what_is_missing_or_denied_is_not_asked_for_again(
    cause: OSError, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "sleep", lambda seconds: None)
    asked: list[int] = []

    def read() -> str:
        asked.append(1)
        if len(asked) < 3:
            raise StorageError("cannot read it") from cause
        return "read"

    with contextlib.suppress(StorageError):
        assert storage.persistently("s3://bucket/a", read) == "read"
    assert len(asked) == tries
    asked.clear()
    with pytest.raises(StorageError):
        storage.persistently("/a/file", read)
    assert len(asked) == 1
