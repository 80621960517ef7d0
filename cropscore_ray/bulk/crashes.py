"""Images that kill the process that works on them: which they are, so that they are left out.

A process can die for many reasons, and mostly not for what it works on: a node is taken away,
memory runs out. So a part that was begun twice in vain is begun a third time image by image, and
only an image at which that ended twice is to blame.
"""

from collections import Counter
from dataclasses import dataclass

_TOGETHER = 2  # attempts at a part before its images are taken image by image
_DEATHS = 2  # at an image, taken alone, before it is to blame


@dataclass(frozen=True, slots=True)
class Attempt:
    """How a part is to be worked on now."""

    one_by_one: bool
    crashed: frozenset[int]
    """Images, by image_id, that are to blame and to be left alone."""


class Crashes:
    """Parts that were begun and not ended, and the images at which processes died."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()
        self._at: dict[int, int] = {}
        self._deaths: Counter[int] = Counter()

    def begin(self, part: int) -> Attempt:
        """Note that a part is begun; return how to work on it."""
        self._begun[part] += 1
        if part in self._at:
            self._deaths[self._at.pop(part)] += 1
        crashed = frozenset(image for image, deaths in self._deaths.items() if deaths >= _DEATHS)
        return Attempt(one_by_one=self._begun[part] > _TOGETHER, crashed=crashed)

    def at(self, part: int, image_id: int | None) -> None:
        """Note that a part is worked on at this image, alone; None: at none, but waited for."""
        self._at.pop(part, None)
        if image_id is not None:
            self._at[part] = image_id

    def end(self, part: int) -> None:
        """Note that a part is done."""
        self._begun.pop(part, None)
        self._at.pop(part, None)
