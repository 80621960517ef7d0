"""When to try again what a storage could not do just now."""

import random
from collections.abc import Iterator
from time import monotonic, sleep

TOTAL_S = 180.0
"""So long a store may be away, or ask for fewer requests, before that counts as a failure."""
_FIRST_S, _LONGEST_S = 0.5, 20.0


def attempts() -> Iterator[int]:
    """Yield 0, and then the number of each further attempt after a pause that grows.

    The pauses are drawn at random below a bound that doubles, so that many clients do not come
    back together. Ends after TOTAL_S; what failed last is then to be raised.
    """
    began_s = monotonic()
    number = 0
    yield number
    while monotonic() - began_s < TOTAL_S:
        sleep(random.uniform(0, min(_LONGEST_S, _FIRST_S * 2.0 ** min(number, 10))))
        number += 1
        yield number
