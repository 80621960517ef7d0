"""The confidence of boxes: a logistic regression on a few figures of each.

Shape suffixes: N boxes; E evidence, the first of which is the constant 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def probabilities(confidence_3E: Tensor, evidence_NE: Tensor) -> Tensor:
    """Return the logistic regression of evidence with its mean, scale and weight, (N,)."""
    mean, scale, weight = confidence_3E
    return torch.sigmoid((evidence_NE - mean) / scale @ weight)


def fit_confidence(evidence_NE: Tensor, hits_N: Tensor) -> Tensor:
    """Return the logistic regression of hits on evidence: (3, E) mean, scale and weight.

    A unit Gaussian prior on the weights keeps it finite when all boxes hit or miss.
    """
    mean, scale = evidence_NE.mean(0), evidence_NE.std(0, correction=0)
    mean[0], scale[0] = 0.0, 1.0  # the constant
    scale = torch.where(scale > 1e-6, scale, torch.ones(()))
    inputs_NE, targets_N = (evidence_NE - mean) / scale, hits_N.float()

    def loss(weight_E: Tensor) -> Tensor:
        logits_N = inputs_NE @ weight_E
        cross_entropy = F.binary_cross_entropy_with_logits(logits_N, targets_N, reduction="sum")
        return cross_entropy + 0.5 * weight_E.square().sum()

    return torch.stack([mean, scale, minimized(loss, torch.zeros(evidence_NE.shape[1]))])


def minimized(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Return the argument at which a smooth loss is least, as L-BFGS finds it from a start."""
    weight = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(weight)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach()
