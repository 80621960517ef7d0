"""Classifiers' errors on one crop and on ten, against the scorer's own probabilities."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cropscore_ray.cli import main
from cropscore_ray.config.sections import NetworkConfig, PreprocessConfig, TrainConfig
from cropscore_ray.datasets.drawn import draw_image_set
from cropscore_ray.datasets.manifest import read_manifest
from cropscore_ray.errors import ImageError, StorageError
from cropscore_ray.evaluation import classifiers
from cropscore_ray.images.decode import decode
from cropscore_ray.jobs import index
from cropscore_ray.models.bundle import Bundle, save_bundle, save_part
from cropscore_ray.models.googlenet import make_network
from cropscore_ray.models.scorer import CropScorer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Bundle]:
    folder: Path = tmp_path_factory.mktemp("classify")
    labels = draw_image_set(str(folder / "images"), num_train=8, num_val=24, seed=3)
    manifest = str(folder / "manifest")
    index.run(f"csv:{labels}", manifest)
    classes = read_manifest(manifest).classes
    config = TrainConfig(
        recipe="test",
        preprocess=PreprocessConfig(input_px=32, frame_px=40),
        network=NetworkConfig(architecture="googlenet-small", width=0.125),
    )
    bundle = Bundle(
        uri=str(folder / "model"), config=config, classes=classes, parts={}, baselines={}
    )
    save_bundle(bundle)
    for member in range(2):
        torch.manual_seed(member)
        weights = dict(make_network(config.network, len(classes)).state_dict())
        bundle = save_part(bundle, f"classifier-{member}", weights, metrics={})
    return manifest, bundle


def test_errors_are_those_of_the_probabilities(made: tuple[str, Bundle], tmp_path: Path) -> None:
    manifest, bundle = made
    rows = read_manifest(manifest).only("val").table.to_pylist()
    Path(rows[3]["image_uri"]).write_bytes(b"broken")  # an error in every row
    scorer, wrong = CropScorer(bundle), np.zeros((3, 2, 2))
    for i, row in enumerate(rows):
        if i == 3:
            wrong += 1
            continue
        pixels = decode(Path(row["image_uri"]).read_bytes())
        members = scorer.member_probabilities([pixels])[:, 0].numpy()
        torch.testing.assert_close(
            scorer.classify([pixels])[0], torch.from_numpy(members.mean((0, 1)))
        )
        for network, views in enumerate([*members, members.mean(0)]):
            for crops, one in enumerate((views[4], views.mean(0))):
                rank = list(np.argsort(-one)).index(row["class_index"])
                wrong[network, crops] += [rank >= 1, rank >= 5]
    out = tmp_path / "errors.json"
    result = CliRunner().invoke(
        main, ["evaluate", bundle.uri, "--data", manifest, "--json", str(out)]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    names = ["classifier-0", "classifier-1", "mean of 2"]
    assert [(one["network"], one["num_crops"]) for one in found] == [
        (name, crops) for name in names for crops in (1, 10)
    ]
    assert {one["num_images"] for one in found} == {24}
    for at, one in enumerate(found):
        expected = wrong[at // 2, at % 2] / 24
        assert [one["cls_top1"], one["cls_top5"]] == pytest.approx(list(expected))
    assert "mean of 2" in result.stdout


def test_images_of_other_classes_are_refused(made: tuple[str, Bundle], tmp_path: Path) -> None:
    _, bundle = made
    folder = tmp_path / "photos" / "unknown"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"")
    index.run(str(tmp_path / "photos"), str(tmp_path / "m"))
    arguments = ["evaluate", bundle.uri, "--data", str(tmp_path / "m")]
    result = CliRunner().invoke(main, arguments, catch_exceptions=True)
    assert result.exit_code == 1
    assert "has a class of the model" in str(result.exception) + result.output


def test_all_images_of_a_group_are_where_the_networks_are(
    made: tuple[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, bundle = made
    rows = read_manifest(manifest).only("val").table.to_pylist()[10:13]
    moved: list[object] = []
    monkeypatch.setattr(CropScorer, "to_device", lambda self, one: moved.append(one) or one)
    scorer, uris = CropScorer(bundle), [row["image_uri"] for row in rows]
    groups = classifiers._groups(scorer, uris, [0, 1, 2])
    assert [id(one) for images, _ in groups for one in images] == [id(one) for one in moved]
    assert len(moved) == 3


def test_a_class_whose_probability_is_no_number_is_the_last() -> None:
    probabilities = torch.tensor([[0.2, 0.3, 0.5], [math.nan, 0.3, 0.5]])
    assert classifiers._ranks(probabilities, torch.tensor([0, 0])).tolist() == [2, 3]


def test_an_image_that_the_storage_gave_no_answer_for_is_no_error_of_a_network(
    made: tuple[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    away = ImageError("throttled", "slow down")
    monkeypatch.setattr(classifiers, "fetch_ahead", lambda uris: [[away] * len(uris)])
    with pytest.raises(StorageError, match="an image is throttled: slow down"):
        list(classifiers._groups(CropScorer(made[1]), ["a.jpg"], [0]))
