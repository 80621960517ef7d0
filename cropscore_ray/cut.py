"""How a run's images are cut into parts: how many each part has.

A part costs the command that runs some kilobytes to the run's end, a twentieth of a second, and a
file; what a lost worker does again is at most a part. So parts are small as long as they are
few, and grow with the run.
"""

from collections.abc import Iterator, Set
from itertools import count, repeat

SMALLEST, LARGEST = 64, 1024
_SAME = 1024  # parts of one size, before they double


def sizes(part_images: int | None) -> Iterator[int]:
    """Yield the number of images of each part of a run without end.

    Without a number: 64 in each of the first 1,024 parts, and twice as many in each following
    1,024, up to 1,024 images. So each later part is at most a 512th of the images before it, a
    million images are 4,113 parts, and a hundred million 100,793.
    """
    if part_images is not None:
        yield from repeat(part_images)
    for doublings in count():
        yield from repeat(min(SMALLEST << doublings, LARGEST), _SAME)


def num_parts(part_images: int | None, num_images: int) -> int:
    """Return how many parts a run of so many images has."""
    size, found, left = part_images or SMALLEST, 0, num_images
    while part_images is None and size < LARGEST and left > size * _SAME:
        found, left, size = found + _SAME, left - size * _SAME, 2 * size
    return found - -left // size


def images_in(parts: Set[int], part_images: int | None, num_images: int | None) -> int:
    """Return how many images some parts have; the last part counts as full if None is known."""
    first, found = 0, 0
    for number, size in zip(range(max(parts, default=-1) + 1), sizes(part_images), strict=False):
        end = first + size if num_images is None else min(first + size, num_images)
        found += (end - first) * (number in parts)
        first += size
    return found
