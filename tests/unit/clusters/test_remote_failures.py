"""What is said of a failure in one of Ray's other processes."""

import pytest

from cropscore_ray.clusters import events

DIRECT = "\n\nThe above exception was the direct cause of the following exception:\n\n"
RAYS = (
    "ray::MapBatches(fetch_part)() (pid=7)\n"
    "ray.exceptions.UserCodeException: UDF failed to process a data block.\n"
    "To change retry attempts, configure `ray.data.DataContext.get_current()`."
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "ray::MapBatches(fetch_part)() (pid=7)\nOSError: no route"
            + DIRECT
            + '  File "parts.py"'
            "\ncropscore_ray.errors.StorageError: no image of part 3 could be had" + DIRECT + RAYS,
            "StorageError: no image of part 3 could be had",
        ),
        (
            'ray::MapBatches(fetch_part)() (pid=7)\n  File "parts.py"\n'
            "ZeroDivisionError: division by zero" + DIRECT + RAYS,
            "ZeroDivisionError: division by zero",
        ),
        ("The actor died.\n  It was killed.\n", "It was killed."),
        ("", "Exception"),
    ],
    ids=["cropscore's", "another's", "Ray's", "none"],
)
def test_the_line_that_helps_is_said(text: str, said: str) -> None:
    assert events.innermost(Exception(text)) == said
