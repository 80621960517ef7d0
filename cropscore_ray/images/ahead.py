"""A thread makes items before they are asked for; what they are is not known here."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def made_ahead(
    items: Iterator[Item], *, depth: int = 1, stops_at: Callable[[Item], bool] | None = None
) -> Iterator[Item]:
    """Yield items, none of them None; while an item is in use, the next are made in a thread.

    Args:
        items: makes an item each time that it is asked for the next.
        depth: how many are made ahead.
        stops_at: whether nothing is to be made while an item is in use.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        ready = [thread.submit(next, items, None) for _ in range(depth)]
        while (item := ready.pop(0).result()) is not None:
            waits = stops_at is not None and stops_at(item)
            ready += [] if waits else [thread.submit(next, items, None)]
            yield item
            ready += [thread.submit(next, items, None)] if waits else []
