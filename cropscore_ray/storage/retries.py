"""To try again what a store could not do just now; the caller knows which errors may pass."""

import errno
import logging
import random
from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

logger = logging.getLogger(__name__)

TOTAL_S = 180.0
"""So long a store may be away, or ask for fewer requests, before that counts as a failure."""
_FIRST_S, _LONGEST_S = 0.5, 20.0
_LASTING = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EINVAL, errno.EFBIG}

Result = TypeVar("Result")


def persistently(action: Callable[[], Result], may_pass: Callable[[Exception], bool]) -> Result:
    """Return what an action returns, once it does; raise what it raises if that will not pass.

    The pauses between attempts are drawn at random below a bound that doubles, so that many
    clients do not come back together.
    """
    began_s = monotonic()
    longest_s = _FIRST_S
    while True:
        try:
            return action()
        except Exception as error:
            if not may_pass(error) or monotonic() - began_s > TOTAL_S:
                raise
            logger.info("to be tried again: %s", error)
        sleep(random.uniform(0, longest_s))
        longest_s = min(_LONGEST_S, 2 * longest_s)


def is_transient(error: Exception) -> bool:
    """Return whether the same may succeed in a while, by an OSError's number."""
    return isinstance(error, OSError) and error.errno not in _LASTING
