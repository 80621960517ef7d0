"""Who is to blame when a process dies: rarely the image, and never its neighbours."""

import pytest

from cropscore_ray.bulk.crashes import Attempt, Attempts

TOGETHER = Attempt(one_by_one=False, crashed=frozenset())
ALONE = Attempt(one_by_one=True, crashed=frozenset())


@pytest.fixture
def attempts() -> Attempts:
    return Attempts()


def test_a_part_is_first_tried_twice_as_a_whole(attempts: Attempts) -> None:
    assert [attempts.begin(7) for _ in range(3)] == [TOGETHER, TOGETHER, ALONE]


def test_an_image_at_which_two_attempts_died_is_to_blame(attempts: Attempts) -> None:
    for _ in range(3):
        attempts.begin(7)
    for image in (70, 71, 72):
        attempts.at(7, image)
    assert attempts.begin(7) == ALONE
    attempts.at(7, 72)
    assert attempts.begin(7) == Attempt(one_by_one=True, crashed=frozenset({72}))


def test_deaths_at_different_images_blame_none(attempts: Attempts) -> None:
    for _ in range(3):
        attempts.begin(7)
    for image in range(70, 76):
        attempts.at(7, image)
        assert attempts.begin(7) == ALONE


def test_deaths_between_images_blame_none(attempts: Attempts) -> None:
    for _ in range(6):
        attempts.begin(7)
        attempts.at(7, 70)
        attempts.at(7, None)
    assert attempts.begin(7) == ALONE


def test_a_part_that_ended_begins_anew_and_others_do_not_matter(attempts: Attempts) -> None:
    for part in (7, 7, 8, 7):
        attempts.begin(part)
    attempts.at(7, 70)
    attempts.end(7)
    assert attempts.begin(7) == TOGETHER
    assert attempts.begin(8) == TOGETHER
