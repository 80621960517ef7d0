"""Losses of boxes and their IoU: by hand, and against the geometry module."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cropscore_ray import geometry
from cropscore_ray.models.boxes import NO_BOX, best_iou, generalized_iou, pad_boxes
from cropscore_ray.training.objectives.boxes import box_loss

LOSSES = ("euclidean", "l2", "l1", "giou")


def random_boxes(rng: np.random.Generator, num_boxes: int) -> np.ndarray:
    sides = rng.uniform(0.2, 0.9, (num_boxes, 2))
    corners = rng.uniform(0, 1 - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def test_the_nearest_true_box_counts() -> None:
    predicted = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5]])
    true = pad_boxes(
        [np.array([[0.5, 0.5, 1, 1], [0, 0, 0.5, 0.9]]), np.array([[0.2, 0, 0.5, 0.5]])]
    )
    torch.testing.assert_close(box_loss(predicted, true, "l1"), torch.tensor([0.1, 0.05]))
    torch.testing.assert_close(box_loss(predicted, true, "l2"), torch.tensor([0.04, 0.01]))
    torch.testing.assert_close(box_loss(predicted, true, "euclidean"), torch.tensor([0.4, 0.2]))
    # IoU 5/9, and no gap between the union and its hull; IoU 3/5 the same.
    torch.testing.assert_close(box_loss(predicted, true, "giou"), torch.tensor([4 / 9, 2 / 5]))


def test_padding_is_never_near() -> None:
    padded = pad_boxes([np.array([[0, 0, 1, 1]]), np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5]])])
    assert padded.shape == (2, 2, 4)
    assert padded[0, 1].tolist() == [NO_BOX] * 4
    assert best_iou(torch.tensor([[0.0, 0, 0.5, 0.5]] * 2), padded).tolist() == [0.25, 1.0]


@settings(max_examples=50)
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


def test_giou_of_boxes_apart_counts_the_gap() -> None:
    one, other = torch.tensor([0.0, 0.0, 0.2, 0.2]), torch.tensor([0.6, 0.6, 1.0, 1.0])
    # No overlap; areas 0.04 and 0.16 in a hull of 1.
    assert float(generalized_iou(one, other)) == pytest.approx(-0.8)


@pytest.mark.parametrize("loss", LOSSES)
@given(seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_a_step_down_the_slope_comes_nearer(loss: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = pad_boxes([random_boxes(rng, 1), random_boxes(rng, 3)])
    predicted = torch.from_numpy(random_boxes(rng, 2)).float().requires_grad_()
    before = box_loss(predicted, true, loss).sum()
    before.backward()
    assert predicted.grad is not None
    assert bool(predicted.grad.isfinite().all())
    after = box_loss(predicted.detach() - 1e-3 * predicted.grad, true, loss).sum()
    assert float(after) < float(before.detach())


@pytest.mark.parametrize("loss", LOSSES)
def test_a_box_on_its_true_box_is_at_rest(loss: str) -> None:
    true = torch.tensor([[[0.25, 0.25, 0.75, 0.75], [NO_BOX] * 4]])
    predicted = true[:, 0].clone().requires_grad_()
    value = box_loss(predicted, true, loss)
    value.sum().backward()
    assert predicted.grad is not None
    assert float(value.detach()) == pytest.approx(0, abs=2e-4)
    assert bool(predicted.grad.isfinite().all())
