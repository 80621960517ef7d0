"""What the rendered policies allow is what Ray does. Moto checks actions, not conditions."""

from typing import Any

import boto3
import click
import pytest
from botocore.exceptions import ClientError
from ec2 import NAME, REGION, Moto, instances, keys_with
from ray.autoscaler.node_launch_exception import NodeLaunchException

from cropscore_ray.clusters.declared import aws


def live_a_life(moto: Moto, config: aws.AwsConfig, policy: dict[str, Any]) -> None:
    """Launch, look at, tag and end a worker as Ray's autoscaler does, with a policy's rights."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    subnet = boto3.Session().client("ec2", REGION).describe_subnets()["Subnets"][0]["SubnetId"]
    node = aws.cluster(config)["available_node_types"]["spot"]["node_config"]
    keys = keys_with(policy)
    moto.check_permissions(True)
    given = {"region": REGION, "cache_stopped_nodes": False, "aws_credentials": keys}
    provider = AWSNodeProvider(given, NAME)
    provider.create_node({**node, "SubnetIds": [subnet]}, {"ray-node-type": "worker"}, 1)
    [node_id] = provider.non_terminated_nodes({"ray-node-type": "worker"})
    provider.set_node_tags(node_id, {"ray-node-status": "up-to-date"})
    provider.terminate_nodes([node_id])
    assert provider.non_terminated_nodes({}) == []
    moto.check_permissions(False)


def test_the_heads_policy_is_enough_for_rays_autoscaler(moto: Moto, config: aws.AwsConfig) -> None:
    live_a_life(moto, config, aws.policy(config, "aws-head-policy.json"))

    [worker] = instances()
    assert worker["InstanceLifecycle"] == "spot"
    assert {"Key": "ray-node-status", "Value": "up-to-date"} in worker["Tags"]


@pytest.mark.parametrize(
    "action",
    ["ec2:DescribeInstances", "ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances"],
)
def test_rays_autoscaler_needs_every_ec2_action_of_the_heads_policy(
    moto: Moto, config: aws.AwsConfig, action: str, capfd: pytest.CaptureFixture[str]
) -> None:
    policy = aws.policy(config, "aws-head-policy.json")
    for one in policy["Statement"]:
        one["Action"] = [kept for kept in one["Action"] if kept != action] or ["sts:TagSession"]

    with pytest.raises((ClientError, click.ClickException, NodeLaunchException)) as caught:
        live_a_life(moto, config, policy)
    told = f"{caught.value} {getattr(caught.value, 'description', '')} {capfd.readouterr().err}"
    assert f"is not authorized to perform: {action}" in told
