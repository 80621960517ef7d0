"""The commands about clusters themselves: their files, their life, their names."""
# ruff: noqa: D301 (\b is the backspace with which click keeps an example's lines apart)

import click

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
    from cropscore_ray import contexts

    click.echo(f"{name}: {contexts.use(name, address)}")


cluster.add_command(render)
