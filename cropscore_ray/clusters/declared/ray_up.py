"""A cluster that `ray up` starts on AWS: brought up, looked at, reached, brought down.

Ray does the work, in a process of its own whose words go to stderr.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.exceptions import BotoCoreError, ClientError

from cropscore_ray.clusters import tokens
from cropscore_ray.clusters.declared import aws
from cropscore_ray.errors import ClusterError, ConfigError

ADDRESS = "http://127.0.0.1:8265"
"""Of the dashboard, on this side of the tunnel."""
_STDERR = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """What is read from a file for `ray up`."""

    path: str
    name: str
    region: str
    token_file: Path


def declared(path: str) -> Declared:
    """Read a file for `ray up`.

    Raises:
        ConfigError: there is none, or it says no cluster on AWS with a token.
    """
    hint = "cropscore cluster render aws writes one"
    try:
        cluster = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint=hint) from error
    try:
        return Declared(
            path=path,
            name=str(cluster["cluster_name"]),
            region=str(cluster["provider"]["region"]),
            token_file=Path(cluster["file_mounts"][aws.TOKEN_FOLDER]).expanduser() / "auth_token",
        )
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} declares no cluster on AWS with a token: {error} is missing", hint=hint
        ) from error


def up(cluster: Declared) -> None:
    """Start a cluster, or bring a running cluster up to its file.

    Raises:
        ClusterError: AWS refuses, or Ray fails; what Ray says of it stands on stderr.
        ConfigError: there is no place for the token.
    """
    _require("ssh", "rsync")
    nodes(cluster)  # tells of missing credentials in one line, where Ray has a traceback
    try:
        tokens.make(cluster.token_file)
    except OSError as error:
        raise ConfigError(
            f"the cluster's token cannot be kept in {cluster.token_file}: {error.strerror}",
            hint=f"change file_mounts in {cluster.path}",
        ) from error
    _ray(
        ["up", "--yes", "--no-config-cache", cluster.path],
        hint=f"nodes may run and cost: cropscore cluster down aws {cluster.path} ends them",
    )


def down(cluster: Declared) -> None:
    """End every node of a cluster.

    Raises:
        ClusterError: some still run, which cost.
    """
    if not _living(cluster):
        return
    _ray(["down", "--yes", cluster.path], hint="the same command once more goes on")
    if left := _living(cluster):
        raise ClusterError(
            f"{cluster.name} still has nodes, which cost: {', '.join(left)}",
            hint="the same command once more ends them, or: aws ec2 terminate-instances",
        )


def attach(cluster: Declared) -> None:
    """Hold a tunnel to the dashboard open, at ADDRESS, until Ctrl-C.

    Raises:
        ClusterError: no head runs, or the tunnel breaks.
    """
    _require("ssh")
    if not any(node["is_head"] and node["state"] == "running" for node in nodes(cluster)):
        raise ClusterError(
            f"no head of {cluster.name} runs in {cluster.region}",
            hint=f"cropscore cluster up aws {cluster.path} starts one",
        )
    with suppress(KeyboardInterrupt):
        _ray(
            ["dashboard", "--no-config-cache", cluster.path],
            hint="does your address reach port 22, and is port 8265 of this machine free?",
        )


def nodes(cluster: Declared) -> list[dict[str, Any]]:
    """Return the nodes that are not gone, the head first, by EC2 and Ray's tags.

    Raises:
        ClusterError: AWS does not answer, or refuses.
    """
    having_its_tag = [{"Name": "tag:ray-cluster-name", "Values": [cluster.name]}]
    try:
        client = boto3.Session().client("ec2", region_name=cluster.region)
        pages = client.get_paginator("describe_instances").paginate(Filters=having_its_tag)
        known = [_node(instance) for instance in pages.search("Reservations[].Instances[]")]
    except (BotoCoreError, ClientError) as error:
        raise ClusterError(
            f"AWS does not tell the nodes in {cluster.region}: {error}",
            hint="`aws sts get-caller-identity` tells whose keys are used; `aws configure` sets "
            "them, or AWS_PROFILE",
        ) from error
    there = [node for node in known if node["state"] != "terminated"]
    return sorted(there, key=lambda node: (not node["is_head"], node["type"], node["id"]))


def _living(cluster: Declared) -> list[str]:
    """Return the ids of nodes that cost."""
    return [node["id"] for node in nodes(cluster) if node["state"] in ("pending", "running")]


def _node(instance: dict[str, Any]) -> dict[str, Any]:
    tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}
    return {
        "id": instance["InstanceId"],
        "is_head": tags.get("ray-node-type") == "head",
        "type": tags.get("ray-user-node-type", ""),
        "machine": instance["InstanceType"],
        "state": instance["State"]["Name"],
        "ray_status": tags.get("ray-node-status", ""),
        "address": instance.get("PublicIpAddress"),
    }


def render(nodes: list[dict[str, Any]]) -> str:
    """Return nodes as lines: the head's address, then how many there are of each kind."""
    lines = [f"head       {n['address'] or 'no address yet'}" for n in nodes if n["is_head"]]
    kinds = Counter((n["type"], n["machine"], n["state"], n["ray_status"]) for n in nodes)
    lines += [
        f"{kind:10} {number:4} {machine:14} {state:14} {ray}".rstrip()
        for (kind, machine, state, ray), number in kinds.items()
    ]
    return "\n".join(lines or ["no nodes"])


def _require(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            raise ClusterError(
                f"`ray up` needs the program {program}, which is not installed here",
                hint="install openssh-client and rsync with this system's package manager",
            )


def _ray(arguments: list[str], *, hint: str) -> None:
    """Run a command of Ray's, with the autoscaler that knows priorities."""
    command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
    environment = os.environ | {"RAY_UP_enable_autoscaler_v2": "1"}
    done = subprocess.run(command, env=environment, stdout=_STDERR, check=False)
    if done.returncode != 0:
        raise ClusterError(f"`ray {arguments[0]}` failed; its own words are above", hint=hint)
