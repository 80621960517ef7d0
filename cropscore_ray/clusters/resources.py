"""What a Ray cluster has, or could get, and what is asked of it for that.

Nothing here starts or joins a cluster.
"""

import logging
import os

import ray
from ray._private.state import state as ray_state

from cropscore_ray.errors import ConfigError

logger = logging.getLogger(__name__)


def check_workers(num_workers: int, on_gpu: bool) -> None:
    """Raise ConfigError if this machine alone can never start so many workers."""
    kind = "GPU" if on_gpu else "CPU"
    num_here = int(sum(by_node(kind)))
    if not is_joined() and num_workers > num_here:
        raise ConfigError(
            f"num_workers is {num_workers}, but this machine has {num_here} {kind}s for Ray",
            hint="ask for fewer, or name a cluster with RAY_ADDRESS",
        )


def is_joined() -> bool:
    """Return whether Ray is a cluster that was there before, which may grow."""
    return bool(os.environ.get("RAY_ADDRESS"))


def by_node(kind: str) -> list[float]:
    """Return how many of a kind, GPU or CPU, each node has that is alive and has any for work."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [node[kind] for node in nodes if node.get(kind)]


def cpus_here() -> float:
    """Return the CPUs of the node of this worker, as Ray counts them."""
    here = ray.get_runtime_context().get_node_id()
    [node] = [node for node in ray.nodes() if node["NodeID"] == here]
    return float(node["Resources"].get("CPU", 0))


def num_nodes() -> int:
    """Return how many nodes are alive, with those that take no work."""
    return sum(node["Alive"] for node in ray.nodes())


def gpus_in_reach() -> bool:
    """Return whether the connected cluster has GPUs, or says that it can get some.

    Ray 2.60's own autoscaler says nothing: there GPUs must be asked for.
    """
    # Ray has no public way to ask an autoscaler what it could bring; its own trainer asks so.
    reach = ray_state.get_max_resources_from_cluster_config() or {}
    return bool(by_node("GPU") or reach.get("GPU"))


def takes_gpus(num_workers: int, setting: str) -> bool:
    """Return whether workers ask for GPUs where nobody has said so.

    On this machine alone, if it has enough of them. On a cluster, if one is up or the cluster says
    that it can get some; else the user is told of the setting that waits for GPUs all the same.
    """
    num_up = int(sum(by_node("GPU")))
    if not is_joined():
        return num_up >= num_workers
    if not gpus_in_reach():
        logger.warning("no GPU is up, so CPUs do it; %s waits for GPUs", setting)
        return False
    if 0 < num_up < num_workers:
        logger.warning("%d of %d GPUs are up; the others are waited for", num_up, num_workers)
    return True
