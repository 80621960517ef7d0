"""The commands that go through an image set of any size: `score`, `localize` and `pack`."""
# ruff: noqa: D301 (\b is the backspace with which click keeps an example's lines apart)

from typing import Any

import click

from cropscore_ray.commands.options import (
    model_option,
    overwrite_option,
    split_option,
    together,
    with_configs,
)
from cropscore_ray.config.bulk import LocalizeConfig, RunConfig, WorkerConfig

_bulk_options = together(
    with_configs(RunConfig, LocalizeConfig, WorkerConfig),
    click.argument("source"),
    model_option,
    click.option("--out", required=True, metavar="URI", help="The run folder."),
    click.option(
        "--classes",
        type=click.Choice(["predicted", "label", "both"]),
        default="both",
        show_default=True,
        help="Classes to localize: the predicted ones, the manifest's label, or both.",
    ),
    click.option(
        "--top",
        "top_k",
        type=click.IntRange(1, 1000),
        default=5,
        show_default=True,
        help="Predicted classes an image.",
    ),
    click.option(
        "--mode",
        type=click.Choice(["exact", "pyramid"]),
        help="exact: 140 separate crops. pyramid: the same squares from three maps of the "
        "image, several times faster. Without it, what the model learnt from, which is what "
        "localize can do.",
    ),
    click.option(
        "--part-images",
        type=click.IntRange(1),
        help="Images a file; a lost worker's work on two of them is done again at most.  "
        "[default: 64; in runs of over 65,000 images the later files have 128 and 256]",
    ),
    click.option(
        "--max-failed-fraction",
        type=click.FloatRange(0, 1),
        default=1.0,
        show_default=True,
        help="Exit with 1 if more of the images failed, or all.",
    ),
    click.option(
        "--workers",
        "num_workers",
        type=click.IntRange(1),
        help="Processes that hold the model, waited for where the cluster has no room yet. "
        "Without it one a GPU, or one a node without any, and more as nodes come.",
    ),
    click.option(
        "--gpus-per-worker",
        type=click.FloatRange(0, 1),
        help="What each takes of a GPU; 0 for CPUs. Without it 1 where there are GPUs.",
    ),
    click.option(
        "--retry",
        is_flag=True,
        help="Of a complete run, try again what was unreachable or throttled.",
    ),
    split_option,
    overwrite_option,
)


def _run_bulk(command: str, run: RunConfig, config: LocalizeConfig, workers: WorkerConfig) -> None:
    from cropscore_ray.jobs import localize as job
    from cropscore_ray.terminal.progress import Progress

    with Progress().live() as progress:
        record = job.run(command, run, config, workers=workers, progress=progress)
    click.echo(_summary(run.out, record["counts"]))


@click.command()
@_bulk_options
def score(run: RunConfig, config: LocalizeConfig, workers: WorkerConfig) -> None:
    """Score the 140 crops of every image.

    SOURCE is a manifest or anything that `index` takes.

    \b
    Example:
        cropscore score manifest --model bundle --out scores --classes label
    """
    _run_bulk("score", run, config, workers)


@click.command()
@_bulk_options
def localize(run: RunConfig, config: LocalizeConfig, workers: WorkerConfig) -> None:
    """Find a box for every image and class.

    SOURCE is a manifest or anything that `index` takes. Starting the same command again
    goes on where it stopped.

    \b
    Examples:
        cropscore localize photos --model bundle --out run
        cropscore localize manifest --split val --model bundle --out s3://bucket/run
        find photos -name '*.jpg' | cropscore localize - --model bundle --out run
    """
    _run_bulk("localize", run, config, workers)


@click.command()
@click.argument("source")
@click.option("--out", required=True, metavar="URI", help="The folder of archives and manifest.")
@click.option(
    "--shard-images",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Images an archive.",
)
@overwrite_option
def pack(source: str, out: str, shard_images: int, overwrite: bool) -> None:
    """Write many small files into tar archives, and a manifest of what lies in them.

    SOURCE is anything that `index` takes. A store answers for an archive's images as fast as
    for one file. OUT/manifest is then the source of other commands.

    \b
    Example:
        cropscore pack s3://bucket/photos --out s3://bucket/packed
    """
    from cropscore_ray.jobs import pack as job
    from cropscore_ray.terminal.progress import Progress

    with Progress().live() as progress:
        record = job.run(
            source, out=out, shard_images=shard_images, overwrite=overwrite, progress=progress
        )
    click.echo(_summary(f"{out}/manifest", record["counts"]))


def _summary(where: str, counts: dict[str, Any]) -> str:
    by_status = ", ".join(f"{n} {status}" for status, n in sorted(counts["by_status"].items()))
    return f"{where}: {counts['images']} images ({by_status}), {counts['rows']} rows"
