"""A cluster on AWS as it is rendered: valid for Ray, for EC2 and for IAM, and closed."""

import copy
import functools
import itertools
import json
import re
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.model import ServiceModel
from botocore.validate import ParamValidator
from click.testing import CliRunner

from cropscore_ray.cli import main
from cropscore_ray.clusters.declared import aws, templates
from cropscore_ray.clusters.declared.templates import ON_DEMAND, SPOT
from cropscore_ray.errors import ConfigError

ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/vision/cropscore:0.1.0-cuda"
CONFIG = aws.AwsConfig(
    image="registry.example/lab/cropscore:0.1.0-cuda",
    security_group="sg-0a1b2c3d",
    bucket="photos",
    region="us-west-2",
    token_folder="/home/ann/.config/cropscore/tokens/cropscore",
)
ALL = [
    replace(CONFIG, gpu=gpu, markets=markets, max_gpus=max_gpus, image=image, ami=ami)
    for gpu, markets, max_gpus, image, ami in itertools.product(
        aws.FAMILIES,
        [(SPOT, ON_DEMAND), (SPOT,), (ON_DEMAND,)],
        [1, 64],
        [CONFIG.image, ECR],
        [None, "ami-0123456789abcdef0"],
    )
]
UNRESTRICTABLE = re.compile(r"ec2:Describe\w+|ecr:GetAuthorizationToken")
"""Actions for which AWS knows no resource."""
NO_OPERATIONS = {"iam:PassRole", "s3:ListBucket", "s3:AbortMultipartUpload", "sts:AssumeRole"}
"""Actions that are not called as they are named: AWS checks them when others are called."""


def name_of(config: aws.AwsConfig) -> str:
    registry = "ecr" if config.image == ECR else "other"
    parts = (config.gpu, *config.markets, config.max_gpus, registry)
    return "-".join(map(str, (*parts, "ami" if config.ami else "ssm")))


def statements(config: aws.AwsConfig) -> list[dict[str, Any]]:
    found = aws.files(config, "")
    documents = [json.loads(text) for name, text in found.items() if name.endswith(".json")]
    return [one for document in documents for one in document["Statement"]]


@functools.cache
def service(name: str) -> ServiceModel:
    return botocore.session.get_session().get_service_model(name)


def refused_by_ec2(node: dict[str, Any]) -> str:
    """Return what botocore finds wrong with the parameters of RunInstances."""
    given = {**node, "MinCount": 1, "MaxCount": 1}
    shape = service("ec2").operation_model("RunInstances").input_shape
    return str(ParamValidator().validate(given, shape).generate_report())


def refused_by_ray(cluster: dict[str, Any]) -> str | None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(copy.deepcopy(cluster)))
    except Exception as error:
        return str(error)
    return None


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_what_is_rendered_is_valid_for_ray_and_for_ec2(config: aws.AwsConfig) -> None:
    cluster = yaml.safe_load(aws.files(config, "")["aws.yaml"])

    assert refused_by_ray(cluster) is None
    for node_type in cluster["available_node_types"].values():
        assert refused_by_ec2(node_type["node_config"]) == ""


def test_the_declaration_itself_is_valid_and_of_this_version() -> None:
    cluster = templates.read("aws.yaml")

    assert refused_by_ray(cluster) is None
    assert cluster["docker"]["image"].split(":")[1].startswith(version("cropscore-ray"))
    rendered = aws.cluster(replace(CONFIG, image=cluster["docker"]["image"]))
    for name, node_type in cluster["available_node_types"].items():
        assert refused_by_ec2(node_type["node_config"]) == ""
        assert node_type["max_workers"] == rendered["available_node_types"][name]["max_workers"]


def test_misspelled_parameters_are_found_out() -> None:
    cluster = aws.cluster(CONFIG)
    node = cluster["available_node_types"]["spot"]["node_config"]
    node["MetaDataOptions"] = node.pop("MetadataOptions")
    cluster["idle_timeout_minute"] = cluster.pop("idle_timeout_minutes")

    assert "MetaDataOptions" in refused_by_ec2(node)
    assert "idle_timeout_minute" in str(refused_by_ray(cluster))


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_kinds_of_nodes_have_shares_of_the_gpus(config: aws.AwsConfig) -> None:
    cluster = aws.cluster(config)
    workers = dict(cluster["available_node_types"])
    head = workers.pop("head")

    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]
    assert sum(one["max_workers"] for one in workers.values()) == config.max_gpus
    assert cluster["max_workers"] == config.max_gpus
    for name, one in workers.items():
        is_spot = "InstanceMarketOptions" in one["node_config"]
        assert is_spot == name.startswith("spot")
        assert one["labels"]["ray.io/market-type"] == (SPOT if is_spot else ON_DEMAND)
        assert one["labels"]["ray.io/market-type"] in config.markets
        assert one["min_workers"] == 0
        assert one["resources"]["GPU"] == 1


@pytest.mark.parametrize("gpu", aws.FAMILIES)
def test_machines_have_the_gpu_and_the_cpus_that_are_declared(gpu: str) -> None:
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    for node_type in aws.cluster(replace(CONFIG, gpu=gpu))["available_node_types"].values():
        machine = INSTANCE_TYPES[node_type["node_config"]["InstanceType"]]
        if "GPU" in node_type["resources"]:
            [found] = machine["GpuInfo"]["Gpus"]
            assert (found["Name"], found["Count"]) == (gpu.upper(), 1)
            assert machine["VCpuInfo"]["DefaultVCpus"] >= node_type["resources"]["CPU"]
            assert node_type["labels"]["ray.io/accelerator-type"] == gpu.upper()


def launched_for(num_gpus: int) -> dict[str, int]:
    """Return what Ray's autoscaler launches for work that waits for so many GPUs."""
    from ray.autoscaler._private.util import prepare_config
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount

    cluster = prepare_config(aws.cluster(replace(CONFIG, max_gpus=8)))
    for name, node_type in cluster["available_node_types"].items():
        # As `ray up` adds it, by the machine.
        node_type["resources"]["memory"] = (64 if name == "spot_larger" else 32) * 2**30
    config = AutoscalingConfig(cluster, skip_content_hash=True)
    request = ResourceRequestByCount(request=ResourceRequestUtil.make({"GPU": 1}), count=num_gpus)
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=[request],
        )
    )
    return {one.instance_type: one.count for one in reply.to_launch}


@pytest.mark.parametrize(
    ("num_gpus", "launched"),
    [
        (3, {"spot": 3}),
        (6, {"spot": 4, "spot_larger": 2}),
        (100, {"spot": 4, "spot_larger": 2, "on_demand": 2}),
    ],
)
def test_rays_autoscaler_launches_spot_nodes_first_and_never_more_than_said(
    num_gpus: int, launched: dict[str, int]
) -> None:
    assert {name: n for name, n in launched_for(num_gpus).items() if name != "head"} == launched


def test_ray_asks_again_for_the_kind_that_ec2_refuses() -> None:
    """When this fails, Ray turns to another kind, and the shares of aws.yaml can go."""
    from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import (
        CloudResourceMonitor,
    )
    from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

    def after(status: int) -> dict[str, float]:
        monitor = CloudResourceMonitor()
        event = InstanceUpdateEvent(new_instance_status=status, instance_type="spot")
        monitor.notify([event])
        return dict(monitor.get_recoverable_resource_availabilities())

    assert after(Instance.ALLOCATION_FAILED) == {}
    assert after(Instance.ALLOCATION_TIMEOUT) == {"spot": 0.0}


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_a_cluster_is_closed(config: aws.AwsConfig) -> None:
    cluster = aws.cluster(config)

    for command in cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]:
        assert command == "ray stop" or command.startswith("RAY_AUTH_MODE=token ray start ")
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
    assert cluster["file_mounts"] == {"~/.ray": config.token_folder}
    assert "security_group" not in cluster["provider"]
    for name, node_type in cluster["available_node_types"].items():
        node = node_type["node_config"]
        assert node["SecurityGroupIds"] == [config.security_group]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])
        role = "head" if name == "head" else "worker"
        assert node["IamInstanceProfile"] == {"Name": f"cropscore-{role}"}


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, image=ECR)], ids=name_of)
def test_policies_name_actions_that_exist_and_what_they_are_for(config: aws.AwsConfig) -> None:
    for one in statements(config):
        assert one["Effect"] == "Allow"
        actions = [one["Action"]] if isinstance(one["Action"], str) else one["Action"]
        for action in actions:
            name, operation = action.split(":")
            if action not in NO_OPERATIONS:
                assert operation in service(name).operation_names
        if one.get("Resource") == "*":
            assert all(UNRESTRICTABLE.fullmatch(action) for action in actions)
        assert "$" not in json.dumps(one)


def test_workers_reach_nothing_but_the_bucket_and_write_below_one_prefix() -> None:
    found = aws.policy(replace(CONFIG, results="out/runs"), "aws-worker-policy.json")

    assert {tuple(one["Action"]): one["Resource"] for one in found["Statement"]} == {
        ("s3:ListBucket",): "arn:aws:s3:::photos",
        ("s3:GetObject",): "arn:aws:s3:::photos/*",
        ("s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"): (
            "arn:aws:s3:::photos/out/runs/*"
        ),
    }


def test_the_head_launches_workers_of_its_cluster_alone_and_ends_no_other_node() -> None:
    found = aws.policy(replace(CONFIG, name="lab", gpu="t4"), "aws-head-policy.json")
    by_id = {one["Sid"]: one for one in found["Statement"]}

    assert by_id["LaunchWorkersOfThisCluster"]["Condition"]["StringEquals"] == {
        "aws:RequestTag/ray-cluster-name": "lab",
        "ec2:InstanceType": ["g4dn.2xlarge", "g4dn.4xlarge"],
        "ec2:MetadataHttpTokens": "required",
    }
    ended = [one for one in found["Statement"] if "ec2:TerminateInstances" in one["Action"]]
    assert [one["Condition"] for one in ended] == [
        {"StringEquals": {"aws:ResourceTag/ray-cluster-name": "lab"}}
    ]
    assert by_id["GiveThemTheWorkersRole"]["Resource"] == "arn:aws:iam::*:role/lab-worker"
    assert "WriteResults" in by_id


def test_a_head_can_launch_what_its_cluster_declares() -> None:
    for gpu in aws.FAMILIES:
        config = replace(CONFIG, gpu=gpu)
        [launch] = [
            one["Condition"]["StringEquals"]["ec2:InstanceType"]
            for one in aws.policy(config, "aws-head-policy.json")["Statement"]
            if one["Sid"] == "LaunchWorkersOfThisCluster"
        ]
        node_types = aws.cluster(config)["available_node_types"]
        machines = {one["node_config"]["InstanceType"] for one in node_types.values()}
        assert machines - {"m6i.xlarge"} == set(launch)


def test_an_image_in_awss_registry_is_logged_in_for_and_may_be_pulled() -> None:
    config = replace(CONFIG, image=ECR)
    [login] = aws.cluster(config)["initialization_commands"]
    pull = aws.policy(config, "aws-worker-policy.json")["Statement"][-1]

    assert "--region eu-west-1 | docker login" in login
    assert login.endswith(" 123456789012.dkr.ecr.eu-west-1.amazonaws.com")
    assert pull["Resource"] == "arn:aws:ecr:eu-west-1:123456789012:repository/vision/cropscore"
    assert aws.cluster(CONFIG)["initialization_commands"] == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gpu": "h100"}, "aws.gpu is 'h100'"),
        ({"image": "cropscore:0.1.0"}, "aws.image is 'cropscore:0.1.0'"),
        ({"bucket": "s3://photos"}, "aws.bucket is 's3://photos'"),
        ({"region": "us-west"}, "aws.region is 'us-west'"),
        ({"region": "cn-north-1"}, "aws.region is 'cn-north-1'"),
        ({"name": "my cluster"}, "aws.name is 'my cluster'"),
        ({"security_group": "default"}, "aws.security_group is 'default'"),
        ({"ami": "resolve:ssm:/own"}, "aws.ami is 'resolve:ssm:/own'"),
        ({"results": "/runs"}, "aws.results is '/runs'"),
        ({"ssh_user": "a b"}, "aws.ssh_user is 'a b'"),
        ({"max_gpus": 0}, "aws.max_gpus is 0"),
        ({"idle_minutes": 0}, "aws.idle_minutes is 0"),
    ],
)
def test_a_setting_that_cannot_be_is_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        replace(CONFIG, **change)


def render(*arguments: str) -> str:
    given = ["--region", "us-west-2", "--bucket", "photos", "--security-group", "sg-0a"]
    command = ["cluster", "render", "aws", *given, "--image", "registry.example/lab/cropscore:1"]
    done = CliRunner().invoke(main, [*command, *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize(
    ("flags", "kinds"),
    [
        ([], {"head", "spot", "spot_larger", "on_demand"}),
        (["--spot"], {"head", "spot", "spot_larger"}),
        (["--on-demand"], {"head", "on_demand"}),
        (["--spot", "--on-demand"], {"head", "spot", "spot_larger", "on_demand"}),
    ],
)
def test_render_shows_the_cluster_with_the_kinds_that_are_wanted(flags, kinds) -> None:
    shown = yaml.safe_load(render(*flags, "--name", "lab", "--gpu", "t4"))

    assert set(shown["available_node_types"]) == kinds
    assert shown["cluster_name"] == "lab"
    assert shown["file_mounts"]["~/.ray"].endswith("/cropscore/tokens/lab")


def test_render_writes_every_file_into_a_folder(tmp_path) -> None:
    names = render("--out", str(tmp_path / "new")).splitlines()

    assert names == [str(tmp_path / "new" / name) for name in aws.files(CONFIG, "")]
    assert all((tmp_path / "new" / name).is_file() for name in aws.files(CONFIG, ""))
