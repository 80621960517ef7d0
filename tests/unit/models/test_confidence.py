"""The logistic regression behind the confidence."""

import pytest
import torch

from cropscore_ray.models.confidence import fit_confidence


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
