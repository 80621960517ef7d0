"""The commands about clusters themselves: their files, their life, their names."""
# ruff: noqa: D301 (\b is the backspace with which click keeps an example's lines apart)

import json

import click

from cropscore_ray.commands.options import json_option
from cropscore_ray.commands.render import render


@click.group()
def cluster() -> None:
    """Declare clusters, start them, and choose the one that commands are submitted to.

    \b
    Example:
        cropscore cluster use lab --address http://127.0.0.1:8265
    """


@cluster.command()
@click.argument("name")
@click.option("--address", metavar="URL", help="Of its dashboard; needed the first time.")
def use(name: str, address: str | None) -> None:
    """Let `submit` and `jobs` go to a cluster from now on.

    \b
    Example:
        cropscore cluster use lab --address http://127.0.0.1:8265
    """
    from cropscore_ray.clusters import contexts

    click.echo(f"{name}: {contexts.use(name, address)}")


cluster.add_command(render)

_where = click.argument("where", type=click.Choice(["aws"]))
_file = click.argument("file", default="aws.yaml")


@cluster.command()
@_where
@_file
def up(where: str, file: str) -> None:
    """Start a cluster from its file, and let commands go to it from now on.

    Once more, it brings the cluster up to the file. The head costs until `down`.

    \b
    Example:
        cropscore cluster up aws aws.yaml
    """
    from cropscore_ray.clusters import contexts
    from cropscore_ray.clusters.declared import ray_up

    declared = ray_up.declared(file)
    ray_up.up(declared)
    contexts.use(declared.name, ray_up.ADDRESS, declared.token_file)
    click.echo(ray_up.render(ray_up.nodes(declared)))
    click.echo(f"hint: commands reach it while `cropscore cluster attach {where}` runs", err=True)


@cluster.command()
@_where
@_file
def attach(where: str, file: str) -> None:
    """Hold a tunnel to a cluster open until Ctrl-C: `submit` and `jobs` need it.

    \b
    Example:
        cropscore cluster attach aws aws.yaml
    """
    from cropscore_ray.clusters.declared import ray_up

    ray_up.attach(ray_up.declared(file))


@cluster.command()
@_where
@_file
@json_option
def status(where: str, file: str, as_json: bool) -> None:
    """Tell the head's address, and the nodes by type and state.

    \b
    Example:
        cropscore cluster status aws aws.yaml
    """
    from cropscore_ray.clusters.declared import ray_up

    nodes = ray_up.nodes(ray_up.declared(file))
    click.echo(json.dumps(nodes, indent=2) if as_json else ray_up.render(nodes))


@cluster.command()
@_where
@_file
def down(where: str, file: str) -> None:
    """End all nodes of a cluster. What is on S3 stays.

    \b
    Example:
        cropscore cluster down aws aws.yaml
    """
    from cropscore_ray.clusters.declared import ray_up

    declared = ray_up.declared(file)
    ray_up.down(declared)
    click.echo(f"{declared.name}: no nodes")
