"""Whether a confidence is a probability: does a box of confidence 0.7 fit seven times in ten?

Shape suffixes: N boxes.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

MOST_BINS = 15
LEAST_IN_A_BIN = 40
COVERAGES = (0.5, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """Boxes of similar confidence, and how many of them fit."""

    num_boxes: int
    confidence: float
    """their mean confidence"""
    hit_rate: float
    """the share of them that fits"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reliability:
    """How far confidences can be believed, and how well they sort boxes."""

    bins: list[Bin]
    """in the order of confidence, with equally many boxes"""
    ece: float
    """expected calibration error: the mean distance of a bin's confidence from its hit rate"""
    ece_by_chance: float
    """what it would be on so few boxes if every confidence were a true probability"""
    brier: float
    """mean squared distance of confidence from hit (1) or miss (0)"""
    brier_base_rate: float
    """the same for one confidence for all, the share that fits"""
    auroc: float | None
    """how often a fitting box has the higher confidence of two; None if all fit or none"""
    error_at_coverage: dict[str, float]
    """the error among the most confident share of the boxes"""


def reliability(confidence_N: NDArray[np.float64], hit_N: NDArray[np.bool_]) -> Reliability | None:
    """Compare confidences with what became of their boxes; None for no boxes.

    Bins hold equally many boxes: fifteen, or fewer where that would leave less than forty in
    each, since the hit rate of a few boxes is mostly chance.
    """
    if not len(confidence_N):
        return None
    order = np.argsort(-confidence_N, kind="stable")
    confidence, hit = confidence_N[order], hit_N[order].astype(np.float64)
    num_bins = max(1, min(MOST_BINS, len(confidence) // LEAST_IN_A_BIN))
    columns = (np.array_split(values, num_bins) for values in (confidence, hit))
    parts = list(zip(*columns, strict=True))[::-1]
    bins = [
        Bin(num_boxes=len(hits), confidence=float(promised.mean()), hit_rate=float(hits.mean()))
        for promised, hits in parts
    ]
    shares = np.array([part.num_boxes for part in bins]) / len(hit)
    off = np.array([abs(part.confidence - part.hit_rate) for part in bins])
    # The mean absolute deviation of a normal is sqrt(2/pi) of its standard deviation.
    spread = np.array([math.sqrt((p * (1 - p)).sum()) / len(p) for p, _ in parts])
    return Reliability(
        bins=bins,
        ece=float(shares @ off),
        ece_by_chance=float(shares @ spread) * math.sqrt(2 / math.pi),
        brier=float(np.square(confidence - hit).mean()),
        brier_base_rate=float(hit.var()),
        auroc=_auroc(confidence, hit),
        error_at_coverage={
            f"{share}": float(1 - hit[: math.ceil(share * len(hit))].mean()) for share in COVERAGES
        },
    )


def _auroc(confidence: NDArray[np.float64], hit: NDArray[np.float64]) -> float | None:
    """Return the area under the ROC curve by ranks (Mann-Whitney), ties counted half."""
    hits, misses = hit.sum(), (1 - hit).sum()
    if not hits or not misses:
        return None
    above = rankdata(confidence)[hit == 1].sum() - hits * (hits + 1) / 2
    return float(above / (hits * misses))
