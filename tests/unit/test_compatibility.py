"""What an earlier version left (tests/compatibility) is what it was: fingerprints, trainings."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cropscore_ray.config.bulk import LocalizeConfig
from cropscore_ray.config.overrides import LATER, to_identity
from cropscore_ray.datasets.manifest import open_manifest
from cropscore_ray.jobs import train
from cropscore_ray.models.bundle import load_bundle
from cropscore_ray.terminal.progress import Progress
from cropscore_ray.training.ledger import STAGES

MADE = Path(__file__).parents[1] / "compatibility"
FINGERPRINTS = {"model": "95048ac336ff88c4", "voting-model": "7a3790dea3b91fbc"}


@pytest.mark.parametrize(("name", "fingerprint"), FINGERPRINTS.items())
def test_a_bundle_keeps_its_fingerprint(name: str, fingerprint: str) -> None:
    assert load_bundle(str(MADE / name)).fingerprint == fingerprint


def test_a_manifest_keeps_its_fingerprint() -> None:
    assert open_manifest(str(MADE / "manifest"), "val").fingerprint == "128b1e35ff9a2e4c"


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_a_trained_bundle_is_already_trained(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(MADE / name, tmp_path / name)
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda _, text: said.append(text))

    model = str(tmp_path / name)
    config = train.first_config("all", model=model, recipe=None)
    bundle = train.run("all", data=str(MADE / "manifest"), model=model, config=config)

    told = "already trained with these settings on these images"
    assert said == [f"{stage}: {told}" for stage in STAGES]
    assert bundle.fingerprint == FINGERPRINTS[name]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Inner:
    old: int = 1
    new: int = field(default=2, metadata=LATER)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outer(_Inner):
    new: int = field(default=5, metadata=LATER)
    inner: _Inner = field(default_factory=_Inner)


def test_a_later_setting_at_its_default_is_no_difference() -> None:
    assert to_identity(_Outer()) == {"old": 1, "inner": {"old": 1}}
    other = _Outer(new=2, inner=_Inner(new=5))
    assert to_identity(other) == {"old": 1, "new": 2, "inner": {"old": 1, "new": 5}}


def test_settings_of_the_first_version_are_never_left_out() -> None:
    names = ["mode", "classes", "top_k", "part_images", "max_megapixels"]
    assert list(to_identity(LocalizeConfig())) == names
