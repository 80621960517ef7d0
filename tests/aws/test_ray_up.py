"""Clusters that `ray up` starts: their life, what is told of them, what goes wrong."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
import yaml
from ec2 import NAME, REGION, Moto, instances, keys_with, launch

from cropscore_ray.clusters import contexts
from cropscore_ray.clusters.declared import aws, ray_up
from cropscore_ray.errors import ClusterError, ConfigError


def cropscore(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cropscore_ray.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.slow
def test_a_user_with_the_users_policy_starts_reaches_and_ends_a_cluster(
    home: Path, file: Path, moto: Moto, config: aws.AwsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in keys_with(aws.policy(config, "aws-user-policy.json")).items():
        monkeypatch.setenv(name.upper(), value)
    moto.check_permissions(True)
    up = cropscore("cluster", "up", "aws", str(file))
    [head] = instances()
    token = contexts.token_file(NAME).read_text()
    again = cropscore("cluster", "up", "aws", str(file))
    attach = cropscore("cluster", "attach", "aws", str(file))
    status = cropscore("cluster", "status", "aws", str(file), "--json")
    down = cropscore("cluster", "down", "aws", str(file))

    done = [up, again, attach, status, down]
    assert [one.returncode for one in done] == [0] * len(done), [one.stderr for one in done]
    assert head["InstanceType"] == "m6i.xlarge"
    assert head["IamInstanceProfile"]["Arn"].endswith(f"/{NAME}-head")
    assert head["KeyName"] == NAME
    assert [one["GroupId"] for one in head["SecurityGroups"]] == [config.security_group]
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    assert json.loads(status.stdout)[0]["address"] == head["PublicIpAddress"]
    assert [(one["InstanceId"], one["State"]["Name"]) for one in instances()] == [
        (head["InstanceId"], "terminated")
    ]

    notes = (home / "notes").read_text()
    assert contexts.token_file(NAME).read_text() == token
    assert token not in notes + "".join(one.stdout + one.stderr for one in done)
    assert f"sent with mode 600: {contexts.token_file(NAME)}" in notes
    assert contexts.token(None) == token
    assert contexts.address(None) == ray_up.ADDRESS
    run = next(line for line in notes.splitlines() if "docker run" in line)
    for part in (
        f"-v /tmp/ray_tmp_mount/{NAME}/~/.ray:/home/worker/.ray ",
        "--net=host registry.example/cropscore:1",
        "--env=RAY_AUTH_MODE=token",
        f"--env=AWS_REGION={REGION}",
    ):
        assert part in run
    start = next(line for line in notes.splitlines() if "ray start --head" in line)
    for part in (
        "RAY_AUTH_MODE=token ray start --head",
        "--dashboard-host=127.0.0.1",
        "RAY_enable_autoscaler_v2=1",
        '"CPU":0',
    ):
        assert part in start
    assert "-L 8265:localhost:8265" in notes


def test_status_tells_the_heads_address_and_counts_nodes_of_a_kind(
    config: aws.AwsConfig, file: Path
) -> None:
    launch(config, "head", "head")
    for _ in range(2):
        launch(config, "spot", "worker")
    found = ray_up.nodes(ray_up.declared(str(file)))

    address = found[0]["address"]
    assert ray_up.render(found).splitlines() == [
        f"head       {address}",
        "head          1 m6i.xlarge     running        up-to-date",
        "spot          2 g6.2xlarge     running        up-to-date",
    ]


def test_nodes_of_other_clusters_and_those_that_ended_are_not_told(
    config: aws.AwsConfig, file: Path
) -> None:
    ended = launch(config, "spot", "worker")
    boto3.Session().client("ec2", REGION).terminate_instances(InstanceIds=[ended])
    launch(config, "head", "head")
    cluster = replace(ray_up.declared(str(file)), name="another")

    assert [one["type"] for one in ray_up.nodes(ray_up.declared(str(file)))] == ["head"]
    assert ray_up.nodes(cluster) == []
    assert ray_up.render([]) == "no nodes"


def test_a_user_who_may_not_look_is_told_so_in_one_line(
    file: Path, moto: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": ["s3:GetObject"]}],
    }
    for name, value in keys_with(policy).items():
        monkeypatch.setenv(name.upper(), value)
    moto.check_permissions(True)

    with pytest.raises(ClusterError, match=r"us-west-2: .*ec2:DescribeInstances"):
        ray_up.up(ray_up.declared(str(file)))
    assert not contexts.token_file(NAME).exists()


def test_missing_credentials_are_one_line_with_a_hint(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    done = cropscore("cluster", "up", "aws", str(file))

    assert done.returncode == 1
    assert done.stderr.splitlines()[0].endswith("Unable to locate credentials")
    assert "hint: `aws sts get-caller-identity`" in done.stderr


def test_a_missing_ssh_is_named(home: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(home / "tmp"))

    with pytest.raises(ClusterError, match="needs the program ssh"):
        ray_up.up(ray_up.declared(str(file)))


def test_attach_without_a_head_says_how_to_start_one(file: Path) -> None:
    with pytest.raises(ClusterError, match="no head of lab runs") as caught:
        ray_up.attach(ray_up.declared(str(file)))
    assert "cropscore cluster up aws" in str(caught.value.hint)


def test_what_ray_fails_at_says_that_nodes_may_cost(file: Path) -> None:
    text = yaml.safe_load(file.read_text())
    text["head_node_type"] = "haed"
    file.write_text(yaml.safe_dump(text))
    done = cropscore("cluster", "up", "aws", str(file))

    assert done.returncode == 1
    assert "error: `ray up` failed" in done.stderr
    assert f"cropscore cluster down aws {file}" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "cannot be read"),
        ("cluster_name: lab", "'provider' is missing"),
        ("{cluster_name: lab, provider: {region: x}, file_mounts: {}}", "'~/.ray' is missing"),
    ],
)
def test_a_file_that_starts_no_guarded_cluster_is_refused(
    tmp_path: Path, text: str, told: str
) -> None:
    (tmp_path / "aws.yaml").write_text(text)

    with pytest.raises(ConfigError, match=told):
        ray_up.declared(str(tmp_path / "aws.yaml"))


def test_a_token_that_cannot_be_kept_is_one_line(home: Path, file: Path) -> None:
    contexts.file().parent.mkdir(parents=True)
    (contexts.file().parent / "tokens").touch()

    with pytest.raises(ConfigError, match=r"token cannot be kept in .*: Not a directory"):
        ray_up.up(ray_up.declared(str(file)))
