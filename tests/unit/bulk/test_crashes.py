"""Who is to blame when a process dies: rarely the image, and never its neighbours."""

import pytest

from cropscore_ray.bulk.crashes import Attempt, Crashes

TOGETHER = Attempt(one_by_one=False, crashed=frozenset())
ALONE = Attempt(one_by_one=True, crashed=frozenset())


@pytest.fixture
def crashes() -> Crashes:
    return Crashes()


def test_a_part_is_first_tried_twice_as_a_whole(crashes: Crashes) -> None:
    assert [crashes.begin(7) for _ in range(3)] == [TOGETHER, TOGETHER, ALONE]


def test_an_image_at_which_two_attempts_died_is_to_blame(crashes: Crashes) -> None:
    for _ in range(3):
        crashes.begin(7)
    for image in (70, 71, 72):
        crashes.at(7, image)
    assert crashes.begin(7) == ALONE
    crashes.at(7, 72)
    assert crashes.begin(7) == Attempt(one_by_one=True, crashed=frozenset({72}))


def test_deaths_at_different_images_blame_none(crashes: Crashes) -> None:
    for _ in range(3):
        crashes.begin(7)
    for image in range(70, 76):
        crashes.at(7, image)
        assert crashes.begin(7) == ALONE


def test_deaths_between_images_blame_none(crashes: Crashes) -> None:
    for _ in range(6):
        crashes.begin(7)
        crashes.at(7, 70)
        crashes.at(7, None)
    assert crashes.begin(7) == ALONE


def test_a_part_that_ended_begins_anew_and_others_do_not_matter(crashes: Crashes) -> None:
    for part in (7, 7, 8, 7):
        crashes.begin(part)
    crashes.at(7, 70)
    crashes.end(7)
    assert crashes.begin(7) == TOGETHER
    assert crashes.begin(8) == TOGETHER
