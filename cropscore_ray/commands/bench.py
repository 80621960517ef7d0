"""The command `bench`: speed on this machine, as ratios."""
# ruff: noqa: D301 (\b is the backspace with which click keeps an example's lines apart)

import json

import click

from cropscore_ray.commands.options import together, with_configs
from cropscore_ray.config.bench import BenchConfig
from cropscore_ray.terminal.tables import show


@click.group()
def bench() -> None:
    """Measure speed on this machine, as ratios.

    \b
    Example:
        cropscore bench scorer --json
    """


_options = together(
    with_configs(BenchConfig),
    click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of each."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table."),
)


@bench.command()
@click.option("--model", metavar="BUNDLE", help="Whose scorer; a GoogLeNet at random without.")
@_options
def scorer(config: BenchConfig, as_json: bool) -> None:
    """Score crops: against a naive loop, good practice, and the limits of the machine.

    Both modes of the engine, its own networks alone, and what memory and arithmetic allow.

    \b
    Example:
        cropscore bench scorer --json
    """
    _run("scorer", config, as_json)


@bench.command()
@click.option(
    "--images", type=click.IntRange(1), default=20, show_default=True, help="Of each class."
)
@_options
def localizer(config: BenchConfig, as_json: bool) -> None:
    """Train last layers for 1,000 classes: in one stack against a loop over classes.

    \b
    Example:
        cropscore bench localizer --images 100
    """
    _run("localizer", config, as_json)


@bench.command()
@click.option("--storage", metavar="URI", help="Where checkpoints go; a folder here without.")
@click.option(
    "--steps",
    type=click.IntRange(2),
    default=20,
    show_default=True,
    help="Of an epoch; some epochs have one checkpoint. Trainings write one in 200 steps.",
)
@_options
def training(config: BenchConfig, as_json: bool) -> None:
    """Take training steps: with two workers against one, and with checkpoints against none.

    On CPUs a worker has one thread, so that two have twice the arithmetic of one.

    \b
    Example:
        cropscore bench training --storage s3://bucket/bench
    """
    _run("training", config, as_json)


@bench.command()
@click.option("--model", metavar="BUNDLE", help="Whose scorer; a GoogLeNet at random without.")
@_options
def pipeline(config: BenchConfig, as_json: bool) -> None:
    """Run in bulk on Ray: against the engine's bare loop, and what it costs an image.

    Also its memory for 1,000 to 100,000 images, and a run that goes on when 99 % is done.

    \b
    Example:
        cropscore bench pipeline --json
    """
    _run("pipeline", config, as_json)


def _run(name: str, config: BenchConfig, as_json: bool) -> None:
    from cropscore_ray.jobs import bench as job

    report = job.run(name, config)
    show(*([json.dumps(report, indent=2)] if as_json else job.render(report)))
