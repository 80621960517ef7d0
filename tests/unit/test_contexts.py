"""Clusters by name: which address a command goes to."""

from pathlib import Path

import pytest

from cropscore_ray import contexts
from cropscore_ray.errors import ConfigError


@pytest.fixture(autouse=True)
def _own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def test_what_is_given_comes_first_then_the_environment_then_the_name(monkeypatch):
    contexts.use("lab", "10.0.0.7")
    assert contexts.address(None) == "http://10.0.0.7:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.8:8265")
    assert contexts.address(None) == "http://10.0.0.8:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://ray.example")
    assert contexts.address(None) == "https://ray.example"
    assert contexts.address("lab") == "http://10.0.0.7:8265"
    assert contexts.address("head:1234") == "http://head:1234"


def test_an_address_of_rays_own_protocol_is_passed_over(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.8:6379")
    with pytest.raises(ConfigError, match="no cluster is named"):
        contexts.address(None)


def test_a_name_is_chosen_again_without_its_address():
    contexts.use("lab", "http://10.0.0.7:8265")
    contexts.use("cloud", "https://ray.example")
    assert contexts.use("lab") == "http://10.0.0.7:8265"
    assert contexts.address(None) == "http://10.0.0.7:8265"


def test_an_unknown_name_is_refused_with_those_that_are_known():
    contexts.use("lab", "10.0.0.7")
    with pytest.raises(ConfigError, match="no cluster 'lap'") as caught:
        contexts.use("lap")
    assert "lab" in str(caught.value.hint)


def test_a_damaged_file_is_named():
    contexts.use("lab", "10.0.0.7")
    contexts.file().write_text("{")
    with pytest.raises(ConfigError, match=r"clusters\.json is not JSON"):
        contexts.address(None)


@pytest.mark.parametrize("address", ["ray://head:10001", "ftp://head"])
def test_an_address_of_another_kind_is_refused(address):
    with pytest.raises(ConfigError, match="no address of a Ray dashboard"):
        contexts.url(address)
