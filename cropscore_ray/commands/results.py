"""The commands about the results of a run: `evaluate`, `export` and `report`."""
# ruff: noqa: D301 (\b is the backspace with which click keeps an example's lines apart)

import click

from cropscore_ray.commands.options import split_option
from cropscore_ray.terminal.tables import show


@click.command()
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

        show(*classify.render(classify.run(predictions, data, split=split, json_path=json_path)))
        return
    evaluation = job.run(
        predictions, data, split=split, json_path=json_path, format=format_, meta=meta
    )
    show(*job.render(evaluation))


@click.command()
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


@click.command()
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
