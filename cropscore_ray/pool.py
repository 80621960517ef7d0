"""How many processes hold a model, and what each takes of its node."""

import math
from dataclasses import dataclass

from cropscore_ray import runtime
from cropscore_ray.config import WorkerConfig

_CPUS_LEFT = 1
"""CPUs of a node without GPUs that are left to fetch and to write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Processes with a model: one a GPU, or a part of one, or one a node without GPUs."""

    num_now: int
    """To begin with; those that no node has room for wait for one."""
    most: int | None
    """None: as many as nodes come to have room for."""
    num_gpus: float
    """Of each process."""
    num_cpus: float
    """Of each process; a process on a GPU leaves them to those that fetch and write."""


def pool(workers: WorkerConfig) -> Pool:
    """Return the pool for the cluster as it is now, and as it may become."""
    per_gpu = workers.gpus_per_worker
    if per_gpu is None:
        per_gpu = 1.0 if runtime.gpus_in_reach() else 0.0
    per_cpu = 0.0 if per_gpu else _cpus_of_a_worker()
    most = workers.num_workers or (None if runtime.is_joined() else _room(per_gpu, per_cpu))
    return Pool(
        num_now=workers.num_workers or max(1, _room(per_gpu, per_cpu)),
        most=most,
        num_gpus=per_gpu,
        num_cpus=per_cpu,
    )


def _cpus_of_a_worker() -> float:
    """Return nearly all CPUs of the smallest node, so that no two workers share one."""
    return max(0.5, min(runtime.cpus_by_node(), default=1.0) - _CPUS_LEFT)


def _room(num_gpus: float, num_cpus: float) -> int:
    """Return how many workers the nodes have room for now."""
    if num_gpus:
        return sum(math.floor(found / num_gpus) for found in runtime.gpus_by_node())
    return sum(math.floor(found / num_cpus) for found in runtime.cpus_by_node())
