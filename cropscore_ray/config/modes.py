"""Modes, and what each asks of the training of its localizer."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalizerKind:
    """What makes the boxes of a mode, as trainings see it."""

    section: str
    """Of TrainConfig: the settings of its training."""
    held_back_shares: int
    """How many shares the held-back images are: 2, to choose its epoch by and to judge by; or 1,
    to judge by."""
    most_held_back: int | None
    """Images held back at most; None: no bound."""


REGRESSORS = LocalizerKind(section="localizer", held_back_shares=2, most_held_back=None)
"""They make boxes from the scores of 140 squares."""
# Each image that judges is looked at alone, and more say nothing new of a confidence.
VOTER = LocalizerKind(section="voter", held_back_shares=1, most_held_back=5000)
"""It makes boxes from the votes of cells."""

LOCALIZER_KINDS = {"exact": REGRESSORS, "pyramid": REGRESSORS, "votes": VOTER}
MODES = tuple(LOCALIZER_KINDS)
SCORE_MODES = tuple(mode for mode, kind in LOCALIZER_KINDS.items() if kind is REGRESSORS)
