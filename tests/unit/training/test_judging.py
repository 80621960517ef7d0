"""What is measured with trained networks in a worker: on its device, and while it is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from models import random_model

from cropscore_ray import geometry
from cropscore_ray.errors import DataError, ImageError, StorageError
from cropscore_ray.images import fetch
from cropscore_ray.images.decode import decode
from cropscore_ray.models.bundle import SCORER, Bundle
from cropscore_ray.models.localizer import VotesLocalizer
from cropscore_ray.models.scorer import CropScorer
from cropscore_ray.models.voter import VotingHeads
from cropscore_ray.schema import MANIFEST
from cropscore_ray.training.data.images import LabelledImages
from cropscore_ray.training.localizer.judging import fit_baselines, fit_voter
from cropscore_ray.training.loop import Worker

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_model(str(tmp_path_factory.mktemp("model") / "model"), num_classes=3)


@pytest.fixture(scope="module")
def labelled(draw_labelled: Callable[..., LabelledImages]) -> LabelledImages:
    """Seven images, of which the third and the last cannot be read."""
    drawn = draw_labelled(7, 3, seed=5)
    for gone in (2, 6):
        Path(drawn.uris[gone]).unlink()
    return drawn


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> tuple[Worker, list[tuple[Any, ...]]]:
    """A worker without a GPU where there seems to be one, and what it was told."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    told: list[tuple[Any, ...]] = []

    def progress(name: str, done: int, total: int, detail: Callable[[], str]) -> None:
        told.append((name, done, total, detail()))

    return Worker(device=torch.device("cpu"), progress=progress), told


def heads_of(bundle: Bundle) -> VotingHeads:
    torch.manual_seed(3)
    network = bundle.network(SCORER)
    return VotingHeads(2, network.fc.in_features, network.num_inner, width=16, dropout=0.0)


def test_a_voters_error_is_that_of_its_boxes_on_the_images_that_can_be_read(
    bundle: Bundle, labelled: LabelledImages, worker: tuple[Worker, list[tuple[Any, ...]]]
) -> None:
    weights = heads_of(bundle).state_dict()
    tensors, metrics = fit_voter(bundle, weights, labelled, worker[0])
    scorer = CropScorer(bundle, device=torch.device("cpu"))
    localizer = VotesLocalizer(scorer, tensors)
    wrong = []
    for i in (0, 1, 3, 4, 5):
        pixels = decode(fetch.fetch_image(labelled.uris[i]))
        classes = torch.tensor([[int(labelled.classes[i])]])
        unit, confidence = localizer.boxes(localizer.look([pixels], classes)[0], classes[0])
        box = unit.numpy() * np.tile(pixels.shape[1::-1], 2)
        wrong.append(bool(geometry.iou(box, labelled.boxes[i]).max() < 0.5))
        assert 0 < float(confidence) < 1
    assert metrics == {"num_judging": 5, "held_back_error": pytest.approx(np.mean(wrong))}
    assert bool(tensors["confidence"].any())
    expected = [("localizer, confidence", done, 7, "") for done in range(1, 8)]
    assert worker[1] == expected


def test_images_that_can_none_be_read_judge_nothing(
    bundle: Bundle, labelled: LabelledImages, worker: tuple[Worker, list[tuple[Any, ...]]]
) -> None:
    gone = labelled.take(np.array([2, 6]))
    with pytest.raises(DataError, match="none of the 2 images that were held back"):
        fit_voter(bundle, heads_of(bundle).state_dict(), gone, worker[0])


def test_baselines_come_from_the_images_of_known_size(
    bundle: Bundle, labelled: LabelledImages, worker: tuple[Worker, list[tuple[Any, ...]]]
) -> None:
    rows = [
        {
            "image_id": i,
            "image_uri": labelled.uris[i],
            "width_px": None if i == 4 else 128,
            "height_px": None if i == 4 else 96,
            "class_index": int(labelled.classes[i]),
            "gt_boxes": [[32.0, 24.0, 96.0, 72.0]],
            "split": None,
        }
        for i in range(7)
    ]
    found = fit_baselines(bundle, pa.Table.from_pylist(rows, MANIFEST), worker[0])
    assert (
        geometry.iou(np.array([found["constant_box"]]), np.array([[0.25, 0.25, 0.75, 0.75]])) > 0.5
    )
    assert 0 < found["cam_threshold"] < 1
    assert worker[1][-1] == ("localizer, baselines", 6, 6, "")


def test_what_the_storage_gave_no_answer_for_is_not_left_out(
    bundle: Bundle,
    labelled: LabelledImages,
    worker: tuple[Worker, list[tuple[Any, ...]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away(uris: list[str], kept: object = None) -> list[ImageError]:
        return [ImageError("unreachable", f"{uri}: no answer") for uri in uris]

    monkeypatch.setattr(fetch, "fetch_images", away)
    with pytest.raises(StorageError, match=r"an image is unreachable: .*: no answer"):
        fit_voter(bundle, heads_of(bundle).state_dict(), labelled, worker[0])
