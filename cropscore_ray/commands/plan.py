"""The command `plan`: what a bulk run takes, before it is run."""
# ruff: noqa: D301 (\b is the backspace with which click keeps an example's lines apart)

import json
from typing import Any

import click

from cropscore_ray.commands.options import take
from cropscore_ray.terminal.tables import show


@click.command()
@click.option(
    "--images", "num_images", type=click.IntRange(1), required=True, help="How many there are."
)
@click.option(
    "--workers", "num_workers", type=click.IntRange(1), default=1, show_default=True, help="GPUs."
)
@click.option(
    "--rate",
    "images_per_s",
    type=click.FloatRange(0, min_open=True),
    help="Images a second of one worker.",
)
@click.option(
    "--bench", metavar="FILE", help="In place of --rate: what `bench scorer --json` printed."
)
@click.option("--mode", type=click.Choice(["exact", "pyramid"]), default="exact", show_default=True)
@click.option("--price", "price_per_hour", type=click.FloatRange(0), help="Of a worker an hour.")
@click.option(
    "--losses",
    "losses_per_hour",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Of one worker an hour, as spot nodes are taken away: 0.05 is once in 20 hours.",
)
@click.option(
    "--replaced-after",
    "replaced_after_s",
    type=click.FloatRange(0),
    default=300.0,
    show_default=True,
    help="Seconds until another worker works.",
)
@click.option(
    "--part-images",
    type=click.IntRange(1),
    help="Images a file; without it, as many as `localize` puts there.",
)
@click.option(
    "--images-per-read",
    type=click.FloatRange(1),
    default=1.0,
    show_default=True,
    help="1 for files; dozens in archives.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def plan(
    images_per_s: float | None, bench: str | None, mode: str, as_json: bool, **options: Any
) -> None:
    """Tell what a bulk run takes: hours, cost, requests, storage.

    Nodes that are lost are simulated, with the work that is done again. The rate is a measured
    one: measure a node of the kind that you will have.

    \b
    Example:
        cropscore plan --images 100000000 --workers 64 --bench rates.json --losses 0.05
    """
    from cropscore_ray.bulk import planning
    from cropscore_ray.errors import ConfigError

    if (images_per_s is None) == (bench is None):
        raise ConfigError(
            "give --rate or --bench, and not both",
            hint="cropscore bench scorer --json > FILE measures it on this machine",
        )
    options["images_per_s"] = planning.measured_rate(bench, mode) if bench else images_per_s
    work, cluster = take(planning.Work, options), take(planning.Cluster, options)
    figures = planning.plan(work, cluster)
    figures["rate_source"] = f"measured, {bench}" if bench else "as given, not measured here"
    show(json.dumps(figures, indent=2) if as_json else planning.render(figures))
