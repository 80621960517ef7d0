"""Tokens: made once, and for their owner alone."""

import os
from pathlib import Path

import pytest

from cropscore_ray.clusters import tokens


@pytest.fixture(autouse=True)
def generous_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_token_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "token"
    tokens.make(path)
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700
    assert len(bytes.fromhex(path.read_text())) == 32


def test_a_token_that_is_there_is_kept(tmp_path: Path) -> None:
    tokens.make(tmp_path / "token")
    before = (tmp_path / "token").read_text()
    tokens.make(tmp_path / "token")
    assert (tmp_path / "token").read_text() == before


def test_a_token_that_others_can_read_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("known")
    (tmp_path / "token").chmod(0o644)
    tokens.make(tmp_path / "token")
    assert mode(tmp_path / "token") == 0o600
    assert (tmp_path / "token").read_text() == "known"


def test_two_tokens_differ() -> None:
    assert tokens.new() != tokens.new()
