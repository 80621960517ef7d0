"""The lock of a run folder in S3: an object that only one can make and that must be renewed."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import boto3
import pyarrow as pa
import pytest

from cropscore_ray import storage
from cropscore_ray.bulk import run_folder
from cropscore_ray.errors import RunConflictError
from cropscore_ray.storage import lock, s3


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_S", 0.3)
    monkeypatch.setattr(lock, "LEASE_S", 1.5)


def put_lock(folder_uri: str, token: str) -> None:
    """Make the lock that of a run that does not renew it."""
    bucket, key = s3.bucket_and_key(f"{folder_uri}/{lock.NAME}")
    body = json.dumps({"host": "gone", "pid": 7, "token": token, "renewals": 3})
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=body.encode())


def token_of(folder_uri: str) -> str:
    return str(storage.read_json(f"{folder_uri}/{lock.NAME}")["token"])


def take_over(folder_uri: str, token: str) -> None:
    """Make the lock that of another run, also while its holder renews it.

    Of two writes at once Ceph may keep the first and answer both that they are done.
    """
    while token_of(folder_uri) != token:
        put_lock(folder_uri, token)


@pytest.mark.usefixtures("fast")
def test_a_second_run_is_refused_while_the_first_is_alive(s3_uri: str) -> None:
    said: list[str] = []
    with lock.held(s3_uri, said.append) as held:
        with pytest.raises(RunConflictError, match=f"another run is at work in {s3_uri} "):
            lock.held(s3_uri, said.append).__enter__()
        assert "whether its run is alive" in said[0]
        time.sleep(2)  # longer than a lease
        held.require()
    with lock.held(s3_uri, said.append):
        assert len(said) == 1


@pytest.mark.usefixtures("fast")
def test_a_lock_that_nobody_renews_is_taken_and_never_given_back_by_its_loser(s3_uri: str) -> None:
    put_lock(s3_uri, "dead")
    said: list[str] = []
    with lock.held(s3_uri, said.append):
        assert token_of(s3_uri) != "dead"
        take_over(s3_uri, "dead")
    assert len(said) == 1
    assert token_of(s3_uri) == "dead"


@pytest.mark.usefixtures("fast")
def test_of_several_that_find_a_dead_runs_lock_one_takes_it(s3_uri: str) -> None:
    def start(folder_uri: str, won: list[str], refused: threading.Semaphore) -> None:
        try:
            with lock.held(folder_uri, lambda _: None):
                won.append(token_of(folder_uri))
                for _ in range(3):
                    refused.acquire(timeout=5)
        except RunConflictError:
            refused.release()

    for number in range(3):
        folder_uri, won, refused = f"{s3_uri}/{number}", list[str](), threading.Semaphore(0)
        put_lock(folder_uri, "dead")
        with ThreadPoolExecutor(4) as starts:
            ends = [starts.submit(start, folder_uri, won, refused) for _ in range(4)]
        for end in ends:
            end.result()
        assert len(won) == 1


@pytest.mark.usefixtures("fast")
def test_a_run_that_comes_back_and_finds_another_at_work_writes_nothing_more(s3_uri: str) -> None:
    rows = pa.table({"image_id": [1]})
    with lock.held(s3_uri, lambda _: None) as held:
        run = run_folder.open_run(s3_uri, table="scores", identity={}, facts={}, held=held)
        run.write_part(0, rows, reached=True)
        take_over(s3_uri, "another's")
        before = storage.list_files(s3_uri), storage.read_bytes(f"{s3_uri}/run.json")
        with pytest.raises(RunConflictError, match=f"another run took over {s3_uri} while"):
            run.write_part(1, rows, reached=True)
        with pytest.raises(RunConflictError, match="took over"):
            run.update({"complete": True})
        time.sleep(1)  # some renewals
        assert token_of(s3_uri) == "another's"
        assert before == (storage.list_files(s3_uri), storage.read_bytes(f"{s3_uri}/run.json"))
        storage.delete_file(f"{s3_uri}/{lock.NAME}")  # the other run has ended
        with pytest.raises(RunConflictError, match="took over"):
            run.write_part(1, rows, reached=True)


def test_a_lock_is_replaced_only_while_it_is_as_it_was_seen(s3_uri: str) -> None:
    lease = lock._Lease(f"{s3_uri}/{lock.NAME}")
    put_lock(s3_uri, "dead")
    found = lock._read(lease.where)
    assert found is not None
    put_lock(s3_uri, "another's")  # between the look and the renewal of a run that was paused
    assert not lease._replace(found)
    assert token_of(s3_uri) == "another's"
    storage.delete_file(lease.where)
    assert not lease._replace(found)
    assert not storage.exists(lease.where)
