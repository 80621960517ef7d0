"""Ray, started in the process or joined over the network."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private.state import state as ray_state
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cropscore_ray.clusters import tokens
from cropscore_ray.errors import ClusterError, ConfigError
from cropscore_ray.storage import s3

logger = logging.getLogger(__name__)

Handle = Any
"""Something of Ray's that lives in another process: a queue, an actor."""

# Ray's own object store takes 30 % of the memory by default; here a few parts are on their way.
_OBJECT_STORE_BYTES = 2**30
_NO_DASHBOARD = "http://127.0.0.1:0"
_LOOK_S = 0.5
_ANSWERS_S = 10.0
_ERRORS = "cropscore_ray.errors."


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine; once a process.

    A local Ray gets at least four logical CPUs: on a machine with two, the reading,
    scoring and writing of a pipeline would wait for one another for ever. It asks for a token,
    unless RAY_AUTH_MODE says otherwise. From then on SIGTERM is what Ctrl-C is.
    """
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        _join(quiet)
    else:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        _provide_token()
        s3.ask_plainly()  # Ray's own processes write checkpoints
        # Ray Train asks a dashboard whether a training's controller lives. This Ray has none, and
        # another cluster's would know nothing of it: the training's workers would be killed.
        os.environ["RAY_API_SERVER_ADDRESS"] = _NO_DASHBOARD
        ray.init(
            address="local",  # else Ray would join one that runs here, or ran and left a trace
            num_cpus=max(4, os.cpu_count() or 1),
            include_dashboard=False,
            configure_logging=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )
    if threading.current_thread() is threading.main_thread():
        # Ray's handler would print a stack of its own C++ before the process ends.
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _join(options: dict[str, Any]) -> None:
    address = os.environ["RAY_ADDRESS"]
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal() and "/" not in host:  # Ray would ask for many minutes
            socket.create_connection((host.strip("[]"), int(port)), _ANSWERS_S).close()
        ray.init(**options)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        reason, *_ = [*str(error).splitlines(), type(error).__name__]
        raise ClusterError(
            f"no Ray cluster can be joined at {address!r}: {reason}",
            hint="RAY_ADDRESS is a head's HOST:6379 on one of its nodes; from elsewhere, submit "
            "the command; unset it to compute on this machine",
        ) from error


def _provide_token() -> None:
    """Make the token of a local Ray, which Ray itself would write for all to read."""
    is_off = os.environ.get("RAY_AUTH_MODE", "token").lower() != "token"
    if is_off or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    try:
        tokens.make(Path.home() / ".ray" / "auth_token")
    except OSError:  # no home, or a read-only one: the token is this process's alone
        os.environ["RAY_AUTH_TOKEN"] = tokens.new()


class _Told:
    """What workers told and nobody has taken yet."""

    def __init__(self) -> None:
        self._events: list[tuple[Any, ...]] = []

    def put(self, event: tuple[Any, ...]) -> None:
        self._events.append(event)

    def take(self) -> list[tuple[Any, ...]]:
        taken, self._events = self._events, []
        return taken


@contextmanager
def events(
    receive: Callable[..., None], nothing: Callable[[], None] | None = None
) -> Iterator[Handle]:
    """Give a queue for workers to `tell` things; each becomes a call of `receive` here.

    It is looked into twice a second; when it is empty, `nothing` is called.

    For progress, which may be lost at the end. The queue is on the node of this process: on
    another it would be lost with that one, and nothing would be told from then on.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = ray.remote(_Told).options(num_cpus=0, scheduling_strategy=here).remote()
    ended = threading.Event()

    def listen() -> None:
        while not ended.wait(_LOOK_S):
            try:
                told = ask(queue.take)
            except RayError:
                return
            for event in told:
                receive(*event)
            if nothing and not told:
                nothing()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield queue
    finally:
        ended.set()
        listener.join(timeout=5)
        ray.kill(queue)


def ask(method: Any, *arguments: Any) -> Any:
    """Call a method of an actor, and wait for what it returns."""
    return ray.get(method.remote(*arguments))


def tell(queue: Handle, *event: Any) -> None:
    """Put an event into the queue of `events`, without waiting and whether it is there or not."""
    queue.put.remote(event)


def innermost(error: BaseException) -> str:
    """Return the line of a remote failure that a person can act on: cropscore's, or the first.

    Ray puts errors of its own around it, and advice about Ray Data at the end.
    """
    text = str(error)
    ours = [line for line in text.splitlines() if line.startswith(_ERRORS)]
    first, _, _ = text.partition("The above exception was the direct cause")
    lines = ours or [line for line in first.splitlines() if line.strip()]
    return lines[-1].strip().removeprefix(_ERRORS) if lines else type(error).__name__


def check_workers(num_workers: int, on_gpu: bool) -> None:
    """Raise ConfigError if this machine alone can never start so many workers."""
    kind = "GPU" if on_gpu else "CPU"
    found = int(sum(_by_node(kind)))
    if not is_joined() and num_workers > found:
        raise ConfigError(
            f"num_workers is {num_workers}, but this machine has {found} {kind}s for Ray",
            hint="ask for fewer, or name a cluster with RAY_ADDRESS",
        )


def is_joined() -> bool:
    """Tell whether Ray is a cluster that was there before, which may grow."""
    return bool(os.environ.get("RAY_ADDRESS"))


def gpus_by_node() -> list[float]:
    """Return the GPUs of each node that is alive and has any."""
    return _by_node("GPU")


def cpus_by_node() -> list[float]:
    """Return the CPUs of each node that is alive and has any for work."""
    return _by_node("CPU")


def cpus_here() -> float:
    """Return the CPUs of the node of this worker, as Ray counts them."""
    here = ray.get_runtime_context().get_node_id()
    [node] = [node for node in ray.nodes() if node["NodeID"] == here]
    return float(node["Resources"].get("CPU", 0))


def num_nodes() -> int:
    """Return how many nodes are alive, with those that take no work."""
    return sum(node["Alive"] for node in ray.nodes())


def _by_node(kind: str) -> list[float]:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [found[kind] for found in nodes if found.get(kind)]


def gpus_in_reach() -> bool:
    """Tell whether the connected cluster has GPUs, or says that it can get some.

    Ray 2.60's own autoscaler says nothing: there GPUs must be asked for.
    """
    # Ray has no public way to ask an autoscaler what it could bring; its own trainer asks so.
    reach = ray_state.get_max_resources_from_cluster_config() or {}
    return bool(gpus_by_node() or reach.get("GPU"))


def takes_gpus(num_workers: int, setting: str) -> bool:
    """Tell whether workers ask for GPUs where nobody has said so.

    On this machine alone, if it has enough of them. On a cluster, if one is up or the cluster says
    that it can get some; else the user is told of the setting that waits for GPUs all the same.
    """
    num_up = int(sum(gpus_by_node()))
    if not is_joined():
        return num_up >= num_workers
    if not gpus_in_reach():
        logger.warning("no GPU is up, so CPUs do it; %s waits for GPUs", setting)
        return False
    if 0 < num_up < num_workers:
        logger.warning("%d of %d GPUs are up; the others are waited for", num_up, num_workers)
    return True


def worker_id() -> str:
    """Return what tells this process from Ray's other workers."""
    return str(ray.get_runtime_context().get_worker_id())
