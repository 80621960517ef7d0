"""The localizer: a stack of regressors that equals the regressors one by one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cropscore_ray.localizer import (
    NUM_EVIDENCE,
    SHARED,
    Localizer,
    apply_stack,
    box_evidence,
    from_tensors,
    ordered,
)


def regressors(num_slots: int) -> list[nn.Sequential]:
    torch.manual_seed(num_slots)
    return [
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4))
        for _ in range(num_slots)
    ]


def stacked(models: list[nn.Sequential]) -> tuple[list[Tensor], list[Tensor]]:
    layers = [[one for one in model if isinstance(one, nn.Linear)] for model in models]
    by_depth = list(zip(*layers, strict=True))
    weights = [torch.stack([one.weight.detach() for one in depth]) for depth in by_depth]
    biases = [torch.stack([one.bias.detach() for one in depth]) for depth in by_depth]
    return weights, biases


def constant_localizer(boxes: list[list[float]], slot_of_class: list[int]) -> Localizer:
    """Answer with a box of its slot, whatever the scores."""
    return Localizer(
        weights=[torch.zeros(len(boxes), 4, 6)],
        biases=[torch.tensor(boxes)],
        slot_of_class=torch.tensor(slot_of_class),
        confidence=torch.stack([torch.zeros(7), torch.ones(7), torch.zeros(7)]),
        normalization="raw",
    )


@settings(max_examples=50, deadline=None)
@given(slots=st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_the_stack_equals_separate_regressors(slots: list[int]) -> None:
    models = regressors(4)
    features = torch.randn(len(slots), 6, generator=torch.Generator().manual_seed(0))
    outputs = apply_stack(*stacked(models), features, torch.tensor(slots))
    with torch.inference_mode():
        alone = [models[slot](one[None])[0] for slot, one in zip(slots, features, strict=True)]
    torch.testing.assert_close(outputs, torch.stack(alone), atol=1e-6, rtol=1e-5)


def test_no_images_give_no_boxes() -> None:
    nothing = torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)
    assert apply_stack(*stacked(regressors(2)), *nothing).shape == (0, 4)


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


def test_a_localizer_survives_the_bundles_tensors() -> None:
    weights, biases = stacked(regressors(3))
    before = Localizer(
        weights=weights,
        biases=biases,
        slot_of_class=torch.tensor([0, 2, 1]),
        confidence=torch.randn(3, NUM_EVIDENCE),
        normalization="l2",
    )
    after = from_tensors(before.to_tensors(), "l2")
    scores, classes = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    boxes = before.boxes(scores, classes)
    assert torch.equal(after.boxes(scores, classes), boxes)
    assert torch.equal(after.confidences(scores, boxes), before.confidences(scores, boxes))
