"""How many images each part of a run has.

A part costs the command that runs some kilobytes to the run's end, a twentieth of a second, and a
file; what a lost worker does again is a part or two. So parts are small as long as they are few,
and grow with the run.
"""

from collections.abc import Iterator, Set
from itertools import count, repeat

# A change of these changes the parts of runs that are not complete.
SMALLEST, LARGEST = 64, 256
_PARTS_OF_A_SIZE = 1024


def sizes(part_images: int | None) -> Iterator[int]:
    """Yield, without end, the number of images of each part.

    Without a number: 64 in each of the first 1,024 parts, 128 in the next 1,024, then 256. A
    million images are 5,187 parts, a hundred million 391,905.
    """
    if part_images is not None:
        yield from repeat(part_images)
    for doublings in count():
        yield from repeat(min(SMALLEST << doublings, LARGEST), _PARTS_OF_A_SIZE)


def parts_by_size(part_images: int | None, num_images: int) -> Iterator[tuple[int, int]]:
    """Yield the sizes that a run's parts have, and how many have each; at last what is left."""
    size, left = part_images or SMALLEST, num_images
    while left >= size:
        number = left // size
        if part_images is None and size < LARGEST:
            number = min(number, _PARTS_OF_A_SIZE)
        yield size, number
        left -= number * size
        if left >= size:
            size *= 2
    if left:
        yield left, 1


def num_parts(part_images: int | None, num_images: int) -> int:
    """Return how many parts a run of so many images has."""
    return sum(number for _, number in parts_by_size(part_images, num_images))


def images_in(parts: Set[int], part_images: int | None, num_images: int | None) -> int:
    """Return how many images some parts have; the last part counts as full if None is known."""
    first, num_images_in = 0, 0
    for number, size in zip(range(max(parts, default=-1) + 1), sizes(part_images), strict=False):
        end = first + size if num_images is None else min(first + size, num_images)
        num_images_in += (end - first) * (number in parts)
        first += size
    return num_images_in
