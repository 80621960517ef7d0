"""The `cropscore` command: it groups the commands, and turns errors into messages.

Commands import their job when they run, so that `--help` needs neither Ray nor torch.
"""
# ruff: noqa: D301 (\b is the backspace with which click keeps an example's lines apart)

import logging
import os
import signal
import sys
from typing import Any

import click

from cropscore_ray import __version__
from cropscore_ray.commands.bench import bench
from cropscore_ray.commands.bulk import localize, pack, score
from cropscore_ray.commands.cluster import cluster
from cropscore_ray.commands.flow import demo, index, train
from cropscore_ray.commands.jobs import jobs, submit
from cropscore_ray.commands.plan import plan
from cropscore_ray.commands.results import evaluate, export, report
from cropscore_ray.errors import CropscoreError

# Ray reads these when it is imported. What it logs by itself is for its developers.
QUIET_RAY = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_TRAIN_V2_ENABLED": "1",
}


class _Shell(click.Group):
    """Turns an error of the library into a message, a hint and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CropscoreError as error:
            click.echo(f"error: {error}", err=True)
            if error.hint:
                click.echo(f"hint: {error.hint}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("stopped; the same command goes on from here", err=True)
            ctx.exit(128 + signal.SIGINT)


@click.group(cls=_Shell, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cropscore")
@click.option("-v", "--verbose", is_flag=True, help="Show what the library logs.")
def main(verbose: bool) -> None:
    """Find where objects are from classification scores alone, on a Ray cluster.

    Without RAY_ADDRESS a command starts Ray in its own process: one machine needs no
    set-up. Start with:

    \b
        cropscore demo
    """
    for name, value in QUIET_RAY.items():
        os.environ.setdefault(name, value)
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(message)s")


for command in (
    *(demo, index, train, score, localize, pack, evaluate, export, report),
    *(bench, plan, submit, jobs, cluster),
):
    main.add_command(command)


if __name__ == "__main__":
    main()
