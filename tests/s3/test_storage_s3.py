"""Storage against a real S3 server."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cropscore_ray import storage
from cropscore_ray.datasets.files import image_sizes
from cropscore_ray.datasets.manifest import (
    Manifest,
    is_manifest,
    open_manifest,
    read_manifest,
    write_manifest,
)
from cropscore_ray.datasets.sources import index_source
from cropscore_ray.errors import DataError, ImageError, StorageError
from cropscore_ray.images.archives import Member
from cropscore_ray.images.fetch import fetch_images
from cropscore_ray.jobs import index
from cropscore_ray.schema import MANIFEST, ImageClass, rows_to_table
from cropscore_ray.storage import s3
from cropscore_ray.storage.s3 import S3


def test_bytes_come_back_as_written(s3_uri: str) -> None:
    uri = storage.join(s3_uri, "a", "b.bin")
    storage.write_bytes(uri, b"\x00\xffcrop")
    assert storage.read_bytes(uri) == b"\x00\xffcrop"


def test_a_second_write_replaces_the_first(s3_uri: str) -> None:
    uri = storage.join(s3_uri, "one.json")
    storage.write_json(uri, {"step": 1, "long": "x" * 1000})
    storage.write_json(uri, {"step": 2})
    assert storage.read_json(uri) == {"step": 2}


def test_a_prefix_exists_once_something_is_below_it(s3_uri: str) -> None:
    assert not storage.exists(s3_uri)
    storage.write_bytes(storage.join(s3_uri, "deep", "file"), b"1")
    assert storage.exists(s3_uri)
    assert storage.is_folder(s3_uri)
    assert not storage.is_folder(storage.join(s3_uri, "deep", "file"))


def test_listing_gives_whole_uris_in_order_at_any_depth(s3_uri: str) -> None:
    for name in ("b", "a/2", "a/1"):
        storage.write_bytes(storage.join(s3_uri, name), b"1")
    assert storage.list_files(s3_uri) == [f"{s3_uri}/a/1", f"{s3_uri}/a/2", f"{s3_uri}/b"]


def test_listing_nothing_is_empty(s3_uri: str) -> None:
    assert storage.list_files(s3_uri) == []


def test_a_key_with_spaces_percent_and_umlauts_is_found_again(s3_uri: str) -> None:
    uri = storage.join(s3_uri, "ein Käfer 100%+.jpg")
    storage.write_bytes(uri, b"1")
    assert storage.list_files(s3_uri) == [uri]
    assert storage.read_bytes(uri) == b"1"


def test_deleting_a_folder_leaves_its_neighbour(s3_uri: str) -> None:
    storage.write_bytes(storage.join(s3_uri, "run", "x", "1"), b"1")
    storage.write_bytes(storage.join(s3_uri, "run2", "1"), b"1")
    storage.delete_folder(storage.join(s3_uri, "run"))
    assert storage.list_files(s3_uri) == [f"{s3_uri}/run2/1"]


def test_deleting_what_is_not_there_does_nothing(s3_uri: str) -> None:
    storage.delete_folder(storage.join(s3_uri, "nothing"))


def test_a_table_of_several_files_is_read_in_the_order_of_names(s3_uri: str) -> None:
    for name, ids in (("b.parquet", [3]), ("a.parquet", [2, 1])):
        storage.write_table(storage.join(s3_uri, "t", name), pa.table({"id": ids}))
    assert storage.read_table(storage.join(s3_uri, "t"))["id"].to_pylist() == [2, 1, 3]


def test_a_manifest_keeps_rows_and_classes(s3_uri: str) -> None:
    classes = [ImageClass(id="n1", name="Käfer")]
    rows = [{"image_id": 0, "image_uri": f"{s3_uri}/0.jpg", "gt_boxes": [[0.0, 1.0, 2.0, 3.0]]}]
    manifest = Manifest(table=rows_to_table(rows, MANIFEST), classes=classes)
    write_manifest(s3_uri, manifest)
    assert is_manifest(s3_uri)
    assert not is_manifest(s3_uri.rsplit("/", 1)[0]), "it only lies below"
    assert read_manifest(s3_uri).classes == classes
    assert read_manifest(s3_uri).fingerprint() == manifest.fingerprint()


def test_a_missing_key_is_a_storage_error_that_names_it(s3_uri: str) -> None:
    with pytest.raises(StorageError, match=f"cannot read {s3_uri}/gone") as caught:
        storage.read_bytes(storage.join(s3_uri, "gone"))
    assert "AWS" in (caught.value.hint or "")


def test_no_table_under_a_prefix_is_a_data_error(s3_uri: str) -> None:
    with pytest.raises(DataError, match="no Parquet table here"):
        storage.read_table(storage.join(s3_uri, "gone"))
    with pytest.raises(DataError, match="no Parquet table here"):
        storage.table_schema(storage.join(s3_uri, "gone"))


@pytest.mark.parametrize("action", ["write", "read"])
def test_a_missing_bucket_is_a_storage_error(s3_endpoint: str, action: str) -> None:
    uri = "s3://no-such-bucket-here/x"
    with pytest.raises(StorageError, match=f"cannot {action} {uri}"):
        storage.write_bytes(uri, b"1") if action == "write" else storage.read_bytes(uri)


def test_wrong_credentials_are_a_storage_error_and_not_a_missing_file(
    new_bucket: str, has_radosgw: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_radosgw:
        pytest.skip("moto accepts every key; install Ceph's programs to run this")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3._client.cache_clear()
    with pytest.raises(StorageError, match="cannot look at") as caught:
        storage.exists(f"s3://{new_bucket}/x")
    assert "403" in str(caught.value)
    s3._client.cache_clear()


def test_a_new_process_finds_the_server_by_its_environment_alone(s3_uri: str) -> None:
    uri = storage.join(s3_uri, "run.json")
    storage.write_json(uri, {"complete": True})
    code = "import sys; from cropscore_ray import storage; print(storage.read_json(sys.argv[1]))"
    command = [sys.executable, "-c", code, uri]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout == "{'complete': True}\n"


def test_a_write_that_fails_halfway_leaves_the_old_object(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = storage.join(s3_uri, "t.parquet")
    storage.write_table(uri, pa.table({"id": [1]}))

    def write_half(table: pa.Table, stream: Any, **_: object) -> None:
        stream.write(b"PAR1 half a file")
        raise ValueError("stopped in the middle")

    monkeypatch.setattr(pq, "write_table", write_half)
    with pytest.raises(ValueError, match="stopped in the middle"):
        storage.write_table(uri, pa.table({"id": [2]}))
    assert storage.list_files(s3_uri) == [uri]
    assert storage.read_table(uri)["id"].to_pylist() == [1]


def test_images_inside_archives_and_tables_are_read_by_range(s3_uri: str) -> None:
    images = [bytes([number]) * 2000 for number in range(5)]
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for number, data in enumerate(images):
            entry = tarfile.TarInfo(f"{number}.jpg")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    storage.write_bytes(f"{s3_uri}/set-0.tar", sink.getvalue())
    storage.write_table(f"{s3_uri}/set.parquet", pa.table({"image": images}), row_group_rows=2)
    for source in (f"tar:{s3_uri}/set-*.tar", f"parquet:{s3_uri}/set.parquet"):
        rows = index_source(source).manifest.table.to_pylist()
        assert fetch_images(row["image_uri"] for row in rows) == images
    beyond = Member(f"{s3_uri}/set-0.tar", 10**6, 10, "x.jpg").uri
    [gone] = fetch_images([beyond])
    assert isinstance(gone, ImageError)
    assert gone.status == "missing"


def test_of_an_archive_that_breaks_off_the_headers_before_are_read(s3_uri: str) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for number in range(3):
            entry = tarfile.TarInfo(f"{number}.jpg")
            entry.size = 3 * 2**20  # more than comes with a request
            tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    storage.write_bytes(f"{s3_uri}/set.tar", sink.getvalue()[: 4 * 2**20])
    report = index_source(f"tar:{s3_uri}/set.tar").report
    assert (report.num_images, list(report.problems)) == (2, ["unreadable_archive"])


@pytest.fixture
def as_another_user(
    s3_server: Any, has_radosgw: bool, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Be somebody who owns no bucket; Ceph's gateway asks such a reader to pay."""
    if not has_radosgw:
        pytest.skip("moto asks no reader to pay; install Ceph's programs to run this")
    command = ["radosgw-admin", "-c", str(s3_server.folder / "ceph.conf"), "-n", "client.rgw"]
    command += ["user", "create", "--uid=reader", "--display-name=reader"]
    command += ["--access-key=readerkey", "--secret-key=readersecret"]
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "readerkey")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "readersecret")
    s3._client.cache_clear()
    yield
    s3._client.cache_clear()


def test_every_kind_of_source_is_read_where_the_reader_pays(
    s3_uri: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket, _ = s3.bucket_and_key(s3_uri)
    sink = io.BytesIO()
    Image.new("RGB", (30, 20)).save(sink, "JPEG")
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        entry = tarfile.TarInfo("1.jpg")
        entry.size = len(sink.getvalue())
        tar.addfile(entry, io.BytesIO(sink.getvalue()))
    storage.write_bytes(f"{s3_uri}/set/cat/1.jpg", sink.getvalue())
    storage.write_bytes(f"{s3_uri}/set.tar", (tmp_path / "set.tar").read_bytes())
    storage.write_table(f"{s3_uri}/set.parquet", pa.table({"image": [sink.getvalue()]}))
    index.run(f"{s3_uri}/set", f"{s3_uri}/manifest")
    client, arn = boto3.client("s3"), f"arn:aws:s3:::{bucket}"
    everyone = {"Effect": "Allow", "Principal": "*", "Resource": [arn, f"{arn}/*"]}
    policy = {
        "Version": "2012-10-17",
        "Statement": [{**everyone, "Action": ["s3:GetObject", "s3:ListBucket"]}],
    }
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    client.put_bucket_request_payment(
        Bucket=bucket, RequestPaymentConfiguration={"Payer": "Requester"}
    )
    request.getfixturevalue("as_another_user")
    with pytest.raises(StorageError, match="AccessDenied"):
        storage.read_bytes(f"{s3_uri}/set/cat/1.jpg")
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    assert open_manifest(f"{s3_uri}/manifest").num_images == 1
    sources = (f"{s3_uri}/set", f"tar:{s3_uri}/set.tar", f"parquet:{s3_uri}/set.parquet")
    for number, source in enumerate(sources):
        index.run(source, str(tmp_path / f"{number}"))
        [row] = storage.read_table(str(tmp_path / f"{number}")).to_pylist()
        assert list(image_sizes([row["image_uri"]])) == [(30, 20)]
        assert fetch_images([row["image_uri"]]) == [sink.getvalue()]


def test_keys_are_listed_in_order_over_pages_and_folders(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, prefix = s3.bucket_and_key(s3_uri)
    names = [f"many/{i:04d}.jpg" for i in range(1100)]
    names += ["many-more/1.jpg", "a.jpg", "a/b/c.jpg", "z/ä ö+%.jpg", "many.jpg"]
    client = boto3.client("s3")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: client.put_object(Bucket=bucket, Key=f"{prefix}/{n}"), names))
    client.put_object(Bucket=bucket, Key=f"{prefix}/empty/")
    expected = sorted(f"{s3_uri}/{name}" for name in names)
    assert list(storage.iter_files(s3_uri)) == expected
    for after in (expected[0], expected[5], expected[600], expected[-2], f"{s3_uri}/many/05"):
        later = [uri for uri in expected if uri > after]
        assert list(storage.iter_files(s3_uri, after)) == later
    folders = ["a", "empty", "many-more", "many", "z"]
    assert list(storage.iter_folders(s3_uri)) == folders
    monkeypatch.setattr(S3, "most_entries", 2)  # a.jpg and a/
    assert list(storage.iter_folders(s3_uri)) == folders
    monkeypatch.setattr(S3, "most_entries", 1)
    assert list(storage.iter_folders(s3_uri)) == []
    monkeypatch.setattr(s3, "_PAGES", 1)  # what many/ has left is a level of its own
    assert list(storage.iter_files(s3_uri)) == expected
    with pytest.raises(StorageError, match="cannot list s3://no-such-bucket-here"):
        next(storage.iter_files("s3://no-such-bucket-here/x"))
