"""The files of a cluster on AWS, for `ray up` and for IAM: those of `cluster/`, filled in.

Nothing here asks AWS or starts anything.
"""

import json
import re
from dataclasses import dataclass
from string import Template
from typing import Any

from cropscore_ray.clusters.declared import templates
from cropscore_ray.clusters.declared.templates import ON_DEMAND, SPOT
from cropscore_ray.config import rules

FAMILIES = {"t4": "g4dn", "a10g": "g5", "l4": "g6", "l40s": "g6e"}
"""Instance types by GPU; 2xlarge and 4xlarge of each have one."""
TOKEN_FOLDER = "~/.ray"
"""On a node: Ray looks for the file auth_token in it."""
_POLICIES = ("aws-head-policy.json", "aws-worker-policy.json", "aws-user-policy.json")
_ECR = re.compile(r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com/")
_RULES = {
    "name": (r"[a-z][a-z0-9-]{0,30}", "lower-case letters, digits and hyphens, 31 at most"),
    "region": (r"(?!cn-|us-gov-|us-iso)[a-z]{2}-[a-z-]+-\d", "a region such as us-west-2"),
    "image": (r"[\w.:-]+/[\w./:@-]+", "what nodes can pull: REGISTRY/NAME:TAG"),
    "ami": (
        r"ami-[0-9a-f]+|resolve:ssm:/aws/service/[\w./-]+",
        "ami-… or resolve:ssm:/aws/service/…",
    ),
    "bucket": (r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "a bucket's name, without s3://"),
    "results": (r"[\w.-]+(/[\w.-]+)*", "a prefix such as runs, without slashes around it"),
    "security_group": (r"sg-[0-9a-f]+", "the id of a security group, sg-…"),
    "ssh_user": (r"[a-z_][a-z0-9_-]*", "a user's name"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AwsConfig:
    """What is yours in a cluster on AWS."""

    image: str
    """Container image, in a registry that the nodes reach."""
    security_group: str
    """Of all nodes: lets them reach each other, and you their port 22."""
    bucket: str
    """All of it can be read by jobs."""
    region: str
    token_folder: str
    """On the machine that runs `ray up`; holds the cluster's token, in the file auth_token."""
    name: str = "cropscore"
    gpu: str = "l4"
    max_gpus: int = 4
    markets: tuple[str, ...] = (SPOT, ON_DEMAND)
    """spot: nodes that may be taken away; on-demand: with both a quarter, asked for last."""
    results: str = "runs"
    """Jobs can write below this prefix of the bucket, and nowhere else."""
    ami: str | None = None
    """Of every node; None: that of cluster/aws.yaml. It has Docker and NVIDIA's driver."""
    idle_minutes: int = 5
    ssh_user: str = "ubuntu"

    def __post_init__(self) -> None:
        for field, (pattern, rule) in _RULES.items():
            value = getattr(self, field)
            if value is not None:
                rules.require(bool(re.fullmatch(pattern, value)), f"aws.{field}", value, rule)
        rules.one_of(tuple(FAMILIES), "aws.gpu", self.gpu)
        rules.check(self, "aws", "1 or more", "max_gpus", "idle_minutes")


def files(config: AwsConfig, comment: str) -> dict[str, str]:
    """Return the files by name: aws.yaml, and the IAM documents of its roles and its user."""
    declaration = templates.to_yaml([cluster(config)], comment)
    documents = {name: policy(config, name) for name in _POLICIES}
    documents["aws-trust.json"] = templates.read("aws-trust.json")
    texts = {name: json.dumps(document, indent=2) + "\n" for name, document in documents.items()}
    return {"aws.yaml": declaration} | texts


def cluster(config: AwsConfig) -> dict[str, Any]:
    """Return what `ray up` is given."""
    declared: dict[str, Any] = templates.read("aws.yaml")
    declared["cluster_name"] = config.name
    declared["max_workers"] = config.max_gpus
    declared["idle_timeout_minutes"] = config.idle_minutes
    docker, region = declared["docker"], declared["provider"]["region"]
    docker["image"] = config.image
    docker["run_options"] = [flag.replace(region, config.region) for flag in docker["run_options"]]
    declared["provider"] |= {"region": config.region, "key_pair": {"key_name": config.name}}
    declared["auth"]["ssh_user"] = config.ssh_user
    declared["file_mounts"] = {TOKEN_FOLDER: config.token_folder}
    declared["initialization_commands"] = _registry_login(config.image)
    declared["available_node_types"] = _node_types(config, declared["available_node_types"])
    return declared


def shares(config: AwsConfig) -> dict[str, int]:
    """Return how many nodes of each kind there may be, max_gpus in all."""
    quarter = config.max_gpus // 4
    if SPOT not in config.markets:
        return {"on_demand": config.max_gpus}
    rest = {"spot_larger": quarter, "on_demand": quarter if ON_DEMAND in config.markets else 0}
    return {"spot": config.max_gpus - sum(rest.values()), **rest}


def _node_types(config: AwsConfig, known: dict[str, Any]) -> dict[str, Any]:
    types = {"head": known["head"]}
    for name, num_nodes in shares(config).items():
        if num_nodes == 0:
            continue
        types[name] = node_type = known[name]
        node_type["max_workers"] = num_nodes
        node_type["labels"]["ray.io/accelerator-type"] = config.gpu.upper()
        _, size = node_type["node_config"]["InstanceType"].split(".")
        node_type["node_config"]["InstanceType"] = f"{FAMILIES[config.gpu]}.{size}"
    for name, node_type in types.items():
        node = node_type["node_config"]
        node["SecurityGroupIds"] = [config.security_group]
        node["ImageId"] = config.ami or node["ImageId"]
        role = "head" if name == "head" else "worker"
        node["IamInstanceProfile"] = {"Name": f"{config.name}-{role}"}
    return types


def policy(config: AwsConfig, name: str) -> dict[str, Any]:
    """Return an IAM document of `cluster/`, filled in.

    Head and workers alike read images and write results, and pull the container.
    """
    head = templates.read("aws.yaml")["available_node_types"]["head"]["node_config"]
    values = {
        "bucket": config.bucket,
        "family": FAMILIES[config.gpu],
        "head": head["InstanceType"],
        "name": config.name,
        "region": config.region,
        "results": config.results,
        "security_group": config.security_group,
    }
    document: dict[str, Any] = _filled(templates.read(name), values)
    if name == "aws-head-policy.json":
        document["Statement"] += policy(config, "aws-worker-policy.json")["Statement"]
    elif name == "aws-worker-policy.json":
        document["Statement"] += _registry_statements(config.image)
    return document


def _filled(value: Any, values: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {_filled(key, values): _filled(part, values) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, values) for part in value]
    return Template(value).substitute(values) if isinstance(value, str) else value


def _registry_login(image: str) -> list[str]:
    """Return what a node does before it pulls: only AWS's own registry asks its role for a key."""
    if not (registry := _ECR.match(image)):
        return []
    return [
        f"aws ecr get-login-password --region {registry['region']} | "
        f"docker login --username AWS --password-stdin {registry[0].rstrip('/')}"
    ]


def _registry_statements(image: str) -> list[dict[str, Any]]:
    if not (registry := _ECR.match(image)):
        return []
    repository = re.split("[:@]", image[registry.end() :])[0]
    values = registry.groupdict() | {"repository": repository}
    statements: list[dict[str, Any]] = templates.read("aws-registry-policy.json")["Statement"]
    return [_filled(statement, values) for statement in statements]
