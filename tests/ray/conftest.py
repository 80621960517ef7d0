"""What the tests on a local Ray share."""

import pytest
from flow import Flow, make_flow


@pytest.fixture(scope="session")
def flow(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Flow:
    """A model that was trained on Ray, and a run of it on Ray."""
    return make_flow(tmp_path_factory.mktemp("flow"))
