"""Listing keys of S3 in order, folders side by side, against a client that only plays S3."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cropscore_ray import storage
from cropscore_ray.storage import s3
from cropscore_ray.storage.s3 import S3

WAIT_S = 20


class FakeClient:
    """Lists sorted keys as S3 does, some a page; notes what it was asked."""

    def __init__(self, keys: set[str], page_size: int) -> None:
        self.keys, self.page_size = sorted(keys), page_size
        self.asked: list[dict[str, str]] = []

    def list_objects_v2(
        self, *, Bucket: str, Prefix: str, StartAfter: str, **how: str
    ) -> dict[str, Any]:
        self.asked.append({"Prefix": Prefix, **how})
        start = max(StartAfter, how.get("ContinuationToken", ""))
        names = sorted({self._shown(key, Prefix, how.get("Delimiter")) for key in self.keys})
        found = [name for name, _ in names if name.startswith(Prefix) and name > start]
        page, kinds = found[: self.page_size], dict(names)
        return {
            "Contents": [{"Key": name} for name in page if not kinds[name]],
            "CommonPrefixes": [{"Prefix": name} for name in page if kinds[name]],
            "IsTruncated": len(found) > len(page),
            "NextContinuationToken": page[-1] if page else "",
        }

    def _shown(self, key: str, prefix: str, delimiter: str | None) -> tuple[str, bool]:
        first, slash, _ = key.removeprefix(prefix).partition("/")
        is_folder = bool(delimiter and slash and key.startswith(prefix))
        return (f"{prefix}{first}/", True) if is_folder else (key, False)


def put(monkeypatch: pytest.MonkeyPatch, keys: set[str], page_size: int) -> FakeClient:
    """Put keys into a bucket, of which a folder's first two pages are listed ahead."""
    client = FakeClient(keys, page_size)
    monkeypatch.setattr(s3, "client", lambda: client)
    monkeypatch.setattr(s3, "_PAGES", 2)
    return client


@pytest.fixture
def patched() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield monkeypatch


KEYS = st.lists(st.sampled_from(["a", "b", "a-", "a.", "0", "ab"]), min_size=1, max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    keys=st.sets(KEYS.map("/".join), max_size=60),
    after=KEYS.map("/".join) | st.just(""),
    page_size=st.integers(1, 4),
    large=st.sampled_from([0, 2, 100]),
)
def test_keys_come_in_order_and_once_however_folders_are_nested(
    patched: pytest.MonkeyPatch, keys: set[str], after: str, page_size: int, large: int
) -> None:
    put(patched, keys, page_size)
    patched.setattr(s3, "_LARGE_FOLDER_KEYS", large)
    assert list(s3.iter_keys("bucket", "", after)) == sorted(key for key in keys if key > after)
    below = sorted(key for key in keys if key > after and key.startswith("a/"))
    assert list(s3.iter_keys("bucket", "a/", after if after > "a/" else "")) == below


def test_large_folders_in_a_single_one_are_listed_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {f"train/{folder:03d}/{i:03d}.jpg" for folder in range(8) for i in range(300)}
    client = put(monkeypatch, keys, page_size=100)
    together, met = threading.Barrier(4), []
    first_keys = s3._first_keys

    def meets_others(bucket: str, prefix: str, after: str) -> tuple[list[str], bool]:
        if prefix in {f"train/{folder:03d}/" for folder in range(1, 5)}:
            met.append(together.wait(WAIT_S))
        return first_keys(bucket, prefix, after)

    monkeypatch.setattr(s3, "_first_keys", meets_others)
    assert list(s3.iter_keys("bucket", "", "")) == sorted(keys)
    assert sorted(met) == [0, 1, 2, 3]
    assert len(client.asked) < 50


def test_small_folders_in_a_single_one_cost_no_request_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {f"train/{folder:04d}/{i}.jpg" for folder in range(1000) for i in range(3)}
    client = put(monkeypatch, keys, page_size=100)
    assert list(s3.iter_keys("bucket", "", "")) == sorted(keys)
    assert len(client.asked) < 50


@pytest.mark.parametrize("num_files", [0, 4, 5, 300])
def test_a_flat_prefix_is_not_listed_to_its_end_for_folders(
    monkeypatch: pytest.MonkeyPatch, num_files: int
) -> None:
    monkeypatch.setattr(S3, "most_entries", 5)
    keys = {f"set/{i:03d}.jpg" for i in range(num_files)} | {"set/b/1.jpg", "set/c/1.jpg"}
    client = put(monkeypatch, keys, page_size=2)
    found = list(storage.iter_folders("s3://bucket/set"))
    assert found == (["b", "c"] if num_files < 5 else [])
    assert len(client.asked) <= 4
