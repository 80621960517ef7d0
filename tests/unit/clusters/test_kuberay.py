"""Manifests for KubeRay: valid in every combination of options, and closed."""

import itertools
import json
import lzma
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from cropscore_ray import __version__
from cropscore_ray.cli import main
from cropscore_ray.clusters.declared import kuberay, templates
from cropscore_ray.clusters.declared.kuberay import DAY, GPUS, KubeRayConfig
from cropscore_ray.clusters.declared.templates import ON_DEMAND, SPOT
from cropscore_ray.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
CRDS = Path(__file__).parent / "kuberay-crds"
COMMAND = ["localize", "s3://b/photos", "--model", "s3://b/m", "--out", "s3://b/run"]
KUBERNETES = "1.34"


def strict(schema: Any) -> Any:
    """Return a CRD's schema as JSON Schema that knows no other keys than those it names."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(part) for name, part in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    if "properties" in schema and isinstance(schema["properties"], dict):
        made.setdefault("additionalProperties", False)
    return made


@cache
def validator(plural: str) -> Draft202012Validator:
    text = lzma.decompress((CRDS / f"ray.io_{plural}.yaml.xz").read_bytes())
    crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    [version] = [one for one in crd["spec"]["versions"] if one["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    return Draft202012Validator({**schema, "required": ["metadata", "spec"]})


def problems(manifest: dict[str, Any]) -> list[str]:
    """Return what the API server would refuse in a manifest."""
    if manifest["apiVersion"] == "ray.io/v1":
        found = validator(f"{manifest['kind'].lower()}s").iter_errors(manifest)
        return [f"{'/'.join(map(str, one.absolute_path))}: {one.message[:200]}" for one in found]
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [error.message]
    return []


def configs(cloud: str) -> Iterator[KubeRayConfig]:
    gpus = [None, *(name for name, kind in GPUS.items() if cloud in kind.labels)]
    markets = [(ON_DEMAND,)] if cloud == "other" else [(SPOT,), (ON_DEMAND,), (SPOT, ON_DEMAND)]
    roles = [None] if cloud == "other" else [None, "arn:aws:iam::1:role/cropscore"]
    sizes = [(1, 4), (8, 0)]
    for gpu, market, role, (per_node, cpu_nodes) in itertools.product(gpus, markets, roles, sizes):
        yield KubeRayConfig(
            cloud=cloud,
            gpu=gpu,
            max_gpus=64,
            gpus_per_node=per_node,
            markets=market,
            max_cpu_nodes=cpu_nodes,
            role=role,
            settings={"AWS_REGION": "us-west-2"},
        )


FORMS = {
    "cluster": kuberay.cluster,
    "job": lambda config: kuberay.job(config, COMMAND),
    "nightly": lambda config: kuberay.nightly(config, COMMAND, "0 2 * * *"),
}


def by_kind(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return {one["kind"]: one for one in manifests}


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the spec of every pod in a manifest."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for part in value.values():
            yield from pods(part)
    elif isinstance(value, list):
        for part in value:
            yield from pods(part)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cloud", kuberay.CLOUDS)
def test_every_combination_of_options_is_valid(cloud: str, form: str) -> None:
    seen = set()
    for config in configs(cloud):
        for manifest in FORMS[form](config):
            text = json.dumps(manifest, sort_keys=True)
            if text not in seen:
                assert problems(manifest) == [], config
            seen.add(text)
    assert len(seen) > 2


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "autoscalerOptions", "idleTimeoutSecs"), 60),
        (("spec", "autoscalerOptions", "version"), "v3"),
        (("spec", "headGroupSpec", "template", "spec", "nodeSelectors"), {}),
        (("spec", "workerGroupSpecs", 0, "maxReplicas"), "4"),
    ],
)
def test_a_slip_in_a_manifest_is_found(path: tuple[Any, ...], value: object) -> None:
    manifest = by_kind(kuberay.cluster(KubeRayConfig()))["RayCluster"]
    place = manifest
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert problems(manifest)


@pytest.mark.parametrize("form", FORMS)
def test_no_pod_may_do_more_than_it_needs(form: str) -> None:
    found = [pod for one in FORMS[form](KubeRayConfig(gpu="h200")) for pod in pods(one)]
    assert len(found) >= 4
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


def test_the_head_alone_may_talk_to_kubernetes() -> None:
    spec = by_kind(kuberay.cluster(KubeRayConfig()))["RayCluster"]["spec"]
    assert "automountServiceAccountToken" not in spec["headGroupSpec"]["template"]["spec"]
    for group in spec["workerGroupSpecs"]:
        assert group["template"]["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("form", ["cluster", "job"])
def test_a_cluster_asks_for_a_token_and_lets_nobody_in(form: str) -> None:
    made = by_kind(FORMS[form](KubeRayConfig()))
    spec = made["RayCluster"]["spec"] if form == "cluster" else made["RayJob"]["spec"]
    spec = spec.get("rayClusterSpec", spec)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["networkPolicy"]["mode"] == "DenyAllIngress"
    [rule] = spec["networkPolicy"]["head"]["ingressRules"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"cropscore/submits": "true"}}}]
    assert [port["port"] for port in rule["ports"]] == [8265]
    assert "worker" not in spec["networkPolicy"]


def test_the_head_runs_no_work_and_groups_of_workers_begin_empty() -> None:
    spec = by_kind(kuberay.cluster(KubeRayConfig(gpu="l4", max_gpus=16, gpus_per_node=4)))[
        "RayCluster"
    ]["spec"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert list(groups) == ["cpu", "gpu-spot", "gpu-on-demand"]
    for group in groups.values():
        assert group["replicas"] == group["minReplicas"] == 0
    assert groups["gpu-spot"]["maxReplicas"] == 4
    assert groups["gpu-spot"]["priority"] > groups["gpu-on-demand"]["priority"]
    limits = groups["gpu-spot"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "12", "memory": "48Gi", "nvidia.com/gpu": "4"}


@pytest.mark.parametrize("cloud", ["eks", "gke"])
def test_spot_workers_and_others_find_different_nodes_and_the_head_stays(cloud: str) -> None:
    spec = by_kind(kuberay.cluster(KubeRayConfig(cloud=cloud)))["RayCluster"]["spec"]
    pods_of = [group["template"]["spec"] for group in spec["workerGroupSpecs"][1:]]
    spot, on_demand = (yaml.safe_dump(one["affinity"]) for one in pods_of)
    assert spot != on_demand
    assert yaml.safe_dump(spec["headGroupSpec"]["template"]["spec"]["affinity"]) == on_demand
    tolerated = [[one["key"] for one in template["tolerations"]] for template in pods_of]
    assert ("cloud.google.com/gke-spot" in tolerated[0]) is (cloud == "gke")
    assert "cloud.google.com/gke-spot" not in tolerated[1]


def test_workers_with_a_gpu_take_the_image_for_it_and_all_others_the_plain_one() -> None:
    config = KubeRayConfig(image="here/cropscore:7", gpu="t4")
    for manifest in kuberay.nightly(config, COMMAND, "0 2 * * *"):
        for pod in pods(manifest):
            [container] = pod["containers"]
            has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
            assert container["image"] == f"here/cropscore:7{'-cuda' if has_gpu else ''}"


@pytest.mark.parametrize("cloud", ["eks", "gke"])
def test_a_role_is_given_to_the_account_of_every_pod(cloud: str) -> None:
    made = by_kind(kuberay.cluster(KubeRayConfig(name="mine", cloud=cloud, role="r")))
    assert list(made["ServiceAccount"]["metadata"]["annotations"].values()) == ["r"]
    assert made["ServiceAccount"]["metadata"]["name"] == "mine"
    assert {pod["serviceAccountName"] for pod in pods(made["RayCluster"])} == {"mine"}


def test_a_job_takes_its_cluster_down_and_is_tried_again() -> None:
    spec = by_kind(kuberay.job(KubeRayConfig(), ["score", "a b", "--out", "o"]))["RayJob"]["spec"]
    assert spec["entrypoint"] == "cropscore score 'a b' --out o"
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] > 0
    assert "gcsFaultToleranceOptions" not in spec["rayClusterSpec"]


def test_a_nightly_command_gets_the_day_and_its_words_stay_whole(tmp_path: Path) -> None:
    command = ["localize", f"s3://b/pho tos/{DAY}", "--out", f"s3://b/{DAY}x$HOME"]
    cron = by_kind(kuberay.nightly(KubeRayConfig(name="n"), command, "5 4 * * *"))["CronJob"]
    assert cron["spec"]["schedule"] == "5 4 * * *"
    [pod] = pods(cron)
    program = tmp_path / "cropscore"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    [container] = pod["containers"]
    done = subprocess.run(
        [*container["command"], *container["args"]],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.splitlines()
    day = words[2].removeprefix("n-")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", day)
    assert words == [
        *("submit", "--id", f"n-{day}", "--wait", "--", "localize"),
        *(f"s3://b/pho tos/{day}", "--out", f"s3://b/{day}x$HOME"),
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "Cropscore"}, "name is 'Cropscore'"),
        ({"name": "c" * 48}, "at most 47"),
        ({"cloud": "moon"}, "cloud is 'moon'"),
        ({"gpu": "h20"}, "gpu is 'h20'"),
        ({"gpu": "l40s", "cloud": "gke"}, "gpu is 'l40s'"),
        ({"max_gpus": 12, "gpus_per_node": 8}, "multiple of 8"),
        ({"max_gpus": 0}, "max_gpus is 0"),
        ({"cloud": "other"}, "no labels that all clouds share"),
        ({"settings": {"AWS_SECRET_ACCESS_KEY": "hunter2"}}, "AWS_SECRET_ACCESS_KEY"),
        ({"settings": {"AWS_ENDPOINT_URL": "http://u:hunter2@s3"}}, "AWS_ENDPOINT_URL"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        KubeRayConfig(**options)
    assert "hunter2" not in str(caught.value)


def test_the_day_is_for_nightly_commands_alone() -> None:
    with pytest.raises(ConfigError, match="nightly"):
        kuberay.job(KubeRayConfig(), ["localize", f"s3://b/{DAY}"])


def test_versions_are_those_that_the_project_is_tested_with() -> None:
    [ray] = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    spec = templates.read("kuberay/raycluster.yaml")["spec"]
    assert spec["rayVersion"] == ray
    for name in ("raycluster", "rayjob", "cronjob"):
        for pod in pods(templates.read(f"kuberay/{name}.yaml")):
            assert pod["containers"][0]["image"].removesuffix("-cuda") == f"cropscore:{__version__}"


def test_the_files_as_they_lie_are_valid_and_name_one_another() -> None:
    folder = templates.FOLDER / "kuberay"
    listed = templates.read("kuberay/kustomization.yaml")["resources"]
    assert all((folder / name).is_file() for name in listed)
    for path in folder.glob("*.yaml"):
        manifest = templates.read(f"kuberay/{path.name}")
        if manifest["kind"] == "RayJob":
            manifest["spec"]["rayClusterSpec"] = templates.read("kuberay/raycluster.yaml")["spec"]
        if manifest["kind"] != "Kustomization":
            assert problems(manifest) == [], path.name


def test_a_rendered_folder_is_one_that_kubectl_takes(tmp_path: Path) -> None:
    options = ["--gpu", "h200", "--max-gpus", "64", "--spot", "--out", str(tmp_path / "k")]
    done = CliRunner().invoke(main, ["cluster", "render", "kuberay", *options])
    assert done.exit_code == 0, done.output
    written = [Path(line) for line in done.stdout.splitlines()]
    names = {path.name for path in written}
    assert names == {
        *("configmap.yaml", "kustomization.yaml", "raycluster.yaml", "serviceaccount.yaml")
    }
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which builds the folder, is not installed")
    for folder in (tmp_path / "k", templates.FOLDER / "kuberay"):
        built = subprocess.run(
            ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True
        )
        kinds = {one["kind"] for one in yaml.safe_load_all(built.stdout)}
        assert kinds == {"ConfigMap", "ServiceAccount", "RayCluster"}


def test_what_is_rendered_says_how_it_was_made() -> None:
    done = CliRunner().invoke(main, ["cluster", "render", "kuberay", "--", *COMMAND])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("# Made by: cropscore")
    manifests = list(yaml.safe_load_all(done.stdout))
    assert [one["kind"] for one in manifests] == ["ServiceAccount", "ConfigMap", "RayJob"]
