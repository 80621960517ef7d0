"""Options that several commands have."""

import click

model_option = click.option("--model", required=True, metavar="BUNDLE", help="The model bundle.")
split_option = click.option("--split", metavar="NAME", help="Only this split of the manifest.")
overwrite_option = click.option(
    "--overwrite",
    is_flag=True,
    help="Replace what another source, model or config left there.",
)
