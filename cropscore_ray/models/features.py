"""From 140 raw scores to the regressor's input.

Shape suffixes: N images; F = 140 scores.
"""

import torch
from torch import Tensor

_SMALLEST = 1e-6  # a flat score vector becomes zeros instead of infinities


def normalize_scores(scores_NF: Tensor, normalization: str) -> Tensor:
    """Return each image's scores normalized on their own, (N, 140) float32.

    zscore: mean 0 and standard deviation 1; l2: length 1; raw: as they are. The poster
    says "normalized" and no more; METHOD row 10 compares them.
    """
    scores = scores_NF.float()
    if normalization == "zscore":
        centered = scores - scores.mean(1, keepdim=True)
        return centered / scores.std(1, correction=0, keepdim=True).clamp_min(_SMALLEST)
    if normalization == "l2":
        length: Tensor = torch.linalg.vector_norm(scores, dim=1, keepdim=True)
        return scores / length.clamp_min(_SMALLEST)
    assert normalization == "raw", normalization
    return scores
