"""Clusters by name: which address a command goes to."""

from pathlib import Path

import pytest

from cropscore_ray.clusters import contexts
from cropscore_ray.errors import ConfigError


@pytest.fixture(autouse=True)
def _own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
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


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("secret\n")
    return path


def test_a_token_goes_to_its_own_cluster_alone(token_file, monkeypatch):
    contexts.use("lab", "10.0.0.7")
    contexts.use("cloud", "127.0.0.1", token_file)
    assert contexts.token(None) == "secret"
    assert contexts.token("cloud") == "secret"
    assert contexts.token("lab") is None
    assert contexts.token("http://127.0.0.1:8265") is None
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.8:8265")
    assert contexts.token(None) is None


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_in_the_environment_comes_first(token_file, monkeypatch, name):
    contexts.use("cloud", "127.0.0.1", token_file)
    monkeypatch.setenv(name, "another")
    assert contexts.token(None) is None


def test_a_token_is_forgotten_with_the_address_that_it_belonged_to(token_file):
    contexts.use("cloud", "127.0.0.1", token_file)
    contexts.use("cloud")
    assert contexts.token(None) == "secret"
    contexts.use("cloud", "10.0.0.9")
    assert contexts.token(None) is None


def test_a_token_that_is_gone_is_named(token_file):
    contexts.use("cloud", "127.0.0.1", token_file)
    token_file.unlink()
    with pytest.raises(ConfigError, match="the token of cloud cannot be read"):
        contexts.token(None)


def test_names_that_were_written_before_tokens_were_are_read(tmp_path):
    contexts.file().parent.mkdir()
    contexts.file().write_text('{"current": "lab", "clusters": {"lab": "http://10.0.0.7:8265"}}')
    assert contexts.address(None) == "http://10.0.0.7:8265"
    assert contexts.token(None) is None


def test_a_damaged_file_is_named():
    contexts.use("lab", "10.0.0.7")
    contexts.file().write_text("{")
    with pytest.raises(ConfigError, match=r"clusters\.json is not JSON"):
        contexts.address(None)


@pytest.mark.parametrize("address", ["ray://head:10001", "ftp://head"])
def test_an_address_of_another_kind_is_refused(address):
    with pytest.raises(ConfigError, match="no address of a Ray dashboard"):
        contexts.url(address)
