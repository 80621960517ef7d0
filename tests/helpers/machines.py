"""A Ray cluster of several nodes on this machine, whose processes are killed by tests."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from ray.cluster_utils import Cluster

WAIT_S = 120
TRAIN_WORKER = "RayTrainWorker"
IMPATIENT = [
    sys.executable,
    "-c",
    "from cropscore_ray import cli; from cropscore_ray.storage import lock; "
    "lock.RENEW_S, lock.LEASE_S = 0.5, 2.0; cli.main()",
]
"""cropscore that looks for 2 seconds, in place of 20, whether a folder's run is alive."""


@dataclass
class Machines:
    """A head without CPUs for workers, and nodes that come and go; processes are Ray's own."""

    num_nodes: int = 2
    cpus_per_node: int = 2
    has_dashboard: bool = False
    """Eight processes more, which Ray Train's workers ask whether their training lives."""
    cluster: Cluster = field(init=False)

    def __post_init__(self) -> None:
        head = {"num_cpus": 0, "include_dashboard": self.has_dashboard}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(self.num_nodes):
            self.add_node()

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to join the cluster."""
        return os.environ | {"RAY_ADDRESS": self.cluster.address}

    def add_node(self, num_gpus: int = 0) -> None:
        """Add one; its GPUs are only numbers."""
        self.cluster.add_node(num_cpus=self.cpus_per_node, num_gpus=num_gpus)

    def metrics(self) -> str:
        """Return what Prometheus would be told by all nodes."""
        nodes = [self.cluster.head_node, *self.cluster.worker_nodes]
        ports = [node.metrics_export_port for node in nodes]
        urls = [f"http://127.0.0.1:{port}/metrics" for port in ports]
        return "".join(urlopen(url, timeout=10).read().decode() for url in urls)

    def workers(self, name: str) -> dict[int, int]:
        """Return the raylet of each worker whose title has the name, by process id."""
        listing = subprocess.run(
            ["ps", "-eo", "pid=,ppid=,args="], check=True, capture_output=True, text=True
        ).stdout
        found = [line.split(None, 2) for line in listing.splitlines()]
        mine = {node.all_processes["raylet"][0].process.pid for node in self.cluster.worker_nodes}
        return {
            int(pid): int(parent)
            for pid, parent, args in found
            if args.startswith("ray::") and name in args and int(parent) in mine
        }

    def running(self, name: str, command: "subprocess.Popen[bytes]") -> dict[int, int]:
        """Return `workers`, once the command has any."""
        deadline_s = time.monotonic() + WAIT_S
        while not (found := self.workers(name)):
            assert command.poll() is None, f"it ended, and no {name} was seen"
            assert time.monotonic() < deadline_s, f"no {name} is running"
            time.sleep(0.1)
        return found

    def kill_worker(self, name: str) -> bool:
        """Kill one of the workers, and return True; False if there is none."""
        found = list(self.workers(name))
        if found:
            with suppress(ProcessLookupError):
                os.kill(random.choice(found), signal.SIGKILL)
        return bool(found)

    def first_of_training(self) -> int:
        """Return the process of rank 0 of a training that runs, as Ray Train's own logs tell it."""
        logs = Path(self.cluster.head_node.get_logs_dir_path()) / "train"
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            running = self.workers(TRAIN_WORKER)
            for log in logs.glob("ray-train-app-worker-*.log"):
                *lines, _ = log.read_text().split("\n")  # the last one may be half there
                for said in map(json.loads, lines):
                    if said.get("world_rank") == 0 and said["process"] in running:
                        return int(said["process"])
            time.sleep(0.1)
        raise AssertionError("no rank 0 is running")

    def kill_node(self, name: str, *, of: int | None = None, is_replaced: bool = True) -> bool:
        """Kill a node that holds such a worker, all at once, and give a fresh one or none.

        It is the node of the worker process `of`, or of any.
        """
        found = self.workers(name)
        if not found:
            return False
        raylet = found[of or random.choice(list(found))]
        for node in list(self.cluster.worker_nodes):
            if node.all_processes["raylet"][0].process.pid == raylet:
                self.cluster.remove_node(node, allow_graceful=False)
        if is_replaced:
            self.add_node()
        return True
