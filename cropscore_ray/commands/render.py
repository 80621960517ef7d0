"""`cropscore cluster render`: the files of clusters, filled in."""
# ruff: noqa: D301 (\b is the backspace with which click keeps an example's lines apart)

import shlex
import sys
from typing import Any

import click

from cropscore_ray.clusters import contexts
from cropscore_ray.clusters.declared import aws, kuberay, templates
from cropscore_ray.commands.options import take, together
from cropscore_ray.errors import ConfigError


@click.group()
def render() -> None:
    """Write the files that declare a cluster.

    \b
    Example:
        cropscore cluster render kuberay --gpu h200 --max-gpus 64 --spot --out kuberay
    """


_options = together(
    click.option("--name", default="cropscore", show_default=True, help="Of the cluster."),
    click.option(
        "--gpu",
        metavar="KIND",
        help="For example l4; what there is depends on the cloud. Without it any, on AWS l4.",
    ),
    click.option(
        "--max-gpus",
        type=int,
        default=4,
        show_default=True,
        help="GPUs; on Kubernetes of each market.",
    ),
    click.option("--spot", is_flag=True, help="GPU nodes that the cloud may take away."),
    click.option("--on-demand", is_flag=True, help="GPU nodes that stay; default: both."),
    click.option("--out", metavar="DIR", help="Where the files go; else to stdout."),
)
"""The options that all kinds of clusters have."""


def _markets(spot: bool, on_demand: bool) -> tuple[str, ...]:
    chosen = {templates.SPOT: spot, templates.ON_DEMAND: on_demand}
    return tuple(market for market in chosen if chosen[market]) or tuple(chosen)


def _made_by() -> str:
    return "Made by: " + shlex.join(["cropscore", *sys.argv[1:]])


def _settings(given: tuple[str, ...]) -> dict[str, str]:
    for setting in given:
        if "=" not in setting:
            raise ConfigError(f"--env {setting} has no =", hint="give NAME=VALUE")
    return dict(setting.split("=", 1) for setting in given)


@render.command("kuberay")
@_options
@click.option("--image", metavar="NAME", help="Of the containers; with -cuda after it on GPUs.")
@click.option("--cloud", type=click.Choice(kuberay.CLOUDS), default="eks", show_default=True)
@click.option("--gpus-per-node", type=int, default=1, show_default=True, help="Of each worker pod.")
@click.option("--max-cpu-nodes", type=int, default=4, show_default=True)
@click.option("--idle-s", type=int, default=60, show_default=True, help="Before a worker goes.")
@click.option("--role", help="What pods are in the cloud: an IAM role, a Google service account.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Where the store is; no secrets.")
@click.option("--nightly", metavar="CRON", help='When COMMAND is submitted, as "0 2 * * *".')
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def render_kuberay(
    spot: bool,
    on_demand: bool,
    out: str | None,
    nightly: str | None,
    command: tuple[str, ...],
    **options: Any,
) -> None:
    """Write a cluster for the KubeRay operator.

    With a COMMAND: a RayJob, which makes a cluster, runs the command and takes the cluster down.
    With a COMMAND and --nightly: a cluster that stays, and a CronJob that submits the command to
    it; {date} in it becomes the day.

    \b
    Example:
        cropscore cluster render kuberay --gpu h200 --max-gpus 64 --spot --out kuberay
        cropscore cluster render kuberay --out job -- localize s3://b/photos \\
            --model s3://b/model --out s3://b/run
    """
    options |= {"markets": _markets(spot, on_demand), "settings": _settings(options.pop("env"))}
    config = take(kuberay.KubeRayConfig, options)
    if nightly and not command:
        raise ConfigError("--nightly needs a command", hint="-- localize s3://bucket/{date} ...")
    if nightly:
        manifests = kuberay.nightly(config, list(command), nightly)
    else:
        manifests = kuberay.job(config, list(command)) if command else kuberay.cluster(config)
    if out is None:
        click.echo(templates.to_yaml(manifests, _made_by()), nl=False)
        return
    files = kuberay.files(manifests)
    texts = {name: templates.to_yaml([manifest], _made_by()) for name, manifest in files.items()}
    for path in templates.write(out, texts):
        click.echo(path)


@render.command("aws")
@_options
@click.option("--image", required=True, metavar="REGISTRY/NAME:TAG", help="That nodes can pull.")
@click.option("--bucket", required=True, metavar="NAME", help="Of S3; jobs read all of it.")
@click.option("--results", default="runs", show_default=True, help="Prefix that jobs write below.")
@click.option("--security-group", required=True, metavar="ID", help="Of all nodes.")
@click.option("--region", required=True, envvar=["AWS_REGION", "AWS_DEFAULT_REGION"])
@click.option("--ami", metavar="ID", help="Of all nodes; else AWS's latest Deep Learning base.")
@click.option("--ssh-user", default="ubuntu", show_default=True, help="Of the AMI.")
@click.option("--idle-minutes", type=int, default=5, show_default=True, help="Before a node goes.")
def render_aws(spot: bool, on_demand: bool, out: str | None, **options: Any) -> None:
    """Write what `cropscore cluster up aws` starts, and the IAM documents that it needs.

    Every node has one GPU: t4, a10g, l4 (the default) or l40s.

    \b
    Example:
        cropscore cluster render aws --region us-west-2 --bucket photos \\
            --security-group sg-0123456789abcdef0 --image registry.example/cropscore:1 --out aws
    """
    token_folder = str(contexts.token_file(options["name"]).parent)
    options |= {"markets": _markets(spot, on_demand), "token_folder": token_folder}
    config = take(aws.AwsConfig, options)
    files = aws.files(config, _made_by())
    if out is None:
        click.echo(files["aws.yaml"], nl=False)
        return
    for path in templates.write(out, files):
        click.echo(path)
