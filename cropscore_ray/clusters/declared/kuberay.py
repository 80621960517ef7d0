"""Ray clusters on Kubernetes, as manifests for the KubeRay operator.

What stands in cluster/kuberay/ is filled in: which GPUs, how many, on which kind of node. Nothing
here asks a Kubernetes cluster.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from cropscore_ray import __version__
from cropscore_ray.clusters.declared import templates
from cropscore_ray.clusters.declared.templates import ON_DEMAND, SPOT
from cropscore_ray.config import rules
from cropscore_ray.errors import ConfigError

Manifest = dict[str, Any]

DAY = "{date}"
"""Stands in a nightly command for the day that the job starts on, as 2014-09-06 (UTC)."""
_LONGEST_NAME = 47
"""Of a RayJob; the operator makes longer names from it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A kind of GPU: how nodes that have it are labelled, and what a worker gets for each."""

    labels: Mapping[str, str]
    """By cloud: the value of its label."""
    num_cpus: int
    memory_gib: int


GPUS = {
    "t4": Gpu(labels={"eks": "t4", "gke": "nvidia-tesla-t4"}, num_cpus=3, memory_gib=12),
    "l4": Gpu(labels={"eks": "l4", "gke": "nvidia-l4"}, num_cpus=3, memory_gib=12),
    "a10g": Gpu(labels={"eks": "a10g"}, num_cpus=3, memory_gib=12),
    "l40s": Gpu(labels={"eks": "l40s"}, num_cpus=7, memory_gib=48),
    "a100": Gpu(labels={"eks": "a100", "gke": "nvidia-tesla-a100"}, num_cpus=10, memory_gib=64),
    "h100": Gpu(labels={"eks": "h100", "gke": "nvidia-h100-80gb"}, num_cpus=20, memory_gib=64),
    "h200": Gpu(labels={"eks": "h200", "gke": "nvidia-h200-141gb"}, num_cpus=20, memory_gib=64),
}
"""CPUs and memory: a little less than the clouds' nodes have for each GPU."""
_GPU_LABELS = {
    "eks": "karpenter.k8s.aws/instance-gpu-name",
    "gke": "cloud.google.com/gke-accelerator",
}
_MARKETS: dict[str, dict[str, Manifest]] = {
    "eks": {
        market: {"key": "karpenter.sh/capacity-type", "operator": "In", "values": [market]}
        for market in (SPOT, ON_DEMAND)
    },
    "gke": {
        SPOT: {"key": "cloud.google.com/gke-spot", "operator": "Exists"},
        ON_DEMAND: {"key": "cloud.google.com/gke-spot", "operator": "DoesNotExist"},
    },
}
_SPOT_TAINT = {"key": "cloud.google.com/gke-spot", "operator": "Exists", "effect": "NoSchedule"}
_ROLES = {"eks": "eks.amazonaws.com/role-arn", "gke": "iam.gke.io/gcp-service-account"}
CLOUDS = (*_MARKETS, "other")


@dataclass(frozen=True, kw_only=True, slots=True)
class KubeRayConfig:
    """What a cluster is to be."""

    name: str = "cropscore"
    image: str = f"cropscore:{__version__}"
    """For CPUs; workers with a GPU take this name with `-cuda` after it."""
    cloud: str = "eks"
    """Whose labels nodes have: eks (those of Karpenter), gke, or other."""
    gpu: str | None = None
    """One of GPUS; None: any."""
    max_gpus: int = 4
    """Of each group of nodes: spot, and on demand."""
    gpus_per_node: int = 1
    """Of each worker pod."""
    markets: tuple[str, ...] = (SPOT, ON_DEMAND)
    """Groups of GPU nodes; spot is asked for first."""
    max_cpu_nodes: int = 4
    idle_s: int = 60
    """How long a worker stays without work."""
    role: str | None = None
    """What the pods are in the cloud: an IAM role's ARN, or a Google service account."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Environment of all pods: where the object store is. No secrets."""

    def __post_init__(self) -> None:
        is_label = re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", self.name)
        fits = bool(is_label) and len(self.name) <= _LONGEST_NAME
        rule = f"at most {_LONGEST_NAME} small letters, digits and hyphens, a letter first"
        rules.require(fits, "kuberay.name", self.name, rule)
        rules.one_of(tuple(CLOUDS), "kuberay.cloud", self.cloud)
        rules.check(self, "kuberay", "1 or more", "max_gpus", "gpus_per_node", "idle_s")
        rules.check(self, "kuberay", "0 or more", "max_cpu_nodes")
        whole, of = self.max_gpus % self.gpus_per_node == 0, f"{self.gpus_per_node} a node"
        rules.require(whole, "kuberay.max_gpus", self.max_gpus, f"a multiple of {of}")
        if self.gpu is not None:
            known = tuple(gpu for gpu, kind in GPUS.items() if self.cloud in kind.labels)
            rules.one_of(known or ("none",), "kuberay.gpu", self.gpu)
        if self.cloud == "other" and (SPOT in self.markets or self.role):
            raise ConfigError(
                "spot nodes and roles have no labels that all clouds share",
                hint="say --cloud eks or gke, or --on-demand without a role",
            )
        for name, value in self.settings.items():
            is_plain, rule = not _is_secret(name, value), "no secret: all may read them"
            rules.require(is_plain, "kuberay.settings", name, rule)


def cluster(config: KubeRayConfig) -> list[Manifest]:
    """Return a cluster that stays: its service account, its settings and the RayCluster."""
    ray_cluster = templates.read("kuberay/raycluster.yaml")
    ray_cluster["metadata"]["name"] = config.name
    _fill(ray_cluster["spec"], config)
    return [*_surroundings(config), ray_cluster]


def job(config: KubeRayConfig, command: list[str]) -> list[Manifest]:
    """Return a cropscore command with a cluster of its own, which goes when it has ended."""
    if any(DAY in word for word in command):
        raise ConfigError(f"{DAY} stands for the day in nightly commands", hint="give --nightly")
    ray_job = templates.read("kuberay/rayjob.yaml")
    ray_job["metadata"]["name"] = config.name
    spec = ray_job["spec"]
    spec["entrypoint"] = shlex.join(["cropscore", *command])
    spec["submitterPodTemplate"]["spec"]["containers"][0]["image"] = config.image
    spec["rayClusterSpec"] = templates.read("kuberay/raycluster.yaml")["spec"]
    # A cluster whose head died is made anew, with the command: nothing is to be remembered.
    del spec["rayClusterSpec"]["gcsFaultToleranceOptions"]
    _fill(spec["rayClusterSpec"], config)
    return [*_surroundings(config), ray_job]


def nightly(config: KubeRayConfig, command: list[str], schedule: str) -> list[Manifest]:
    """Return a cluster that stays, and a cropscore command that is submitted to it by the clock.

    Args:
        config: of the cluster.
        command: the words after `cropscore`; DAY in them becomes the day.
        schedule: minute, hour, day of month, month, day of week, as cron has them.
    """
    has_five = len(schedule.split()) == 5
    rules.require(has_five, "kuberay.schedule", schedule, 'five fields, as "0 2 * * *"')
    cron = templates.read("kuberay/cronjob.yaml")
    cron["metadata"]["name"] = f"{config.name}-nightly"
    cron["spec"]["schedule"] = schedule
    container = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    container["image"] = config.image
    words = " ".join('"$DAY"'.join(map(shlex.quote, word.split(DAY))) for word in command)
    container["args"] = [
        f'DAY=$(date -u +%F); exec cropscore submit --id "{config.name}-$DAY" --wait -- {words}'
    ]
    container["envFrom"] = [_settings_of(config)]
    address, _, token = container["env"]
    address["value"] = f"http://{config.name}-head-svc:8265"
    token["valueFrom"]["secretKeyRef"]["name"] = config.name
    return [*cluster(config), cron]


def files(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return manifests by file name, and what lets `kubectl apply -k` take a folder of them."""
    by_name = {f"{manifest['kind'].lower()}.yaml": manifest for manifest in manifests}
    kustomization = templates.read("kuberay/kustomization.yaml")
    kustomization["resources"] = list(by_name)
    return {**by_name, "kustomization.yaml": kustomization}


def _surroundings(config: KubeRayConfig) -> list[Manifest]:
    account = templates.read("kuberay/serviceaccount.yaml")
    account["metadata"]["name"] = config.name
    if config.role is not None:
        account["metadata"]["annotations"] = {_ROLES[config.cloud]: config.role}
    settings = templates.read("kuberay/settings.yaml")
    settings["metadata"]["name"] = config.name
    settings["data"] = dict(config.settings)
    return [account, settings]


def _settings_of(config: KubeRayConfig) -> Manifest:
    return {"configMapRef": {"name": config.name, "optional": True}}


def _fill(spec: Manifest, config: KubeRayConfig) -> None:
    """Fill in the spec of a cluster."""
    spec["autoscalerOptions"]["idleTimeoutSeconds"] = config.idle_s
    cpu, gpu = spec["workerGroupSpecs"]
    cpu["maxReplicas"] = config.max_cpu_nodes
    groups = [_gpu_group(templates.unshared(gpu), market, config) for market in config.markets]
    spec["workerGroupSpecs"] = [cpu, *groups] if config.max_cpu_nodes else groups
    head = spec["headGroupSpec"]["template"]
    _place(head, ON_DEMAND, config)
    for template in (head, *(group["template"] for group in spec["workerGroupSpecs"])):
        pod = template["spec"]
        pod["serviceAccountName"] = config.name
        container = pod["containers"][0]
        has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        container["image"] = f"{config.image}-cuda" if has_gpu else config.image
        container["envFrom"][0] = _settings_of(config)


def _gpu_group(group: Manifest, market: str, config: KubeRayConfig) -> Manifest:
    group["groupName"] = f"gpu-{market}"
    group["maxReplicas"] = config.max_gpus // config.gpus_per_node
    group["priority"] = 1 if market == SPOT else 0
    group["labels"] = {"ray.io/market-type": market}
    pod = group["template"]["spec"]
    kind = GPUS[config.gpu] if config.gpu else None
    if kind is not None:
        pod["nodeSelector"] = {_GPU_LABELS[config.cloud]: kind.labels[config.cloud]}
    per_gpu = kind or GPUS["l4"]
    amount = {
        "cpu": str(per_gpu.num_cpus * config.gpus_per_node),
        "memory": f"{per_gpu.memory_gib * config.gpus_per_node}Gi",
        "nvidia.com/gpu": str(config.gpus_per_node),
    }
    pod["containers"][0]["resources"] = {"requests": amount, "limits": amount}
    _place(group["template"], market, config)
    return group


def _place(template: Manifest, market: str, config: KubeRayConfig) -> None:
    """Let a pod be on nodes of one kind only: spot, or on demand."""
    if config.cloud not in _MARKETS:
        return
    pod = template["spec"]
    terms = [{"matchExpressions": [_MARKETS[config.cloud][market]]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    pod["affinity"] = {"nodeAffinity": required}
    if market == SPOT and config.cloud == "gke":
        pod["tolerations"].append(_SPOT_TAINT)


def _is_secret(name: str, value: str) -> bool:
    reads_so = re.search("SECRET|PASSWORD|TOKEN|ACCESS_KEY", name.upper())
    return bool(reads_so) or urlsplit(value).password is not None
