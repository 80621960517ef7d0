"""The localizer: a stack of regressors that equals the regressors one by one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cropscore_ray.models.regressors import (
    NUM_EVIDENCE,
    SHARED,
    Regressors,
    box_evidence,
    from_tensors,
    ordered,
)


def some_regressors(num_slots: int, slot_of_class: list[int]) -> Regressors:
    torch.manual_seed(num_slots)
    return Regressors(
        hidden=[(torch.randn(8, 6), torch.randn(8)), (torch.randn(5, 8), torch.randn(5))],
        heads_G4H=0.1 * torch.randn(num_slots, 4, 6),
        slot_of_class=torch.tensor(slot_of_class),
        confidence=torch.randn(3, NUM_EVIDENCE),
        normalization="raw",
    )


def constant_localizer(boxes: list[list[float]], slot_of_class: list[int]) -> Regressors:
    """Answer with a box of its slot, whatever the scores."""
    heads = torch.zeros(len(boxes), 4, 7)
    heads[:, :, -1] = torch.tensor(boxes)
    return Regressors(
        hidden=[],
        heads_G4H=heads,
        slot_of_class=torch.tensor(slot_of_class),
        confidence=torch.stack([torch.zeros(7), torch.ones(7), torch.zeros(7)]),
        normalization="raw",
    )


@settings(max_examples=50)
@given(classes=st.lists(st.integers(0, 3), max_size=12))
def test_the_stack_equals_separate_regressors(classes: list[int]) -> None:
    localizer = some_regressors(3, [0, 2, 1, 2])
    scores = torch.randn(len(classes), 6, generator=torch.Generator().manual_seed(0))
    boxes = localizer.boxes(scores, torch.tensor(classes, dtype=torch.int64))
    assert boxes.shape == (len(classes), 4)
    (first, first_bias), (second, second_bias) = localizer.hidden
    for box, one, score in zip(boxes, classes, scores, strict=True):
        head = localizer.heads_G4H[localizer.slot_of_class[one]]
        x = torch.relu(second @ torch.relu(first @ score + first_bias) + second_bias)
        expected = ordered((head[:, :-1] @ x + head[:, -1])[None])[0]
        torch.testing.assert_close(box, expected, atol=1e-6, rtol=1e-5)


def test_a_class_without_a_regressor_gets_the_shared_one() -> None:
    shared, own = [0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 1.0, 1.0]
    localizer = constant_localizer([shared, own], [SHARED, 1, SHARED])
    boxes = localizer.boxes(torch.zeros(3, 6), torch.tensor([0, 1, 2]))
    assert boxes.tolist() == [shared, own, shared]


def test_boxes_are_put_in_order_and_inside_the_image() -> None:
    wild = torch.tensor([[0.75, 0.5, 0.25, 1.5], [-1.0, 0.1, 2.0, 0.1]])
    expected = torch.tensor([[0.25, 0.5, 0.75, 1.0], [0.0, 0.1, 1.0, 0.1]])
    assert torch.equal(ordered(wild), expected)


def test_evidence_of_a_box_by_hand() -> None:
    evidence = box_evidence(
        torch.tensor([[1.0, 3.0, 5.0]]), torch.tensor([[0.25, 0.5, 0.75, 0.75]])
    )
    expected = [1.0, 5.0, 3.0, math.sqrt(8 / 3), 0.5, 0.25, 0.125]
    assert evidence.shape == (1, NUM_EVIDENCE)
    torch.testing.assert_close(evidence[0], torch.tensor(expected))


def test_confidence_is_the_logistic_of_standardized_evidence() -> None:
    localizer = constant_localizer([[0.0, 0.0, 1.0, 1.0]], [SHARED])
    localizer.confidence[0, 1] = 3.0  # the mean of the highest score
    localizer.confidence[1, 1] = 2.0  # its spread
    localizer.confidence[2, 0] = 0.5
    localizer.confidence[2, 1] = math.log(3)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    [found] = localizer.confidences(torch.tensor([[1.0, 5.0, 2.0]]), boxes).tolist()
    assert found == pytest.approx(1 / (1 + math.exp(-0.5) / 3))


def test_some_regressors_survives_the_bundles_tensors() -> None:
    before = some_regressors(3, [0, 2, 1])
    after = from_tensors(before.to_tensors(), "raw")
    scores, classes = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    boxes = before.boxes(scores, classes)
    assert torch.equal(after.boxes(scores, classes), boxes)
    assert torch.equal(after.confidences(scores, boxes), before.confidences(scores, boxes))
