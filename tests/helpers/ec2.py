"""EC2 as moto has it: its permissions, a cluster's nodes in it."""

import json
import socket
import time
from dataclasses import dataclass
from typing import Any

import boto3
import requests

from cropscore_ray.clusters.declared import aws

REGION = "us-west-2"
NAME = "lab"


@dataclass
class Moto:
    """An EC2 of moto's in a process of its own, which shares nothing with other tests' servers."""

    url: str

    def post(self, path: str, data: str = "") -> None:
        requests.post(f"{self.url}/moto-api/{path}", data.encode(), timeout=30).raise_for_status()

    def check_permissions(self, are_checked: bool) -> None:
        self.post("reset-auth", "0" if are_checked else "inf")


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def keys_with(policy: dict[str, Any]) -> dict[str, str]:
    """Return keys of a new user who may do what a policy allows, as far as moto checks it.

    It looks at actions alone: resources and conditions are taken out.
    """
    statements = [
        {"Effect": one["Effect"], "Action": one["Action"], "Resource": "*"}
        for one in policy["Statement"]
    ]
    iam, user = boto3.Session().client("iam", REGION), f"user-{time.monotonic_ns()}"
    iam.create_user(UserName=user)
    document = json.dumps({**policy, "Statement": statements})
    iam.put_user_policy(UserName=user, PolicyName="only", PolicyDocument=document)
    made = iam.create_access_key(UserName=user)["AccessKey"]
    return {
        "aws_access_key_id": made["AccessKeyId"],
        "aws_secret_access_key": made["SecretAccessKey"],
    }


def instances() -> list[dict[str, Any]]:
    found = (
        boto3.Session()
        .client("ec2", REGION)
        .describe_instances(Filters=[{"Name": "tag:ray-cluster-name", "Values": [NAME]}])
    )
    return [one for group in found["Reservations"] for one in group["Instances"]]


def launch(config: aws.AwsConfig, node_type: str, kind: str) -> str:
    """Launch a node with Ray's tags, as its autoscaler would."""
    tags = {
        "ray-cluster-name": NAME,
        "ray-node-type": kind,
        "ray-user-node-type": node_type,
        "ray-node-status": "up-to-date",
    }
    node = aws.cluster(config)["available_node_types"][node_type]["node_config"]
    made = (
        boto3.Session()
        .client("ec2", REGION)
        .run_instances(
            **node,
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[
                {
                    "ResourceType": "instance",
                    "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
                }
            ],
        )
    )
    return str(made["Instances"][0]["InstanceId"])
