"""Ray, started in the process or joined over the network."""

import logging
import os
from typing import Any

import ray

# Ray's own object store takes 30 % of the memory by default; rows are small here.
_OBJECT_STORE_BYTES = 512 * 2**20


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine; once a process.

    A local Ray gets at least four logical CPUs: on a machine with two, the reading,
    scoring and writing of a pipeline would wait for one another for ever.
    """
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        num_cpus=max(4, os.cpu_count() or 1),
        include_dashboard=False,
        configure_logging=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        **quiet,
    )


def num_gpus() -> int:
    """Return the GPUs that the connected cluster has now."""
    return int(ray.cluster_resources().get("GPU", 0))


def num_nodes() -> int:
    """Return the nodes that are alive in the connected cluster."""
    return sum(bool(node["Alive"]) for node in ray.nodes())
