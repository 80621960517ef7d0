"""What the stages hand to the trainings: images that were held back go nowhere else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from models import random_model

from cropscore_ray import storage
from cropscore_ray.config.overrides import with_settings
from cropscore_ray.datasets.manifest import Manifest, write_manifest
from cropscore_ray.errors import DataError
from cropscore_ray.jobs import recipes
from cropscore_ray.models.bundle import load_bundle
from cropscore_ray.models.pretrained import initial_network
from cropscore_ray.schema import MANIFEST, SCORES, ImageClass
from cropscore_ray.storage.lock import Held
from cropscore_ray.training import stages
from cropscore_ray.training.data.crops import CropDataset
from cropscore_ray.training.data.regions import SquaresDataset
from cropscore_ray.training.data.shares import Shares, TrainingRun, split_boxed, training_manifest
from cropscore_ray.training.localizer.regressor import ScoredShares
from cropscore_ray.training.loop import NetworkTask, Worker

NUM_IMAGES = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return random_model(str(tmp_path_factory.mktemp("model") / "model"), num_classes=3).uri


@pytest.fixture
def run(tmp_path: Path, model: str) -> TrainingRun:
    """A training on images of which every tenth has no known size and every ninth no box."""
    rows = [
        {
            "image_id": i,
            "image_uri": f"{i}.jpg",
            "width_px": None if i % 10 == 9 else 40,
            "height_px": None if i % 10 == 9 else 40,
            "class_index": i % 3,
            "gt_boxes": [] if i % 9 == 8 else [[0.0, 0.0, 20.0, float(1 + i % 40)]],
            "split": "train",
        }
        for i in range(NUM_IMAGES)
    ]
    classes = [ImageClass(id=str(i), name=str(i)) for i in range(3)]
    manifest = Manifest(table=pa.Table.from_pylist(rows, MANIFEST), classes=classes)
    uri = str(tmp_path / "manifest")
    write_manifest(uri, manifest)
    config = with_settings(recipes.smoke(), ["localizer.held_back_fraction=0.4"])
    held = Held(folder_uri=model)
    return TrainingRun(manifest_uri=uri, split=None, model_uri=model, config=config, held=held)


def shares_of(run: TrainingRun) -> Shares:
    return split_boxed(training_manifest(run.manifest_uri, run.split), run.config)


def uris(rows: pa.Table) -> set[str]:
    return set(rows["image_uri"].to_pylist())


def write_scores(uri: str, missing: set[int]) -> str:
    """Write scores of all images but some; the first of each tells which image it is."""
    rows = []
    for i in range(NUM_IMAGES):
        ok = {"scores": [float(i), *[0.0] * 139], "class_rank": 0, "class_index": i % 3}
        failed = {"scores": None, "class_rank": None, "class_index": None, "error": "gone"}
        status = "missing" if i in missing else "ok"
        rows.append({"image_id": i, "status": status} | (failed if i in missing else ok))
    storage.write_table(uri, pa.Table.from_pylist(rows, SCORES))
    return uri


def test_classifiers_never_see_what_is_held_back(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[NetworkTask] = []
    monkeypatch.setattr(stages, "train_networks", lambda asked, worker: tasks.extend(asked) or {})
    stages.train_classifiers(run, Worker())
    held_back = uris(shares_of(run).held_back)
    assert len(tasks) == run.config.classifier.num_members
    for task in tasks:
        seen = set(task.dataset.data.uris)
        assert len(seen) == NUM_IMAGES - len(held_back)
        assert not seen & held_back


@pytest.mark.parametrize(("num", "expected"), [(None, [True, True]), (1, [True, False])])
def test_the_first_members_begin_from_given_weights(
    run: TrainingRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num: int | None,
    expected: list[bool],
) -> None:
    given = initial_network(run.config, 3)
    torch.save(given.state_dict(), tmp_path / "given.pth")
    config = with_settings(run.config, [f"classifier.init={tmp_path}/given.pth"])
    config = replace(config, classifier=replace(config.classifier, init_members=num))
    tasks: list[NetworkTask] = []
    monkeypatch.setattr(stages, "train_networks", lambda asked, worker: tasks.extend(asked) or {})
    stages.train_classifiers(replace(run, config=config), Worker())
    weights = [task.make().fc.weight for task in tasks]
    assert [torch.equal(one, given.fc.weight) for one in weights] == expected


@pytest.mark.parametrize(("mode", "dataset"), [("exact", CropDataset), ("pyramid", SquaresDataset)])
def test_a_scorer_with_an_overlap_head_is_the_classifier_and_the_head(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch, mode: str, dataset: type
) -> None:
    made: dict[str, Any] = {}

    def train(tasks: list[NetworkTask], worker: Worker) -> dict[str, Any]:
        [task] = tasks
        assert isinstance(task.dataset, dataset)
        assert set(task.dataset.data.uris) == uris(shares_of(run).scorer)
        made.update(task.make().state_dict())
        return {task.name: {"weights": made, "metrics": []}}

    monkeypatch.setattr(stages, "train_networks", train)
    config = with_settings(run.config, ["scorer.overlap_width=4", f"mode={mode}"])
    found = stages.train_scorer(replace(run, config=config), Worker())["scorer"]["tensors"]
    plain = load_bundle(run.model_uri).tensors("classifier-0")
    expected = {**plain, **{f"overlap.{name}": one for name, one in made.items()}}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `train_regressors` hands on; nothing is trained."""
    found: dict[str, Any] = {}

    def keep(some: ScoredShares, **options: Any) -> Any:
        del options
        found["scored"] = some
        raise StopIteration

    monkeypatch.setattr(stages, "train_localizer", keep)
    return found


def test_the_localizers_images_learn_choose_and_judge_apart(
    run: TrainingRun, tmp_path: Path, handed: dict[str, Any]
) -> None:
    found = shares_of(run)
    gone = set(found.localizer["image_id"].to_pylist()[:2])
    with pytest.raises(StopIteration):
        stages.train_regressors(run, write_scores(str(tmp_path / "s.parquet"), gone), Worker())
    for rows, scored in zip(
        (found.localizer, found.choosing, found.judging), handed["scored"], strict=True
    ):
        usable = [
            row for row in rows.to_pylist() if row["width_px"] and row["image_id"] not in gone
        ]
        ids = [row["image_id"] for row in usable]
        assert scored.scores_NF[:, 0].tolist() == ids
        assert scored.classes_N.tolist() == [row["class_index"] for row in usable]
        boxes = np.array([row["gt_boxes"][0] for row in usable]) / 40
        torch.testing.assert_close(scored.boxes_NM4[:, 0], torch.from_numpy(boxes).float())


@pytest.mark.parametrize("share", ["localizer", "choosing", "judging"])
def test_a_share_without_any_score_is_an_error_that_counts(
    run: TrainingRun, tmp_path: Path, share: str
) -> None:
    gone = set(getattr(shares_of(run), share)["image_id"].to_pylist())
    scores_uri = write_scores(str(tmp_path / "s.parquet"), gone)
    with pytest.raises(DataError, match=r"only \d+ training images: .*\b0 to"):
        stages.train_regressors(run, scores_uri, Worker())


def test_a_voter_without_sizes_is_refused_before_it_is_trained(run: TrainingRun) -> None:
    manifest = training_manifest(run.manifest_uri, None)
    at = manifest.table.schema.get_field_index("width_px")
    unknown = pa.nulls(len(manifest.table), manifest.table.schema.field(at).type)
    table = manifest.table.set_column(at, manifest.table.schema.field(at), unknown)
    write_manifest(run.manifest_uri, Manifest(table=table, classes=manifest.classes))
    votes = replace(run, config=with_settings(run.config, ["mode=votes"]))
    with pytest.raises(DataError, match="no training image with boxes has a known size"):
        stages.train_voter(votes, Worker())


def test_a_voter_without_images_is_told_so(run: TrainingRun) -> None:
    votes = replace(run, config=with_settings(run.config, ["mode=votes", "max_localizer_images=1"]))
    with pytest.raises(DataError, match="share: 1, held back: 1") as caught:
        stages.train_voter(votes, Worker())
    assert "max_localizer_images" in str(caught.value.hint)
