"""The commands up to a trained model: `demo`, `index` and `train`."""
# ruff: noqa: D301 (\b is the backspace with which click keeps an example's lines apart)

import json

import click

from cropscore_ray.commands.options import model_option, overwrite_option, split_option
from cropscore_ray.terminal.tables import show


@click.command()
@click.option("--out", default="demo", show_default=True, metavar="DIR", help="Where it all goes.")
def demo(out: str) -> None:
    """Run the whole flow on a small image set that the program draws itself.

    \b
    Example:
        cropscore demo --out demo
    """
    from cropscore_ray.jobs import demo as job

    show(*job.run(out))


@click.command()
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
    from cropscore_ray.terminal.progress import Progress

    with Progress().live() as progress:
        report = job.run(
            source, out, overwrite=overwrite, progress=lambda n, of: progress.update("index", n, of)
        )
    click.echo(job.render(report))


@click.command()
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
    from cropscore_ray.terminal.progress import Progress

    chosen = [*settings, *([f"classifier.init={json.dumps(init)}"] if init else [])]
    config = with_settings(job.first_config(stage, model=model, recipe=recipe), chosen)
    with Progress().live() as progress:
        bundle = job.run(
            stage, data=data, model=model, config=config, split=split, progress=progress
        )
    click.echo(f"{bundle.uri}: {', '.join(sorted(bundle.parts))}; fingerprint {bundle.fingerprint}")
