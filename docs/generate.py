"""Write the pages that something else holds: the commands, the settings, the notebook.

    python docs/generate.py

A test compares the pages with what this returns.
"""

import ast
import base64
import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

import cropscore_ray.config
from cropscore_ray.cli import main
from cropscore_ray.config.sections import TrainConfig

DOCS = Path(__file__).resolve().parent
NOTEBOOK = DOCS / "tutorial" / "python.ipynb"
NOTE = "<!-- Written by docs/generate.py from the code. Change the code, then run it again. -->"


def generated_files() -> dict[Path, bytes]:
    """Return the content of each generated file."""
    pages = {
        DOCS / "reference/commands.md": commands_page(),
        DOCS / "reference/configuration.md": configuration_page(),
        NOTEBOOK.with_suffix(".md"): notebook_page(),
    }
    return {path: text.encode() for path, text in pages.items()} | pictures_of_notebook()


def cell(text: str) -> str:
    """Return text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def wrapped(text: str) -> str:
    """Return text in lines of 100 characters."""
    return textwrap.fill(" ".join(text.split()), 100, break_on_hyphens=False)


# The notebook


def notebook_page() -> str:
    """Return the notebook's cells, code with what came of it, as a page."""
    source = "This page is a notebook, `python.ipynb` beside it, with what came of its cells."
    head, *cells = json.loads(NOTEBOOK.read_text())["cells"]
    parts = [NOTE, "".join(head["source"]), source]
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else fenced("python", text))
        for output in cell.get("outputs", []):
            is_picture = "image/png" in output["data"]
            text = "".join(output["data"]["text/plain"])
            parts.append(f"![]({picture_of(cell).name})" if is_picture else fenced("text", text))
    return "\n\n".join(parts) + "\n"


def pictures_of_notebook() -> dict[Path, bytes]:
    """Return the pictures that cells of the notebook gave."""
    return {
        picture_of(cell): base64.b64decode(output["data"]["image/png"])
        for cell in json.loads(NOTEBOOK.read_text())["cells"]
        for output in cell.get("outputs", [])
        if "image/png" in output["data"]
    }


def picture_of(cell: dict[str, Any]) -> Path:
    """Return the file of the picture that a cell gave."""
    return NOTEBOOK.with_name(f"python-{cell['id']}.png")


def fenced(language: str, text: str) -> str:
    """Return text as a block of code."""
    return f"```{language}\n{text}\n```"


# Commands


def commands_page() -> str:
    """Return the page of every command, its options and an example."""
    exits = (
        "Results go to stdout, progress and errors to stderr. `cropscore -v` in front of a command "
        "shows what the library logs."
    )
    parts = [NOTE, "# Commands", wrapped(exits), EXIT_CODES]
    for name, command in main.commands.items():
        parts += command_section(f"cropscore {name}", command, level=2)
    return "\n\n".join(parts) + "\n"


EXIT_CODES = """\
| exit code | when |
|---|---|
| 0 | all went well; images that cannot be read are rows, not failures |
| 1 | something failed, all images did, or more than `--max-failed-fraction` allows |
| 2 | the command line or a setting is wrong |
| 130 | Ctrl-C |"""


def command_section(name: str, command: click.Command, *, level: int) -> Iterator[str]:
    """Yield the blocks that describe a command and, below it, its sub-commands."""
    yield f"{'#' * level} {name}"
    for block in re.split(r"\n\n+", inspect.cleandoc(command.help or "")):
        lines = block.replace("\b", "").strip("\n").splitlines()
        if any(line.startswith("    ") for line in lines):  # an example, as click keeps it
            first, *rest = lines
            head, code = ([first], rest) if not first.startswith("    ") else ([], lines)
            yield "\n".join([*head, "", *code]).strip("\n")
        else:
            yield wrapped(block)
    rows = [f"| {head} | {help} |" for head, help in map(parameter, command.params) if head]
    if rows:
        yield "\n".join(["| option | meaning |", "|---|---|", *rows])
    if isinstance(command, click.Group):
        for sub, below in command.commands.items():
            yield from command_section(f"{name} {sub}", below, level=level + 1)


def parameter(param: click.Parameter) -> tuple[str, str]:
    """Return how a parameter is written and what it means."""
    context = click.Context(click.Command("none"))
    if not isinstance(param, click.Option):
        name = param.make_metavar(context)
        choices = param.type.choices if isinstance(param.type, click.Choice) else ()
        name = str(param.name).upper() if choices else re.sub(r"[][{}]", "", name)
        return f"`{name}`", ", ".join(choices) if choices else "see above"
    names, help = param.get_help_record(context) or ("", "")
    names = names.replace("|", "/").replace(" RANGE", "")
    return f"`{names}`" if names else "", cell(help)


# Settings


def configuration_page() -> str:
    """Return the page of every setting: name, type, default, meaning."""
    intro = (
        "A training is one `TrainConfig`. The option `--set NAME=VALUE` of `cropscore train` "
        "changes a field of it, and the resolved config is written beside every output. "
        "Recipes begin with other values than these defaults: see [Recipes](recipes.md)."
    )
    parts = [NOTE, "# Configuration", wrapped(intro), "## Settings of a training"]
    parts += settings_section(TrainConfig)
    nested = {f.name: f.type for f in dataclasses.fields(TrainConfig)}
    inside = {kind for kind in nested.values() if dataclasses.is_dataclass(kind)}
    for prefix, kind in nested.items():
        if kind in inside:
            parts += [f"## {prefix}", *settings_section(kind, prefix=f"{prefix}.")]
    bases = {base for kind in inside for base in inspect.getmro(kind)}
    for kind in dataclasses_of_config():
        if kind not in bases | {TrainConfig}:
            parts += [f"## {kind.__name__}", *settings_section(kind)]
    return "\n\n".join(parts) + "\n"


def dataclasses_of_config() -> list[type]:
    """Return every class of settings that a module of `cropscore_ray.config` defines."""
    kinds = []
    package = cropscore_ray.config
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(info.name)
        kinds += [
            kind
            for kind in vars(module).values()
            if isinstance(kind, type)
            and kind.__name__.endswith("Config")
            and kind.__module__ == info.name
        ]
    return kinds


def settings_section(kind: Any, prefix: str = "") -> Iterator[str]:
    """Yield what a config is, and a table of its own fields."""
    meanings = docstrings_of_fields(kind)
    yield wrapped(inspect.getdoc(kind) or "")
    rows = []
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            continue
        name = f"`{prefix}{field.name}`"
        default = "" if field.default is dataclasses.MISSING else f"`{written(field.default)}`"
        type_ = getattr(field.type, "__name__", None) or str(field.type)
        if not isinstance(field.type, type):
            type_ = str(field.type)
        rows.append(f"| {name} | {cell(type_)} | {default} | {cell(meanings[field.name])} |")
    yield "\n".join(["| setting | type | default | meaning |", "|---|---|---|---|", *rows])


def written(value: object) -> str:
    """Return a default as `--set` takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def docstrings_of_fields(kind: type) -> dict[str, str]:
    """Return the string below each field, those of the bases included."""
    meanings: dict[str, str] = {}
    for base in reversed(inspect.getmro(kind)):
        if not dataclasses.is_dataclass(base):
            continue
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        body = definition.body
        for statement, after in pairwise(body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                meanings[statement.target.id] = str(after.value.value)
    return meanings


if __name__ == "__main__":
    for path, content in generated_files().items():
        path.write_bytes(content)
