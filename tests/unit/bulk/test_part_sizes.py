"""How many images a part has: by hand, and against parts that are really cut."""

from itertools import accumulate, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropscore_ray.bulk import part_sizes

NUMBERS = st.integers(0, 3_000_000)
PART_IMAGES = st.none() | st.integers(50, 5000)


def cut_one_by_one(part_images: int | None, num_images: int) -> list[int]:
    """Return the size of each part, by taking one after the other from what is left."""
    found = []
    for size in part_sizes.sizes(part_images):
        if num_images <= 0:
            return found
        found.append(min(size, num_images))
        num_images -= size
    raise AssertionError("sizes end")


def test_sizes_by_hand() -> None:
    assert list(islice(part_sizes.sizes(7), 3)) == [7, 7, 7]
    sizes = list(islice(part_sizes.sizes(None), 6000))
    doubled = [n for n in range(1, 6000) if sizes[n] != sizes[n - 1]]
    assert doubled == [1024, 2048]
    assert [sizes[n] for n in (0, *doubled, 5999)] == [64, 128, 256, 256]


@pytest.mark.parametrize(
    ("num_images", "num_parts"),
    [(0, 0), (1, 1), (64, 1), (65, 2), (65_536, 1024), (65_537, 1025), (65_665, 1026)],
)
def test_numbers_of_parts_by_hand(num_images: int, num_parts: int) -> None:
    assert part_sizes.num_parts(None, num_images) == num_parts


def test_numbers_that_the_documents_tell() -> None:
    assert part_sizes.num_parts(None, 10**6) == 5187
    assert part_sizes.num_parts(None, 10**7) == 40_343
    assert part_sizes.num_parts(None, 10**8) == 391_905


def test_a_later_part_is_a_small_share_of_what_is_before_it() -> None:
    sizes = list(islice(part_sizes.sizes(None), 20_000))
    before = list(accumulate(sizes, initial=0))
    assert all(512 * sizes[n] <= before[n] for n in range(1024, 20_000))


@given(PART_IMAGES, NUMBERS)
def test_all_parts_have_all_images(part_images: int | None, num_images: int) -> None:
    parts = cut_one_by_one(part_images, num_images)
    by_size = part_sizes.parts_by_size(part_images, num_images)
    assert [size for size, number in by_size for _ in range(number)] == parts
    assert part_sizes.num_parts(part_images, num_images) == len(parts)
    everything = set(range(len(parts)))
    assert part_sizes.images_in(everything, part_images, num_images) == num_images


@given(PART_IMAGES, NUMBERS, st.sets(st.integers(0, 5000)))
def test_some_parts_have_their_images(
    part_images: int | None, num_images: int, some: set[int]
) -> None:
    parts = cut_one_by_one(part_images, num_images)
    some = {number for number in some if number < len(parts)}
    found = part_sizes.images_in(some, part_images, num_images)
    assert found == sum(parts[number] for number in some)
    last_is_full = part_sizes.images_in(some, part_images, None)
    assert found <= last_is_full < found + (part_images or part_sizes.LARGEST)
