"""A cluster that grows and shrinks: Ray's own autoscaler, with nodes on this machine.

The nodes are further raylets, which the autoscaler starts and ends through Ray's fake provider.
Their GPUs are only numbers. Ray's own class for that ends every Ray on the machine.

They share the head's folder, so a node that comes takes away, for a moment, the directory of the
job's code from workers of another node; MKL ends a process without one, and Ray starts it again.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from heads import Head, free_port
from ray._private.services import get_node_ip_address
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FakeMultiNodeProvider,
)

_HEAD_TYPE = "ray.head.default"
_NODE = {"CPU": 1, "GPU": 1, "object_store_memory": 200 * 2**20}
_AUTOSCALER_V2 = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_FAKE_CLUSTER": "1",
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    "RAY_enable_autoscaler_v2": "1",
}
_ASKED_FOR = (
    "cluster_synced_files",
    "head_setup_commands",
    "setup_commands",
    "worker_setup_commands",
)
"""Of an external provider, even where there is nothing to say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuNode:
    """A node that the autoscaler brought; seconds are those of the clock."""

    node_id: str
    is_alive: bool
    came_s: float


@dataclass
class Autoscaling:
    """A head without GPUs, and nodes with one each that come when they are asked for."""

    folder: str
    max_nodes: int = 2
    idle_s: float = 6
    """How long a node stays that nobody uses."""
    head: Head = field(init=False)

    def __post_init__(self) -> None:
        port, file = free_port(), Path(self.folder) / "autoscaling.json"
        file.write_text(json.dumps(self._config(port)))
        self.head = Head(
            folder=self.folder,
            port=port,
            options=["--num-cpus=1", "--num-gpus=0", f"--autoscaling-config={file}"],
            more_environment=_AUTOSCALER_V2,
        )

    def _config(self, port: int) -> dict[str, object]:
        """Return what would be the file of `ray up`."""
        name = f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}"
        provider = {
            "type": "external",  # the built-in type asks for a file that no wheel has
            "module": name,
            "gcs_address": f"{get_node_ip_address()}:{port}",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        }
        types = {
            _HEAD_TYPE: {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": _NODE, "node_config": {}, "max_workers": self.max_nodes},
        }
        return {
            "cluster_name": "autoscaling",
            "provider": provider,
            "available_node_types": types,
            "head_node_type": _HEAD_TYPE,
            "max_workers": self.max_nodes,
            "idle_timeout_minutes": self.idle_s / 60,
            **{name: [] for name in _ASKED_FOR},
        }

    def gpu_nodes(self) -> list[GpuNode]:
        """Return the nodes that came, those that left too."""
        return [
            GpuNode(
                node_id=node["node_id"],
                is_alive=node["state"] == "ALIVE",
                came_s=node["start_time_ms"] / 1000,
            )
            for node in self._state("nodes")
            if not node["is_head_node"]
        ]

    def num_alive(self) -> int:
        return sum(node.is_alive for node in self.gpu_nodes())

    def began_s(self, name: str) -> dict[str, list[float]]:
        """Return when each call of such an actor began, by node."""
        found: dict[str, list[float]] = {}
        for task in self._state("tasks"):
            is_call = name in task["name"] and task["name"].endswith(".submit")
            if is_call and task["start_time_ms"]:
                found.setdefault(task["node_id"], []).append(task["start_time_ms"] / 1000)
        return found

    def raylets(self, name: str) -> set[int]:
        """Return the processes of the nodes that have such an actor."""
        found = self.head.node.processes().values()
        return {parent for parent, args in found if args.startswith("ray::") and name in args}

    def _state(self, kind: str) -> list[dict[str, object]]:
        """Return what Ray's state API tells, of what is past too."""
        found = self.head.ask(f"/api/v0/{kind}?detail=true&limit=10000")
        assert found["result"], found["msg"]
        return list(found["data"]["result"]["result"])
