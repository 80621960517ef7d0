"""Options that several commands have."""

import click

model_option = click.option("--model", required=True, metavar="BUNDLE", help="The model bundle.")
split_option = click.option("--split", metavar="NAME", help="Only this split of the manifest.")
overwrite_option = click.option(
    "--overwrite",
    is_flag=True,
    help="Begin afresh, in place of what was there, of this command's own unfinished work too.",
)
