"""Options that several commands have, and the configs that are built from options."""

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

Command = Callable[..., None]
Config = TypeVar("Config")

model_option = click.option("--model", required=True, metavar="BUNDLE", help="The model bundle.")
split_option = click.option("--split", metavar="NAME", help="Only this split of the manifest.")
overwrite_option = click.option(
    "--overwrite",
    is_flag=True,
    help="Begin afresh, in place of what was there, of this command's own unfinished work too.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that gives a command all these options; its help lists the last first."""
    return lambda command: functools.reduce(lambda inner, option: option(inner), options, command)


def with_configs(*kinds: type) -> Callable[[Command], Command]:
    """Return a decorator that hands options over as configs, and the other options by name."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def callback(**options: Any) -> None:
            configs: list[Any] = [take(kind, options) for kind in kinds]
            command(*configs, **options)

        return callback

    return decorate


def take(kind: type[Config], options: dict[str, Any]) -> Config:
    """Take the options that are named as a config's fields out of a dict; return the config.

    A field whose option was not given (None) keeps its default.
    """
    values = {field.name: options.pop(field.name, None) for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in values.items() if value is not None})
