"""Reliability of confidences: by hand, and on confidences that are true or false by making."""

import numpy as np
import pytest

from cropscore_ray.evaluation.calibration import reliability


def test_two_bins_by_hand() -> None:
    confidence = np.array([0.9] * 40 + [0.2] * 40)
    hit = np.array([True] * 30 + [False] * 10 + [True] * 4 + [False] * 36)
    found = reliability(confidence, hit)
    assert found is not None
    assert [(one.num_boxes, one.confidence, one.hit_rate) for one in found.bins] == [
        (40, pytest.approx(0.2), pytest.approx(0.1)),
        (40, pytest.approx(0.9), pytest.approx(0.75)),
    ]
    assert found.ece == pytest.approx((0.1 + 0.15) / 2)
    squares = 30 * 0.01 + 10 * 0.81 + 4 * 0.64 + 36 * 0.04
    assert found.brier == pytest.approx(squares / 80)
    assert found.brier_base_rate == pytest.approx(34 / 80 * 46 / 80)
    # Of 34 * 46 pairs, 30 * 36 are in order, 4 * 10 the wrong way, the others tied.
    assert found.auroc == pytest.approx((30 * 36 + 0.5 * (30 * 10 + 4 * 36)) / (34 * 46))
    # The first half are those of 0.9; ties keep their order.
    assert found.error_at_coverage == pytest.approx({"0.5": 0.25, "0.8": 30 / 64, "0.9": 38 / 72})


def test_true_probabilities_are_as_far_off_as_chance() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        confidence = rng.uniform(0.05, 0.95, 900)
        found.append(reliability(confidence, rng.random(900) < confidence))
    ece, chance = (
        np.array([getattr(one, name) for one in found]) for name in ("ece", "ece_by_chance")
    )
    assert ece.mean() == pytest.approx(chance.mean(), rel=0.05)
    assert all(len(one.bins) == 15 for one in found)


def test_too_much_confidence_shows() -> None:
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.1, 0.9, 6000)
    hit = rng.random(6000) < truth
    honest, bold = reliability(truth, hit), reliability(truth**0.5, hit)
    assert honest is not None
    assert bold is not None
    assert honest.ece < 0.03 < 0.15 < bold.ece
    assert honest.brier < honest.brier_base_rate < 0.25
    assert honest.brier < bold.brier
    assert honest.auroc == bold.auroc  # the order is the same


@pytest.mark.parametrize("hit", [True, False])
def test_a_single_box_and_one_sided_outcomes(hit: bool) -> None:
    found = reliability(np.array([0.5]), np.array([hit]))
    assert found is not None
    assert found.auroc is None
    assert found.ece == pytest.approx(0.5)
    assert found.error_at_coverage == {"0.5": 1.0 - hit, "0.8": 1.0 - hit, "0.9": 1.0 - hit}


def test_no_boxes_have_no_reliability() -> None:
    assert reliability(np.zeros(0), np.zeros(0, bool)) is None
