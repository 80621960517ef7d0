"""What a head does for a worker: Ray's launcher on what `ray up` has sent it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ec2 import NAME, Moto, instances, keys_with

from cropscore_ray.clusters.declared import aws


def sent_to_the_head(file: Path) -> dict[str, Any]:
    """Return what `ray up` leaves on the head for its autoscaler."""
    from ray.autoscaler._private import commands

    config = commands._bootstrap_config(yaml.safe_load(file.read_text()), no_config_cache=True)
    provider = commands._get_node_provider(config["provider"], NAME)
    _, sent = commands._set_up_config_for_head_node(config, provider, False)
    found: dict[str, Any] = json.loads(Path(sent.name).read_text())
    return found


def test_a_head_with_its_policy_launches_a_worker_that_joins_with_the_token(
    home: Path, file: Path, moto: Moto, config: aws.AwsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.instance_manager.ray_installer import RayInstaller
    from ray.core.generated.instance_manager_pb2 import Instance

    sent = sent_to_the_head(file)
    keys = keys_with(aws.policy(config, "aws-head-policy.json"))
    on_head = home / "head"
    (on_head / ".ray").mkdir(parents=True)
    (on_head / ".ray" / "auth_token").write_text("secret")
    (on_head / ".ray" / "auth_token").chmod(0o600)
    monkeypatch.setenv("HOME", str(on_head))
    moto.check_permissions(True)

    provider = AWSNodeProvider({**sent["provider"], "aws_credentials": keys}, NAME)
    node_config = sent["available_node_types"]["spot"]["node_config"]
    tags = {"ray-node-type": "worker", "ray-user-node-type": "spot"}
    [node_id] = provider.create_node(node_config, tags, 1)
    provider.non_terminated_nodes({})
    installer = RayInstaller(provider, AutoscalingConfig(sent))
    installer.install_ray(Instance(cloud_instance_id=node_id, instance_type="spot"), "10.0.0.1")
    moto.check_permissions(False)

    [worker] = instances()
    assert worker["InstanceLifecycle"] == "spot"
    assert {"Key": "ray-node-status", "Value": "up-to-date"} in worker["Tags"]
    notes = (home / "notes").read_text()
    assert f"@{worker['PrivateIpAddress']}" in notes
    assert f"sent with mode 600: {on_head}/.ray/auth_token" in notes
    assert "secret" not in notes
    run = next(line for line in notes.splitlines() if "docker run" in line)
    assert "--gpus=all" in run
    start = next(line for line in notes.splitlines() if "ray start" in line)
    for part in (
        "export RAY_HEAD_IP=10.0.0.1",
        "RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6379",
        '"CPU":8',
        '"GPU":1',
        '"ray.io/market-type":"spot"',
    ):
        assert part in start


@pytest.mark.parametrize("where", [["--head", "--port=24511"], ["--address=127.0.0.1:24511"]])
def test_a_node_without_the_token_does_not_start(home: Path, where: list[str]) -> None:
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--block", *where, f"--temp-dir={home}/ray"]
    environment = os.environ | {"RAY_AUTH_MODE": "token"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode != 0
    assert "no authentication token was found" in done.stderr
