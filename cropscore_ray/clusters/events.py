"""Events, answers and failures of Ray's other processes; what they are about is not known here."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Handle = Any
"""Something of Ray's that lives in another process: a queue, an actor."""

_LOOK_S = 0.5
_ERRORS = "cropscore_ray.errors."


class _Events:
    """Events that nobody has taken yet."""

    def __init__(self) -> None:
        self._events: list[tuple[Any, ...]] = []

    def put(self, event: tuple[Any, ...]) -> None:
        self._events.append(event)

    def take(self) -> list[tuple[Any, ...]]:
        taken, self._events = self._events, []
        return taken


@contextmanager
def queue(
    receive: Callable[..., None], nothing: Callable[[], None] | None = None
) -> Iterator[Handle]:
    """Give a queue for workers to `tell` things; each becomes a call of `receive` here.

    It is looked into twice a second; when it is empty, `nothing` is called.

    For progress, which may be lost at the end. The queue is on the node of this process: on
    another it would be lost with that node, and all later events with it.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    told = ray.remote(_Events).options(num_cpus=0, scheduling_strategy=here).remote()
    ended = threading.Event()

    def listen() -> None:
        while not ended.wait(_LOOK_S):
            try:
                taken = ask(told.take)
            except RayError:
                return
            for event in taken:
                receive(*event)
            if nothing and not taken:
                nothing()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield told
    finally:
        ended.set()
        listener.join(timeout=5)
        ray.kill(told)


def ask(method: Any, *arguments: Any) -> Any:
    """Call a method of an actor, and wait for what it returns."""
    return ray.get(method.remote(*arguments))


def tell(told: Handle, *event: Any) -> None:
    """Put an event into a `queue`, without waiting and whether it is there or not."""
    told.put.remote(event)


def worker_id() -> str:
    """Return an id that no other worker of Ray has."""
    return str(ray.get_runtime_context().get_worker_id())


def innermost(error: BaseException) -> str:
    """Return the line of a remote failure that a person can act on: cropscore's, or the first.

    Ray puts errors of its own around it, and advice about Ray Data at the end.
    """
    text = str(error)
    ours = [line for line in text.splitlines() if line.startswith(_ERRORS)]
    first, _, _ = text.partition("The above exception was the direct cause")
    lines = ours or [line for line in first.splitlines() if line.strip()]
    return lines[-1].strip().removeprefix(_ERRORS) if lines else type(error).__name__
