"""The `cropscore` command: options in, one job called, messages out. No logic lives here.

Commands import their job when they run, so that `--help` needs neither Ray nor torch.
"""
# ruff: noqa: D301 (\b is the backspace with which click keeps an example's lines apart)

import json
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
from cropscore_ray.commands.jobs import jobs, submit
from cropscore_ray.commands.options import model_option, overwrite_option, split_option
from cropscore_ray.commands.plan import plan
from cropscore_ray.errors import CropscoreError

# Ray reads these when it is imported. What it logs by itself is for its developers.
QUIET_RAY = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_TRAIN_V2_ENABLED": "1",
}


class _Shell(click.Group):
    """Turns what the library raises into a message, a hint and an exit code."""

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


@main.command()
@click.option("--out", default="demo", show_default=True, metavar="DIR", help="Where it all goes.")
def demo(out: str) -> None:
    """Run the whole flow on a small image set that the program draws itself.

    \b
    Example:
        cropscore demo --out demo
    """
    from cropscore_ray.jobs import demo as job

    click.echo(job.run(out))


@main.command()
@click.argument("source")
@click.option("--out", required=True, metavar="URI", help="The manifest's folder.")
@overwrite_option
def index(source: str, out: str, overwrite: bool) -> None:
    """Make a manifest of an image set.

    SOURCE is a folder or s3:// prefix (classes by sub-folder, or none), ilsvrc:ROOT,
    voc:ROOT, csv:FILE, tar:GLOB, parquet:URI, or - for a list of URIs on standard input.

    \b
    Examples:
        cropscore index photos --out manifest
        cropscore index ilsvrc:/data/imagenet --out s3://bucket/ilsvrc-manifest
    """
    from cropscore_ray.jobs import index as job
    from cropscore_ray.progress import Progress

    progress = Progress()
    with progress.live():
        report = job.run(
            source, out, overwrite=overwrite, progress=lambda n, of: progress.update("index", n, of)
        )
    click.echo(job.render(report))


@main.command()
@click.argument(
    "stage", type=click.Choice(["classifier", "scorer", "localizer", "all"]), default="all"
)
@click.option("--data", required=True, metavar="MANIFEST", help="Images, classes and boxes.")
@model_option
@click.option(
    "--recipe", metavar="NAME", help="Where the config begins: the model's own, or poster."
)
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change one field.")
@click.option("--init", metavar="WEIGHTS", help="First weights: the same as --set classifier.init.")
@split_option
def train(
    stage: str,
    data: str,
    model: str,
    recipe: str | None,
    settings: tuple[str, ...],
    init: str | None,
    split: str | None,
) -> None:
    """Train the networks of a model bundle on Ray Train workers.

    --init takes torchvision:IMAGENET1K_V1, FILE.pth or inception-bn:FILE.npz. A stage that
    is trained already, with the same settings on the same images, is passed over.

    \b
    Examples:
        cropscore train all --data manifest --model bundle
        cropscore train classifier --data manifest --model bundle --recipe overlap \\
            --init torchvision:IMAGENET1K_V1 --set classifier.epochs=0
    """
    from cropscore_ray.config.overrides import with_settings
    from cropscore_ray.jobs import train as job
    from cropscore_ray.progress import Progress

    chosen = [*settings, *([f"classifier.init={json.dumps(init)}"] if init else [])]
    config = with_settings(job.first_config(stage, model=model, recipe=recipe), chosen)
    progress = Progress()
    with progress.live():
        bundle = job.run(
            stage, data=data, model=model, config=config, split=split, progress=progress
        )
    click.echo(f"{bundle.uri}: {', '.join(sorted(bundle.parts))}; fingerprint {bundle.fingerprint}")


@main.command()
@click.argument("predictions")
@click.option("--data", required=True, metavar="MANIFEST", help="The truth.")
@split_option
@click.option("--json", "json_path", metavar="FILE", help="Write the same numbers as JSON.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["parquet", "ilsvrc", "devkit"]),
    default="parquet",
    show_default=True,
    help="What PREDICTIONS is.",
)
@click.option("--meta", metavar="FILE", help="The development kit's meta file, for devkit.")
def evaluate(
    predictions: str,
    data: str,
    split: str | None,
    json_path: str | None,
    format_: str,
    meta: str | None,
) -> None:
    """Print the ILSVRC errors of predictions beside the baselines.

    PREDICTIONS is a run folder, a predictions table, or a file in an ILSVRC format; of a model
    bundle, its classifiers' errors with one crop and with ten are printed.

    \b
    Example:
        cropscore evaluate run --data manifest --json errors.json
    """
    from cropscore_ray.jobs import evaluate as job

    if job.is_model(predictions):
        from cropscore_ray.jobs import classify

        found = classify.run(predictions, data, split=split, json_path=json_path)
        click.echo(classify.render(found))
        return
    evaluation = job.run(
        predictions, data, split=split, json_path=json_path, format=format_, meta=meta
    )
    click.echo(job.render(evaluation))


@main.command()
@click.argument("predictions")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["ilsvrc", "devkit", "coco", "csv"]),
    required=True,
    help="What to write.",
)
@click.option("--out", required=True, metavar="FILE", help="The file to write.")
@click.option("--meta", metavar="FILE", help="The development kit's meta file, for devkit.")
def export(predictions: str, format_: str, out: str, meta: str | None) -> None:
    """Write predictions in another format.

    \b
    Example:
        cropscore export run --format ilsvrc --out submission.csv
    """
    from cropscore_ray.jobs import export as job

    job.run(predictions, format=format_, out=out, meta=meta)
    click.echo(out)


@main.command()
@click.argument("run")
@split_option
@click.option("--out", metavar="FILE.html", help="Where to write it; RUN/report.html without.")
def report(run: str, split: str | None, out: str | None) -> None:
    """Draw a run as one HTML page: errors, charts, and a gallery with score maps.

    \b
    Example:
        cropscore report run --out report.html
    """
    from cropscore_ray.jobs import report as job

    click.echo(job.run(run, split=split, out=out))


for command in (score, localize, pack, bench, submit, jobs, cluster, plan):
    main.add_command(command)


if __name__ == "__main__":
    main()
