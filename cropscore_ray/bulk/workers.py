"""How many processes hold a model, and what each takes of its node."""

import math
from dataclasses import dataclass

from cropscore_ray.clusters import resources
from cropscore_ray.config.bulk import WorkerConfig
from cropscore_ray.errors import ConfigError

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
    def num_threads(self) -> int | None:
        """What a process without a GPU computes with; None: all cores that it sees.

        A container may see more cores than it has; Ray's number of CPUs is what it has.
        """
        return round(self.num_cpus / _SHARE) or None

    @property
    def num_fetches(self) -> int:
        """How many parts are fetched at once.

        Two for each that works on one, since a part may be large; where nodes may come, enough
        for dozens. Without a bound Ray Data would keep half of all CPUs for fetching.
        """
        return 2 * self.most if self.most else max(_FETCHES, 2 * self.num_now)


def pool(workers: WorkerConfig) -> Pool:
    """Return the pool for the cluster as it is now, and as it may become.

    Raises:
        ConfigError: this machine, which is no cluster, has no room for what is asked for.
    """
    per_gpu = workers.gpus_per_worker
    if per_gpu is None:
        per_gpu = float(resources.takes_gpus(1, "--gpus-per-worker 1"))
    per_cpu = 0.0 if per_gpu else _SHARE * min(resources.by_node("CPU"), default=1.0)
    room = _room(per_gpu, per_cpu)
    if not resources.is_joined() and room < (workers.num_workers or 1):
        kind = f"of {per_gpu:g} GPUs" if per_gpu else "without a GPU"
        raise ConfigError(
            f"this machine has room for {room} workers {kind}, not {workers.num_workers or 1}",
            hint="change --workers or --gpus-per-worker, or name a cluster with RAY_ADDRESS",
        )
    return Pool(
        num_now=workers.num_workers or max(1, room),
        most=workers.num_workers or (None if resources.is_joined() else room),
        num_gpus=per_gpu,
        num_cpus=per_cpu,
    )


def _room(num_gpus: float, num_cpus: float) -> int:
    """Return how many workers the nodes have room for now."""
    if num_gpus:
        return sum(map(int, resources.by_node("GPU"))) * math.floor(1 / num_gpus + 1e-9)
    return sum(math.floor(cpus / num_cpus) for cpus in resources.by_node("CPU"))
