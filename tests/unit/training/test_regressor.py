"""Training the localizer: the batched class-wise stack against a plain loop, the losses by
hand, the confidence, and a training on scores that are the overlaps themselves."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cropscore_ray.config.sections import LocalizerConfig
from cropscore_ray.errors import ConfigError
from cropscore_ray.grid import NUM_SQUARES
from cropscore_ray.models.boxes import NO_BOX, best_iou, pad_boxes
from cropscore_ray.models.regressors import SHARED, Regressors, apply_hidden
from cropscore_ray.training.data.crops import square_overlaps
from cropscore_ray.training.localizer.regressor import (
    ScoredImages,
    ScoredShares,
    joined,
    train_localizer,
    with_mirror_images,
)

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = LocalizerConfig(hidden=(12,), classwise_epochs=15, classwise_learning_rate=0.01)


def quiet(name: str, done: int, total: int, detail: Callable[[], str]) -> None:
    """Show nothing; but what could be shown can be made."""
    assert detail()


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


def train(
    data: ScoredImages, num_classes: int, config: LocalizerConfig, seed: int = 0
) -> tuple[Regressors, dict[str, Any]]:
    """Train on most images; a tenth chooses and a tenth judges."""
    held = len(data) // 10
    parts = [data.take(some) for some in torch.arange(len(data)).tensor_split([held, 2 * held])]
    choosing, judging, learning = parts
    return train_localizer(
        ScoredShares(learning, choosing, judging),
        num_classes=num_classes,
        config=config,
        seed=seed,
        progress=quiet,
    )


@pytest.fixture(scope="module")
def trained() -> tuple[Regressors, dict[str, Any]]:
    config = LocalizerConfig(
        hidden=(64,), epochs=40, batch_size=64, learning_rate=3e-3, classwise_min_images=100
    )
    return train(synthetic(1200, 4), 6, config)


def test_training_on_overlaps_beats_the_constant_box_by_far(
    trained: tuple[Regressors, dict[str, Any]],
) -> None:
    localizer, metrics = trained
    test = synthetic(300, 4, seed=9)
    hits = best_iou(localizer.boxes(test.scores_NF, test.classes_N), test.boxes_NM4) >= 0.5
    constant = torch.tensor([[0.2, 0.2, 0.8, 0.8]]).expand(300, 4)
    constant_hits = best_iou(constant, test.boxes_NM4) >= 0.5
    assert float((~hits).float().mean()) < 0.4 * float((~constant_hits).float().mean())
    counts = [metrics[f"num_{name}"] for name in ("train", "choosing", "judging")]
    assert counts == [960, 120, 120]
    assert metrics["held_back_error"] == pytest.approx(float((~hits).float().mean()), abs=0.1)


def test_classes_without_images_keep_the_shared_regressor(
    trained: tuple[Regressors, dict[str, Any]],
) -> None:
    localizer, metrics = trained
    assert localizer.slot_of_class[4:].tolist() == [SHARED, SHARED]
    own = localizer.slot_of_class[localizer.slot_of_class != SHARED]
    assert own.tolist() == list(range(1, metrics["num_classwise"] + 1))
    assert len(localizer.heads_G4H) == 1 + metrics["num_classwise"]


def test_the_same_seed_trains_the_same_localizer() -> None:
    config = replace(CONFIG, epochs=2)
    data = synthetic(40, 2)
    first, second, other = (train(data, 2, config, seed)[0] for seed in (4, 4, 5))
    assert torch.equal(first.heads_G4H, second.heads_G4H)
    assert not torch.equal(first.heads_G4H[0], other.heads_G4H[0])


@given(st.integers(1, 3), st.lists(st.integers(1, 4), min_size=1, max_size=3))
@settings(max_examples=20, deadline=None)
def test_joined_regressors_give_the_mean_of_their_outputs(number: int, widths: list[int]) -> None:
    sides = [5, *widths]

    def a_regressor() -> Regressors:
        return Regressors(
            hidden=[(torch.randn(o, i), torch.randn(o)) for i, o in pairwise(sides)],
            heads_G4H=torch.randn(1, 4, sides[-1] + 1),
            slot_of_class=torch.full((2,), SHARED),
            confidence=torch.zeros(3, 7),
            normalization="raw",
        )

    def outputs(one: Regressors, scores_NF: torch.Tensor) -> torch.Tensor:
        return apply_hidden(one.hidden, scores_NF) @ one.heads_G4H[0].T

    some, scores_NF = [a_regressor() for _ in range(number)], torch.randn(6, 5)
    mean = torch.stack([outputs(one, scores_NF) for one in some]).mean(0)
    torch.testing.assert_close(outputs(joined(some), scores_NF), mean, rtol=1e-4, atol=1e-4)


def test_several_regressors_begin_at_other_weights_and_are_named_in_the_progress() -> None:
    names: list[str] = []
    data = synthetic(60, 2)
    localizer, _ = train_localizer(
        ScoredShares(*(data.take(some) for some in torch.arange(60).tensor_split([40, 50]))),
        num_classes=2,
        config=replace(CONFIG, hidden=(8,), epochs=1, classwise_epochs=0, num_regressors=3),
        seed=0,
        progress=lambda name, *_: names.append(name),
    )
    assert names == [f"localizer, shared {i} of 3" for i in (1, 2, 3)]
    weight, bias = localizer.hidden[0]
    assert (weight.shape, bias.shape) == ((24, 140), (24,))
    first, second, third = weight.split(8)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_ten_images_of_many_classes_still_train() -> None:
    config = replace(CONFIG, epochs=2, classwise_min_images=1)
    localizer, metrics = train(synthetic(10, 9), 9, config)
    assert (metrics["num_choosing"], metrics["num_judging"]) == (1, 1)
    assert math.isfinite(metrics["held_back_error"])
    assert all(bool(one.isfinite().all()) for one in localizer.to_tensors().values())


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    with pytest.raises(ConfigError, match="the loss is not a number any more"):
        train(synthetic(40, 2), 2, replace(CONFIG, learning_rate=1e30))


def test_no_classwise_epochs_leave_the_shared_regressor_alone() -> None:
    config = replace(CONFIG, epochs=2, classwise_epochs=0)
    localizer, metrics = train(synthetic(60, 2), 2, config)
    assert metrics["num_classwise"] == 0
    assert localizer.slot_of_class.tolist() == [SHARED, SHARED]
    assert metrics["held_back_error"] == metrics["held_back_error_shared"]


def test_images_that_judge_choose_nothing_and_those_that_choose_judge_nothing() -> None:
    config = replace(CONFIG, epochs=6, classwise_min_images=10)
    learning, choosing, judging, others = (synthetic(80, 2, seed) for seed in range(4))

    def result(choosing: ScoredImages, judging: ScoredImages) -> tuple[Regressors, dict[str, Any]]:
        shares = ScoredShares(learning, choosing, judging)
        return train_localizer(shares, num_classes=2, config=config, seed=0, progress=quiet)

    (first, told), (second, told_by_others) = result(choosing, judging), result(choosing, others)
    assert torch.equal(first.heads_G4H, second.heads_G4H)
    assert not torch.equal(first.confidence, second.confidence)
    boxes = first.boxes(judging.scores_NF, judging.classes_N)
    wrong = best_iou(boxes, judging.boxes_NM4) < 0.5
    assert told["held_back_error"] == pytest.approx(float(wrong.float().mean()))
    assert told["held_back_error"] != told_by_others["held_back_error"]


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
