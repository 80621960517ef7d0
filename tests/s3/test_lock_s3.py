"""The lock of a run folder in S3: an object that only one can make and that must be renewed."""

import json

import boto3
import pytest

from cropscore_ray import lock, s3
from cropscore_ray.errors import RunConflictError


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_S", 0.3)
    monkeypatch.setattr(lock, "LEASE_S", 1.5)


@pytest.mark.usefixtures("fast")
def test_a_second_run_is_refused_while_the_first_is_alive(s3_uri: str) -> None:
    said: list[str] = []
    with lock.held(s3_uri, said.append):
        with pytest.raises(RunConflictError, match=f"another run is at work in {s3_uri} "):
            lock.held(s3_uri, said.append).__enter__()
        assert "whether its run is alive" in said[0]
    with lock.held(s3_uri, said.append):
        assert len(said) == 1


@pytest.mark.usefixtures("fast")
def test_a_lock_that_nobody_renews_is_taken_and_never_given_back_by_its_loser(s3_uri: str) -> None:
    bucket, key = s3.bucket_and_key(f"{s3_uri}/{lock.NAME}")
    dead = {"host": "gone", "pid": 7, "token": "dead", "renewals": 3}
    client = boto3.client("s3")
    client.put_object(Bucket=bucket, Key=key, Body=json.dumps(dead).encode())
    said: list[str] = []
    with lock.held(s3_uri, said.append):
        holder = json.loads(client.get_object(Bucket=bucket, Key=key)["Body"].read())
        assert holder["token"] != "dead"
        client.put_object(Bucket=bucket, Key=key, Body=json.dumps(dead).encode())
    assert len(said) == 1
    left = json.loads(client.get_object(Bucket=bucket, Key=key)["Body"].read())
    assert left["token"] == "dead"
