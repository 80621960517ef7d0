"""Normalized scores: each image on its own, by hand and for any scores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cropscore_ray.models.regressors import normalize_scores

SCORES = torch.tensor([[1.0, 3.0, 5.0], [-2.0, 0.0, 0.0]])

scores = st.lists(st.floats(-50, 50, width=32), min_size=8, max_size=8).map(torch.tensor)


def test_zscore_has_mean_0_and_deviation_1() -> None:
    step = 1.5**0.5  # 2 over the standard deviation of 1, 3, 5, which is sqrt(8 / 3)
    normal = normalize_scores(SCORES, "zscore")
    torch.testing.assert_close(normal[0], torch.tensor([-step, 0.0, step]))
    torch.testing.assert_close(normal[1], torch.tensor([-(2**0.5), 0.5**0.5, 0.5**0.5]))


def test_l2_has_length_1() -> None:
    normal = normalize_scores(torch.tensor([[3.0, 4.0], [0.0, -2.0]]), "l2")
    torch.testing.assert_close(normal, torch.tensor([[0.6, 0.8], [0.0, -1.0]]))


def test_raw_is_as_it_was_in_float32() -> None:
    normal = normalize_scores(SCORES.double(), "raw")
    assert normal.dtype == torch.float32
    assert torch.equal(normal, SCORES)


@pytest.mark.parametrize("normalization", ["zscore", "l2"])
def test_flat_scores_become_zeros(normalization: str) -> None:
    flat = torch.zeros(1, 140)
    assert torch.equal(normalize_scores(flat, normalization), flat)
    assert normalize_scores(flat + 7, "zscore").abs().max() == 0


@settings(max_examples=50)
@given(one=scores, scale=st.floats(0.5, 20), shift=st.floats(-20, 20))
def test_zscore_forgets_scale_and_shift(one: torch.Tensor, scale: float, shift: float) -> None:
    if float(one.std()) > 0.1:
        normal = normalize_scores(one[None], "zscore")
        moved = normalize_scores((scale * one + shift)[None], "zscore")
        torch.testing.assert_close(moved, normal, atol=1e-3, rtol=0)


@settings(max_examples=50)
@given(one=scores, other=scores, normalization=st.sampled_from(("zscore", "l2", "raw")))
def test_an_image_does_not_see_its_neighbours(
    one: torch.Tensor, other: torch.Tensor, normalization: str
) -> None:
    together = normalize_scores(torch.stack([one, other]), normalization)
    alone = normalize_scores(one[None], normalization)
    assert bool(together.isfinite().all())
    torch.testing.assert_close(together[0], alone[0], atol=1e-6, rtol=1e-6)
