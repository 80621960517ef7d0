"""The bundle: what goes in comes out, and nothing else is believed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cropscore_ray import storage
from cropscore_ray.errors import ModelError, StorageError
from cropscore_ray.jobs import recipes
from cropscore_ray.models.bundle import (
    LOCALIZER,
    SCORER,
    Bundle,
    classifier_part,
    is_bundle,
    load_bundle,
    save_bundle,
    save_part,
)
from cropscore_ray.models.googlenet import make_network
from cropscore_ray.schema import ImageClass
from cropscore_ray.storage import files
from cropscore_ray.storage.s3 import S3

CLASSES = [ImageClass(id="n01", name="café"), ImageClass(id="n02", name="tench, fish")]
WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}


@pytest.fixture
def empty(tmp_path: Path) -> Bundle:
    bundle = Bundle(
        uri=str(tmp_path / "model"),
        config=recipes.smoke(),
        classes=CLASSES,
        parts={},
        baselines={},
    )
    save_bundle(bundle)
    return bundle


def test_a_bundle_comes_back_as_it_was(empty: Bundle) -> None:
    saved = save_part(
        empty, LOCALIZER, WEIGHTS, metrics={"loss": 0.5}, baselines={"cam_threshold": 0.2}
    )
    loaded = load_bundle(saved.uri)
    assert loaded == saved
    assert loaded.fingerprint == saved.fingerprint
    assert loaded.preprocess == recipes.smoke().preprocess
    assert loaded.parts[LOCALIZER]["metrics"] == {"loss": 0.5}
    assert loaded.baselines == {"cam_threshold": 0.2}
    tensors = loaded.tensors(LOCALIZER)
    assert tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(tensors[name], one) for name, one in WEIGHTS.items())


def test_a_store_that_is_away_is_waited_for(empty: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = save_part(empty, LOCALIZER, WEIGHTS, metrics={})
    answers = [StorageError("away"), storage.read_bytes(f"{saved.uri}/localizer.safetensors")]

    def read_bytes(uri: str) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, StorageError):
            raise answer
        return answer

    monkeypatch.setattr(storage, "read_bytes", read_bytes)
    monkeypatch.setattr(files, "store_of", lambda uri: S3())
    assert saved.tensors(LOCALIZER).keys() == WEIGHTS.keys()
    assert not answers


def test_a_network_comes_back_ready_to_use(empty: Bundle) -> None:
    network = make_network(empty.config.network, 2).to(memory_format=torch.channels_last).eval()
    saved = save_part(empty, classifier_part(0), dict(network.state_dict()), metrics={})
    loaded = load_bundle(saved.uri).network("classifier-0")
    pixels = torch.randn(1, 3, 32, 32)
    assert not loaded.training
    torch.testing.assert_close(loaded(pixels), network(pixels))


def test_members_are_counted(empty: Bundle) -> None:
    assert empty.num_members == 0
    for name in (classifier_part(0), classifier_part(1), SCORER):
        empty = save_part(empty, name, WEIGHTS, metrics={})
    assert empty.num_members == 2


def test_a_part_trained_again_takes_the_old_ones_place(empty: Bundle) -> None:
    first = save_part(empty, SCORER, WEIGHTS, metrics={})
    second = save_part(first, SCORER, {"a": torch.zeros(1)}, metrics={})
    assert load_bundle(second.uri).tensors(SCORER)["a"].tolist() == [0.0]


def test_a_tampered_part_is_refused(empty: Bundle) -> None:
    saved = save_part(empty, SCORER, WEIGHTS, metrics={})
    file = Path(saved.uri) / "scorer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelError, match=r"scorer\.safetensors is not the file"):
        load_bundle(saved.uri).tensors(SCORER)


@pytest.mark.parametrize(
    ("part", "stage"),
    [("classifier-0", "classifier"), (SCORER, "scorer"), (LOCALIZER, "localizer")],
)
def test_a_missing_part_names_the_command_to_run(empty: Bundle, part: str, stage: str) -> None:
    with pytest.raises(ModelError, match=f"has no {part}") as caught:
        empty.tensors(part)
    assert caught.value.hint == f"run: cropscore train {stage} --model {empty.uri} --data MANIFEST"


def test_the_fingerprint_follows_what_is_computed_and_not_what_was_measured(empty: Bundle) -> None:
    saved = save_part(empty, SCORER, WEIGHTS, metrics={"loss": 1.0})
    remeasured = save_part(empty, SCORER, WEIGHTS, metrics={"loss": 2.0})
    assert remeasured.fingerprint == saved.fingerprint
    assert replace(saved, uri="elsewhere").fingerprint == saved.fingerprint
    # The CAM baseline's boxes stand in every row.
    assert replace(saved, baselines={"cam_threshold": 0.3}).fingerprint != saved.fingerprint
    config = saved.config
    others = [
        empty,
        save_part(empty, SCORER, {**WEIGHTS, "b": torch.tensor([1, 3])}, metrics={}),
        replace(saved, classes=CLASSES[::-1]),
        replace(saved, config=replace(config, network=replace(config.network, width=0.25))),
        replace(saved, config=replace(config, preprocess=replace(config.preprocess, frame_px=40))),
    ]
    assert len({saved.fingerprint, *(one.fingerprint for one in others)}) == 1 + len(others)


def test_the_normalization_matters_from_the_localizer_on(empty: Bundle) -> None:
    raw = replace(empty.config.localizer, normalization="raw")
    for part, matters in ((SCORER, False), (LOCALIZER, True)):
        saved = save_part(empty, part, WEIGHTS, metrics={})
        other = replace(saved, config=replace(saved.config, localizer=raw))
        assert (other.fingerprint != saved.fingerprint) is matters


def test_a_folder_without_model_json_is_no_bundle(tmp_path: Path) -> None:
    assert not is_bundle(str(tmp_path))
    with pytest.raises(ModelError, match="no model bundle at") as caught:
        load_bundle(str(tmp_path))
    assert "cropscore train" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 1}, "format 1"),
        ({"format": None}, "format None"),
        ({"classes": [{"id": "n01"}]}, "is damaged"),
        ({"classes": None}, "is damaged"),
        ({"config": {"recipe": "x", "colour": 1}}, "is damaged.*colour"),
        ({"config": "smoke"}, "is damaged"),
        ({"config": {}}, "is damaged"),
    ],
)
def test_a_damaged_model_json_is_refused(
    empty: Bundle, change: dict[str, object], reason: str
) -> None:
    file = Path(empty.uri) / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ModelError, match=reason):
        load_bundle(empty.uri)


def test_model_json_without_parts_or_of_another_kind_is_refused(empty: Bundle) -> None:
    file = Path(empty.uri) / "model.json"
    values = json.loads(file.read_text())
    del values["parts"]
    for text, reason in ((json.dumps(values), "damaged: 'parts'"), ("[1, 2]", "format None")):
        file.write_text(text)
        with pytest.raises(ModelError, match=reason):
            load_bundle(empty.uri)
