"""Fetching: bytes, or the word for why there are none; never an exception."""

import io
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from cropscore_ray import schema
from cropscore_ray.errors import ImageError
from cropscore_ray.images import fetch
from cropscore_ray.images.archives import Cell
from cropscore_ray.images.fetch import fetch_image, fetch_images
from cropscore_ray.storage import retries
from cropscore_ray.storage.s3 import is_transient


class FakeS3:
    """Answers by the key: bytes, or the error that it names."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        self.asked.append((Bucket, Key))
        if Key == "timeout":
            raise ReadTimeoutError(endpoint_url="http://s3")
        if Key == "offline":
            raise EndpointConnectionError(endpoint_url="http://s3")
        if Key.startswith("error/"):
            raise ClientError({"Error": {"Code": Key[6:], "Message": "no"}}, "GetObject")
        return {"Body": io.BytesIO(Key.encode())}


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> FakeS3:
    fake = FakeS3()
    monkeypatch.setattr(fetch.s3, "client", lambda: fake)
    monkeypatch.setattr(retries, "TOTAL_S", 0.05)
    monkeypatch.setattr(retries, "sleep", lambda seconds: None)
    return fake


def failure(uri: str) -> ImageError:
    with pytest.raises(ImageError) as caught:
        fetch_image(uri)
    assert caught.value.status in schema.STATUSES
    assert uri.split("#")[0] in str(caught.value)
    return caught.value


def test_a_local_file_is_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b#1.jpg").write_bytes(b"\xff\xd8")
    assert fetch_image(str(tmp_path / "a b#1.jpg")) == b"\xff\xd8"
    assert fetch_image(f"file://{tmp_path}/a b#1.jpg") == b"\xff\xd8"
    monkeypatch.chdir(tmp_path)
    assert fetch_image("a b#1.jpg") == b"\xff\xd8"


def test_an_empty_file_is_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    assert fetch_image(str(tmp_path / "empty.jpg")) == b""


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    assert failure(str(tmp_path / "gone.jpg")).status == "missing"
    assert failure(str(tmp_path / "gone" / "a.jpg")).status == "missing"


def test_what_no_file_can_be_is_missing(tmp_path: Path) -> None:
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    names = ("", "self.jpg", "x" * 300, "a\0b.jpg")
    for found in fetch_images(f"{tmp_path}/{name}" for name in names):
        assert isinstance(found, ImageError)
        assert found.status == "missing"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_denied(tmp_path: Path) -> None:
    path = tmp_path / "secret.jpg"
    path.touch(mode=0)
    assert failure(str(path)).status == "denied"


def test_an_unknown_scheme_is_unreachable() -> None:
    assert failure("nowhere://bucket/a.jpg").status == "unreachable"


def test_an_s3_key_goes_out_as_it_is(s3: FakeS3) -> None:
    assert fetch_image("s3://bucket/a/b c%20+.jpg") == b"a/b c%20+.jpg"
    assert s3.asked == [("bucket", "a/b c%20+.jpg")]


@pytest.mark.parametrize(
    ("key", "status"),
    [
        ("error/NoSuchKey", "missing"),
        ("error/NoSuchBucket", "missing"),
        ("error/404", "missing"),
        ("error/AccessDenied", "denied"),
        ("error/SignatureDoesNotMatch", "denied"),
        ("error/InvalidObjectState", "denied"),
        ("error/ExpiredToken", "unreachable"),
        ("error/SlowDown", "throttled"),
        ("error/InternalError", "unreachable"),
        ("timeout", "unreachable"),
        ("offline", "unreachable"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_what_s3_answers_has_a_word(key: str, status: str) -> None:
    assert failure(f"s3://bucket/{key}").status == status


@pytest.mark.parametrize("key", ["error/SlowDown", "error/503", "timeout", "offline"])
def test_what_may_pass_is_asked_for_again_until_it_counts_as_a_failure(
    s3: FakeS3, key: str
) -> None:
    failure(f"s3://bucket/{key}")
    assert len(s3.asked) > 10


@pytest.mark.parametrize("key", ["error/NoSuchKey", "error/AccessDenied", "error/Odd"])
def test_what_will_not_pass_is_asked_for_once(s3: FakeS3, key: str) -> None:
    failure(f"s3://bucket/{key}")
    assert len(s3.asked) == 1


def test_a_file_too_large_to_hold_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "LARGEST_BYTES", 10)
    (tmp_path / "a.jpg").write_bytes(bytes(10))
    (tmp_path / "b.jpg").write_bytes(bytes(11))
    assert fetch_image(str(tmp_path / "a.jpg")) == bytes(10)
    error = failure(str(tmp_path / "b.jpg"))
    assert (error.status, "11 bytes" in str(error)) == ("too_large", True)


def test_an_object_too_large_to_hold_is_not_read(
    s3: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless(io.BytesIO):
        def read(self, *sizes: int | None) -> bytes:
            raise AssertionError("it was read")

    def get_object(**where: str) -> dict[str, Any]:
        return {"Body": Endless(), "ContentLength": fetch.LARGEST_BYTES + 1}

    monkeypatch.setattr(s3, "get_object", get_object)
    assert failure("s3://bucket/key").status == "too_large"


def test_missing_credentials_do_not_pass() -> None:
    assert not is_transient(NoCredentialsError())


def test_the_reader_pays_where_the_bucket_asks_for_it(
    s3: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, payers = s3.get_object, []

    def get_object(RequestPayer: str = "", **where: str) -> dict[str, Any]:
        payers.append(RequestPayer)
        return whole(**where)

    s3.get_object = get_object  # type: ignore[method-assign]
    fetch_image("s3://bucket/key")
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    fetch_image("s3://bucket/key")
    assert payers == ["", "requester"]


def test_a_body_that_breaks_off_is_asked_for_again(s3: FakeS3) -> None:
    class Broken(io.BytesIO):
        def read(self, *sizes: int | None) -> bytes:
            raise ResponseStreamingError(error="reset")

    whole = s3.get_object

    def breaks_once(**where: str) -> dict[str, Any]:
        return {"Body": Broken()} if not s3.asked and whole(**where) else whole(**where)

    s3.get_object = breaks_once  # type: ignore[method-assign]
    assert fetch_image("s3://bucket/key") == b"key"
    assert len(s3.asked) == 2


class OneObject(FakeS3):
    """One object under every key; the requests go wrong that `wrong` has errors for."""

    def __init__(self, data: bytes, wrong: list[Exception]) -> None:
        super().__init__()
        self.data, self.wrong = data, wrong

    def head_object(self, **where: str) -> dict[str, Any]:
        return {"ContentLength": len(self.data)}

    def get_object(self, *, Range: str = "bytes=0-", **where: str) -> dict[str, Any]:
        if self.wrong:
            raise self.wrong.pop()
        start, stop = Range.removeprefix("bytes=").split("-")
        return {"Body": io.BytesIO(self.data[int(start) : int(stop or 10**9) + 1])}


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ([], [b"one", b"two"]),
        ([EndpointConnectionError(endpoint_url="http://s3")], [b"one", b"two"]),
        ([ClientError({"Error": {"Code": "SlowDown"}}, "GetObject")], [b"one", b"two"]),
        ([ClientError({"Error": {"Code": "SlowDown"}}, "GetObject")] * 10**5, ["throttled"] * 2),
        ([ClientError({"Error": {"Code": "AccessDenied"}}, "GetObject")] * 9, ["denied"] * 2),
    ],
)
@pytest.mark.usefixtures("s3")
def test_images_inside_a_table_are_asked_for_again_like_others(
    wrong: list[Exception], expected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [b"one", b"two"]}), sink)
    monkeypatch.setattr(fetch.s3, "client", lambda: OneObject(sink.getvalue(), wrong))
    cells = [Cell("s3://bucket/a.parquet", row, "image").uri for row in (0, 1)]
    found = fetch_images(cells)
    assert [one.status if isinstance(one, ImageError) else one for one in found] == expected


def test_a_damaged_table_is_undecodable_and_no_fault_of_the_store(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b"one" * 1000, b"two" * 999]}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[20:60] = bytes(40)
    path.write_bytes(data)
    assert failure(Cell(str(path), 0, "image").uri).status == "undecodable"


@pytest.mark.usefixtures("s3")
def test_many_come_in_order_with_errors_in_their_places(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    uris = [str(tmp_path / "a.jpg"), "s3://bucket/b", str(tmp_path / "gone"), "s3://bucket/timeout"]
    found = fetch_images(uris * 20)
    assert len(found) == 80
    for i in range(0, 80, 4):
        assert found[i : i + 2] == [b"a", b"b"]
        errors = found[i + 2 : i + 4]
        assert [one.status for one in errors if isinstance(one, ImageError)] == [
            "missing",
            "unreachable",
        ]


def test_no_uris_are_no_images() -> None:
    assert fetch_images([]) == []


@pytest.mark.parametrize(
    ("bytes_each", "sizes"),
    [
        (0, [300]),
        (5, [192, 108]),  # 8 more would fit, which is not worth the while
        (10, [100, 100, 100]),  # the first 64 have 640 bytes, so 36 more fit
        (12, [83, 83, 83, 51]),
        (13, [64, 64, 64, 64, 44]),
        (50, [64, 64, 64, 64, 44]),
    ],
)
def test_groups_have_as_many_images_as_bytes_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_each: int, sizes: list[int]
) -> None:
    uris = [str(tmp_path / f"{i}.jpg") for i in range(300)]
    for i, uri in enumerate(uris):
        Path(uri).write_bytes(b"%03d" % i * (bytes_each > 0) + b"." * (bytes_each - 3))
    monkeypatch.setattr(fetch, "_GROUP_BYTES", 1000)
    groups = list(fetch.fetch_ahead(uris))
    assert [len(group) for group in groups] == sizes
    assert [one for group in groups for one in group] == fetch_images(uris)


@pytest.mark.parametrize("num_small", [64, 128, 512])
def test_a_group_of_small_images_and_then_large_ones_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_small: int
) -> None:
    uris = [str(tmp_path / f"{i}.jpg") for i in range(1000)]
    for i, uri in enumerate(uris):
        Path(uri).write_bytes(b"." if i < num_small else b"." * 1000)
    monkeypatch.setattr(fetch, "_GROUP_BYTES", 10_000)
    assert len(fetch.fetch_group(uris)) == num_small + 64


def test_a_row_group_is_read_once_for_a_group_and_once_for_all_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [bytes([i % 251]) * 1000 for i in range(1000)]
    pq.write_table(pa.table({"image": images}), tmp_path / "t.parquet", row_group_size=1000)
    uris = [Cell(str(tmp_path / "t.parquet"), row, "image").uri for row in range(1000)]
    monkeypatch.setattr(fetch, "_GROUP_BYTES", 128_000)
    read, reads = pq.ParquetFile.read_row_group, []

    def counted(file: pq.ParquetFile, group: int, **options: Any) -> pa.Table:
        reads.append(group)
        return read(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    begun = fetch.fetch_group(uris)
    assert len(begun) == 128
    assert reads == [0]
    groups = list(fetch.fetch_ahead(uris, begun))
    assert [one for group in groups for one in group] == images
    assert len(groups) == 8
    assert reads == [0, 0]


@pytest.mark.usefixtures("s3")
def test_a_store_that_does_not_answer_is_not_asked_for_all_images() -> None:
    uris = ["s3://bucket/offline"] * 1000
    assert len(fetch.fetch_group(uris)) == 64


def test_nobody_waits_for_a_group_behind_one_that_got_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def group(uris: list[str], kept: object) -> list[ImageError | bytes]:
        asked.append(len(uris))
        return [b"a", ImageError("throttled", "slow down")]

    monkeypatch.setattr(fetch, "fetch_group", group)
    groups = fetch.fetch_ahead(["a"] * 6)
    next(groups)
    groups.close()
    assert asked == [6]
    assert len(list(fetch.fetch_ahead(["a"] * 6))) == 3


def test_the_next_group_is_fetched_while_one_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Semaphore(0)

    def group(uris: list[str], kept: object) -> list[bytes]:
        asked.release()
        return [uri.encode() for uri in uris[:1]]

    monkeypatch.setattr(fetch, "fetch_group", group)
    groups = fetch.fetch_ahead(["a", "b"])
    assert next(groups) == [b"a"]
    assert asked.acquire(timeout=20)
    assert asked.acquire(timeout=20)  # for b, before it is wanted
    assert list(groups) == [[b"b"]]
    groups = fetch.fetch_ahead(["a", "b"], begun=[b"a"])
    assert next(groups) == [b"a"]
    assert asked.acquire(timeout=20)  # for b, and nothing for a
    assert list(groups) == [[b"b"]]
    assert not asked.acquire(blocking=False)


def test_many_are_fetched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = threading.Barrier(fetch.s3.CONNECTIONS, timeout=20)

    class Slow(FakeS3):
        def get_object(self, **where: str) -> dict[str, Any]:
            meeting.wait()  # returns only if all of them are under way together
            return super().get_object(**where)

    slow = Slow()
    monkeypatch.setattr(fetch.s3, "client", lambda: slow)
    uris = [f"s3://bucket/{i}" for i in range(fetch.s3.CONNECTIONS)]
    assert fetch_images(uris) == [str(i).encode() for i in range(fetch.s3.CONNECTIONS)]


def test_an_image_error_travels_between_processes() -> None:
    copied = pickle.loads(pickle.dumps(ImageError("denied", "not yours")))
    assert (copied.status, str(copied)) == ("denied", "not yours")
