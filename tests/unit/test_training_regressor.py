"""Training the localizer: the batched class-wise stack against a plain loop, the losses by
hand, the confidence, and a training on scores that are the overlaps themselves."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cropscore_ray import geometry
from cropscore_ray.config import LocalizerConfig
from cropscore_ray.features import normalize_scores
from cropscore_ray.grid import NUM_SQUARES
from cropscore_ray.localizer import SHARED, Localizer
from cropscore_ray.training.crops import square_overlaps
from cropscore_ray.training.regressor import (
    NO_BOX,
    ScoredImages,
    Stack,
    best_iou,
    box_loss,
    fine_tune_classes,
    fit_confidence,
    pad_boxes,
    train_localizer,
    with_mirror_images,
)

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = LocalizerConfig(hidden=(12,), classwise_epochs=15, classwise_learning_rate=0.01)


def quiet(name: str, done: int, total: int, loss: float) -> None:
    """Show nothing."""


def random_boxes(rng: np.random.Generator, num_boxes: int) -> np.ndarray:
    sides = rng.uniform(0.2, 0.9, (num_boxes, 2))
    corners = rng.uniform(0, 1 - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def synthetic(num_images: int, num_classes: int, seed: int = 0) -> ScoredImages:
    """Scores are the overlaps of the squares with the true boxes, with some noise."""
    rng = np.random.default_rng(seed)
    boxes = [random_boxes(rng, int(rng.integers(1, 3))) for _ in range(num_images)]
    scores = np.array([square_overlaps(some) for some in boxes])
    scores = 5 * scores + rng.normal(0, 0.1, scores.shape)
    return ScoredImages(
        scores_NF=torch.from_numpy(scores.astype(np.float32)),
        classes_N=torch.from_numpy(rng.integers(0, num_classes, num_images)),
        boxes_NM4=pad_boxes(boxes),
    )


def random_stack(num_scores: int = 140, hidden: int = 12) -> Stack:
    torch.manual_seed(0)
    weights = [torch.randn(1, hidden, num_scores) * 0.1, torch.randn(1, 4, hidden) * 0.3]
    return weights, [torch.zeros(1, hidden), torch.full((1, 4), 0.5)]


def slow_fine_tune(
    shared: Stack, train: ScoredImages, held: ScoredImages, config: LocalizerConfig
) -> tuple[list[Tensor], bool]:
    """Fine-tune one class by itself, with nn.Linear and Adam."""
    first, last = nn.Linear(140, 12), nn.Linear(12, 4)
    model = nn.Sequential(first, nn.ReLU(), last)
    start = [shared[0][0][0], shared[1][0][0], shared[0][1][0], shared[1][1][0]]
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), start, strict=True):
            parameter.copy_(value)

    def loss(data: ScoredImages) -> Tensor:
        features = normalize_scores(data.scores_NF, config.normalization)
        return box_loss(model(features), data.boxes_NM4, config.loss).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=config.classwise_learning_rate)
    before = best_loss = float(loss(held).detach())
    best = [one.detach().clone() for one in model.parameters()]
    for _ in range(config.classwise_epochs):
        pull = sum((p - q).square().sum() for p, q in zip(model.parameters(), start, strict=True))
        optimizer.zero_grad()
        (loss(train) + config.classwise_pull * pull).backward()
        optimizer.step()
        if float(loss(held).detach()) < best_loss:
            best_loss = float(loss(held).detach())
            best = [one.detach().clone() for one in model.parameters()]
    return best, best_loss < before


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_stacked_fine_tuning_equals_a_loop_over_classes(loss: str) -> None:
    config = replace(CONFIG, loss=loss)
    train, held, shared = synthetic(60, 3), synthetic(30, 3, seed=1), random_stack()
    (weights, biases), gained = fine_tune_classes(shared, train, held, torch.arange(3), config)
    for one in range(3):
        mine = (data.take((data.classes_N == one).nonzero()[:, 0]) for data in (train, held))
        best, improved = slow_fine_tune(shared, *mine, config)
        stacked = [weights[0][one], biases[0][one], weights[1][one], biases[1][one]]
        for ours, theirs in zip(stacked, best, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        assert bool(gained[one]) == improved
    assert not torch.allclose(weights[0][0], shared[0][0][0], atol=1e-3)


def test_the_nearest_true_box_counts() -> None:
    predicted = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5]])
    true = pad_boxes(
        [np.array([[0.5, 0.5, 1, 1], [0, 0, 0.5, 0.9]]), np.array([[0.2, 0, 0.5, 0.5]])]
    )
    torch.testing.assert_close(box_loss(predicted, true, "l1"), torch.tensor([0.1, 0.05]))
    torch.testing.assert_close(box_loss(predicted, true, "l2"), torch.tensor([0.04, 0.01]))


def test_padding_is_never_near() -> None:
    padded = pad_boxes([np.array([[0, 0, 1, 1]]), np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5]])])
    assert padded.shape == (2, 2, 4)
    assert padded[0, 1].tolist() == [NO_BOX] * 4
    assert best_iou(torch.tensor([[0.0, 0, 0.5, 0.5]] * 2), padded).tolist() == [0.25, 1.0]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), num_true=st.integers(1, 3))
def test_best_iou_equals_geometrys(seed: int, num_true: int) -> None:
    rng = np.random.default_rng(seed)
    predicted, true = random_boxes(rng, 4), [random_boxes(rng, num_true) for _ in range(4)]
    true[0] = predicted[:1].copy()
    expected = [
        geometry.iou(one[None], some).max() for one, some in zip(predicted, true, strict=True)
    ]
    found = best_iou(torch.from_numpy(predicted).float(), pad_boxes(true))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_an_empty_box_overlaps_nothing() -> None:
    empty = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    assert best_iou(empty, empty[None]).tolist() == [0.0]


def test_confidence_recovers_a_known_logistic() -> None:
    generator = torch.Generator().manual_seed(0)
    evidence = torch.randn(20_000, 3, generator=generator) * 2 + 1
    evidence[:, 0] = 1
    hits = torch.rand(20_000, generator=generator) < torch.sigmoid(
        0.5 + evidence @ torch.tensor([0.0, 0.8, -0.4])
    )
    mean, scale, weight = fit_confidence(evidence, hits)
    slope = weight / scale
    assert slope[1:].tolist() == pytest.approx([0.8, -0.4], abs=0.05)
    assert float(slope[0] - (slope[1:] * mean[1:]).sum()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("hit", [True, False])
def test_confidence_is_finite_when_all_boxes_hit_or_miss(hit: bool) -> None:
    evidence = torch.cat([torch.ones(30, 1), torch.randn(30, 2)], 1)
    evidence[:, 2] = 4.0  # says nothing
    mean, scale, weight = fit_confidence(evidence, torch.full((30,), hit))
    assert bool(torch.isfinite(torch.cat([mean, scale, weight])).all())
    confidence = torch.sigmoid((evidence - mean) / scale @ weight)
    assert bool(((confidence > 0.5) == hit).all())
    assert 0 < float(confidence.min()) <= float(confidence.max()) < 1


@pytest.fixture(scope="module")
def trained() -> tuple[Localizer, dict[str, Any]]:
    config = LocalizerConfig(
        hidden=(64,), epochs=40, batch_size=64, learning_rate=3e-3, classwise_min_images=100
    )
    return train_localizer(synthetic(1200, 4), num_classes=6, config=config, seed=0, progress=quiet)


def test_training_on_overlaps_beats_the_constant_box_by_far(
    trained: tuple[Localizer, dict[str, Any]],
) -> None:
    localizer, metrics = trained
    test = synthetic(300, 4, seed=9)
    hits = best_iou(localizer.boxes(test.scores_NF, test.classes_N), test.boxes_NM4) >= 0.5
    constant = torch.tensor([[0.2, 0.2, 0.8, 0.8]]).expand(300, 4)
    constant_hits = best_iou(constant, test.boxes_NM4) >= 0.5
    assert float((~hits).float().mean()) < 0.4 * float((~constant_hits).float().mean())
    assert metrics["num_train"] == 1020
    assert metrics["num_held_back"] == 180
    assert metrics["held_back_error"] == pytest.approx(float((~hits).float().mean()), abs=0.1)


def test_classes_without_images_keep_the_shared_regressor(
    trained: tuple[Localizer, dict[str, Any]],
) -> None:
    localizer, metrics = trained
    assert localizer.slot_of_class[4:].tolist() == [SHARED, SHARED]
    own = localizer.slot_of_class[localizer.slot_of_class != SHARED]
    assert own.tolist() == list(range(1, metrics["num_classwise"] + 1))
    assert len(localizer.weights[0]) == 1 + metrics["num_classwise"]


def test_the_same_seed_trains_the_same_localizer() -> None:
    config = replace(CONFIG, epochs=2)
    data = synthetic(40, 2)
    first, second, other = (
        train_localizer(data, num_classes=2, config=config, seed=seed, progress=quiet)[0]
        for seed in (4, 4, 5)
    )
    assert torch.equal(first.weights[0], second.weights[0])
    assert not torch.equal(first.weights[0][0], other.weights[0][0])


def test_ten_images_of_many_classes_still_train() -> None:
    config = replace(CONFIG, epochs=2, classwise_min_images=1)
    localizer, metrics = train_localizer(
        synthetic(10, 9), num_classes=9, config=config, seed=0, progress=quiet
    )
    assert metrics["num_held_back"] == 2
    assert math.isfinite(metrics["held_back_error"])
    assert all(bool(one.isfinite().all()) for one in localizer.to_tensors().values())


def test_no_classwise_epochs_leave_the_shared_regressor_alone() -> None:
    config = replace(CONFIG, epochs=2, classwise_epochs=0)
    localizer, metrics = train_localizer(
        synthetic(60, 2), num_classes=2, config=config, seed=0, progress=quiet
    )
    assert metrics["num_classwise"] == 0
    assert localizer.slot_of_class.tolist() == [SHARED, SHARED]
    assert metrics["held_back_error"] == metrics["held_back_error_shared"]


def test_a_mirrored_image_has_mirrored_scores_and_boxes() -> None:
    scores = torch.zeros(1, NUM_SQUARES)
    scores[0, 0] = 1.0  # the cell in the upper left corner
    boxes = torch.tensor([[[0.0, 0.25, 0.5, 1.0], [NO_BOX] * 4]])
    data = ScoredImages(scores_NF=scores, classes_N=torch.tensor([3]), boxes_NM4=boxes)
    both = with_mirror_images(data)
    assert both.classes_N.tolist() == [3, 3]
    assert torch.equal(both.scores_NF[0], scores[0])
    assert both.scores_NF[1].nonzero().tolist() == [[6]]  # the one in the upper right
    assert both.boxes_NM4[1].tolist() == [[0.5, 0.25, 1.0, 1.0], [NO_BOX] * 4]
