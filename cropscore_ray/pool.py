"""How many processes hold a model, and what each takes of its node."""

import math
from dataclasses import dataclass

from cropscore_ray import runtime
from cropscore_ray.config import WorkerConfig

_SHARE = 0.75
"""Of the CPUs of a node without GPUs, taken by its worker: more than half, so that there is one
a node, and less than all, so that something is left to fetch with."""
_FETCHES = 8


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
    """Of each process; a process on a GPU leaves them to those that fetch."""

    @property
    def num_fetches(self) -> int:
        """How many parts are fetched at once.

        Two for each that works on one, since a part may be large; where nodes may come, enough
        for dozens. Without a bound Ray Data would keep half of all CPUs for fetching.
        """
        return 2 * self.most if self.most else max(_FETCHES, 2 * self.num_now)


def pool(workers: WorkerConfig) -> Pool:
    """Return the pool for the cluster as it is now, and as it may become."""
    per_gpu = workers.gpus_per_worker
    if per_gpu is None:
        per_gpu = 1.0 if runtime.gpus_in_reach() else 0.0
    per_cpu = 0.0 if per_gpu else _SHARE * min(runtime.cpus_by_node(), default=1.0)
    most = workers.num_workers or (None if runtime.is_joined() else _room(per_gpu, per_cpu))
    return Pool(
        num_now=workers.num_workers or max(1, _room(per_gpu, per_cpu)),
        most=most,
        num_gpus=per_gpu,
        num_cpus=per_cpu,
    )


def _room(num_gpus: float, num_cpus: float) -> int:
    """Return how many workers the nodes have room for now."""
    if num_gpus:
        return sum(math.floor(found / num_gpus) for found in runtime.gpus_by_node())
    return sum(math.floor(found / num_cpus) for found in runtime.cpus_by_node())
