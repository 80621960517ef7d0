"""The pages say what the code does: commands, columns, statuses, keys, recipes, links."""

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import click
import pytest

import cropscore_ray
from cropscore_ray import errors, schema
from cropscore_ray.bulk import run_folder
from cropscore_ray.cli import main
from cropscore_ray.datasets.manifest import Manifest
from cropscore_ray.evaluation.metrics import evaluate
from cropscore_ray.jobs import bench, recipes

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
DECISIONS = sorted((ROOT / "docs/decisions").glob("*.md"))
MAX_DECISION_LINES = 40
MAX_LINE = 100
KINDS = ("tutorial", "how-to", "reference", "explanation", "measurements", "decisions")

TABLES = {
    "manifest": schema.MANIFEST,
    "scores": schema.SCORES,
    "predictions": schema.PREDICTIONS,
}


def page(name: str) -> str:
    return (ROOT / name).read_text()


def section(text: str, heading: str) -> str:
    """Return what stands below a heading, up to the next one of its level or above."""
    level, _, _ = heading.partition(" ")
    after = text.split(f"\n{heading}\n", 1)[1]
    return re.split(rf"\n#{{1,{len(level)}}} ", after)[0]


def first_column(text: str) -> list[str]:
    """Return the backticked words that rows of Markdown tables begin with."""
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def code_lines(text: str) -> Iterator[str]:
    """Yield the lines of indented and fenced code blocks, continued lines joined."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks += ["\n".join(re.findall(r"^ {4}(.*)$", text, re.MULTILINE))]
    for block in blocks:
        yield from block.replace("\\\n", " ").splitlines()


def command_lines() -> list[tuple[str, str]]:
    """Return (page, command line) for every `cropscore …` in the pages' code."""
    found = []
    for path in PAGES:
        for line in code_lines(path.read_text()):
            if match := re.match(r"(?:\$ )?(?:\S*/)?(cropscore (?=\S).*)", line.strip()):
                found.append((str(path.relative_to(ROOT)), match[1]))
        if path.name == "commands.md":
            continue  # its sentences are those of --help, which name commands without arguments
        inline = re.findall(r"`(cropscore [a-z]+ [^`\n]*)`", path.read_text())
        found += [(str(path.relative_to(ROOT)), line) for line in inline]
    return found


def parse(line: str) -> None:
    """Parse a command line without running it; a synopsis may have [--options FILE]."""
    words = shlex.split(re.sub(r"\[(--[^]]*)]", r"\1", line), comments=True)
    name, *rest = [word for word in words[1:] if word not in ("-v", "--verbose")]
    if name not in main.commands:
        raise click.UsageError(f"no such command {name!r}")
    command: click.Command = main.commands[name]
    while isinstance(command, click.Group) and rest and rest[0] in command.commands:
        command, name, rest = command.commands[rest[0]], rest[0], rest[1:]
    if isinstance(command, click.Group) and not rest:
        return  # a page may name a group of commands
    command.make_context(name, rest).close()


def commands() -> list[str]:
    return sorted(main.commands)


def test_readme_has_a_row_for_every_command_and_for_no_other() -> None:
    rows = first_column(section(page("README.md"), "## Commands"))

    assert sorted(rows) == [f"cropscore {name}" for name in commands()]


@pytest.mark.parametrize("name", commands())
def test_help_of_a_command_has_an_example_that_parses(name: str) -> None:
    command = main.commands[name]
    text = command.get_help(click.Context(command, info_name=name))

    examples = [line for line in code_lines(text) if line.strip().startswith("cropscore ")]
    assert examples
    for example in examples:
        parse(example.strip())


def test_every_command_line_in_the_pages_parses() -> None:
    lines = command_lines()

    assert len(lines) > 10
    for where, line in lines:
        try:
            parse(line)
        except click.ClickException as error:
            pytest.fail(f"{where}: {line}: {error.format_message()}")


@pytest.mark.parametrize(
    "line",
    [
        "cropscore guess photos",
        "cropscore index photos --to m",
        "cropscore localize photos",
        "cropscore bench scorer --images 3",
    ],
)
def test_a_command_line_that_does_not_exist_is_found_out(line: str) -> None:
    with pytest.raises(click.ClickException):
        parse(line)


@pytest.mark.parametrize("name", TABLES)
def test_reference_describes_the_columns_of_a_table_in_their_order(name: str) -> None:
    rows = first_column(section(page("docs/reference/tables.md"), f"## {name}"))

    assert rows == TABLES[name].names


def test_reference_describes_every_status() -> None:
    rows = first_column(section(page("docs/reference/tables.md"), "## Statuses"))

    assert rows == list(schema.STATUSES)


def test_reference_describes_the_keys_that_every_run_json_has(tmp_path: Path) -> None:
    run = run_folder.open_run(str(tmp_path), table="predictions", identity={}, facts={})

    described = first_column(section(page("docs/reference/run-folder.md"), "## run.json"))
    assert set(run.record) <= set(described)


def test_reference_describes_the_keys_of_a_bundle_and_what_a_run_takes_from_it(
    tmp_path: Path,
) -> None:
    from cropscore_ray.config.bulk import LocalizeConfig, RunConfig
    from cropscore_ray.jobs import localize
    from cropscore_ray.models.bundle import Bundle, save_bundle

    model = str(tmp_path / "model")
    bundle = Bundle(uri=model, config=recipes.smoke(), classes=[], parts={}, baselines={})
    save_bundle(bundle)
    run = RunConfig(source="photos", model=model, out="run")
    facts = localize._facts("localize", bundle, run, "m", LocalizeConfig())
    run_json = section(page("docs/reference/run-folder.md"), "## run.json")
    model_json = section(page("docs/reference/bundle.md"), "## model.json")

    in_model_json = json.loads((tmp_path / "model/model.json").read_text())
    assert first_column(model_json) == list(in_model_json)
    run_keys = first_column(run_json)
    assert set(run_keys) == {*facts, "format", "complete", "identity", "counts", "times"}
    for name in facts["config"]:
        assert f"`{name}`" in run_json


def test_reference_describes_the_keys_of_evaluate_json() -> None:
    classes = [schema.ImageClass(id="cat", name="cat")]
    image = {"image_id": 0, "image_uri": "a.jpg", "width_px": 8, "height_px": 8}
    truth = {**image, "class_index": 0, "gt_boxes": [[0.0, 0.0, 4.0, 4.0]]}
    manifest = Manifest(table=schema.rows_to_table([truth], schema.MANIFEST), classes=classes)
    failed = {**image, "status": "missing", "error": "no file"}
    predictions = schema.rows_to_table([failed], schema.PREDICTIONS)

    values = evaluate(predictions, manifest).to_json()

    described = section(page("docs/reference/json.md"), "## evaluate --json")
    assert first_column(described) == list(values)
    for group in ("error", "baselines", "max_box_acc", "by_num_boxes"):
        for name in values[group]:
            assert f"`{name}`" in described, name


def test_reference_describes_the_ratios_of_bench_json() -> None:
    described = first_column(section(page("docs/reference/json.md"), "### Ratios"))
    modes = [f"pipeline/bare:{mode}" for mode in ("exact", "pyramid")]
    source = Path(bench.__file__).read_text()
    named = re.findall(r'ratios\["([^"]+)"\]', source)
    named += re.findall(r'"([^"{]+/[^"{]+)": ratio\(', source)
    of_scorer = [f"{over}/{under}" for over, under in bench.RATIOS]
    assert sorted(described) == sorted([*of_scorer, *named, *modes])


def test_every_recipe_is_described() -> None:
    listed = section(page("docs/reference/recipes.md"), "## All recipes")

    assert first_column(listed) == list(recipes.RECIPES)


def test_readme_has_a_line_for_every_package_of_the_library() -> None:
    listed = section(page("README.md"), "## Where things are")
    packages = [path.parent.name for path in (ROOT / "cropscore_ray").glob("*/__init__.py")]

    assert sorted(re.findall(r"^ {6}([a-z]+)/ ", listed, re.MULTILINE)) == sorted(
        {*packages} - {"jobs"}
    )


def test_files_that_newcomers_are_sent_to_exist() -> None:
    listed = section(page("README.md"), "## Where things are")
    first = re.findall(r"^\| \[([^]]+)]", listed, re.MULTILINE)
    examples = section(page("CONTRIBUTING.md"), "## Add something")

    assert len(first) == 5
    for name in [*first, *re.findall(r"`([\w./-]+/[\w-]+\.\w+)`", examples)]:
        assert (ROOT / name).is_file(), name


def test_walk_of_an_image_names_what_the_code_has() -> None:
    steps = re.findall(
        r"^\| \d+ \| `([^`]+)` \| `([^`]+)` \|", page("docs/explanation/walk.md"), re.MULTILINE
    )

    assert len(steps) == 10
    for file, name in steps:
        assert re.search(rf"^(?:def|class) {name}\b", page(file), re.MULTILINE), (file, name)


def test_python_names_that_the_reference_lists_exist() -> None:
    listed = first_column(page("docs/reference/python.md"))
    names = [name for name in listed if name not in ("labels", "classes", "top_k", "progress")]

    for name in names:
        if not name.endswith("Error"):
            attrgetter(name)(cropscore_ray)
        else:
            assert issubclass(getattr(errors, name), Exception), name
    listed_first = {name.partition(".")[0] for name in names}
    assert set(cropscore_ray.__all__) - {"__version__"} <= listed_first


def test_generated_pages_are_what_the_code_and_the_notebook_say() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec
    assert spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)

    for path, content in generate.generated_files().items():
        assert path.read_bytes() == content, "run: python docs/generate.py"


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_of_prose_are_short(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    long = [
        line
        for line in text.splitlines()
        if len(line) > MAX_LINE and not line.startswith(("|", "    ", "![")) and "](" not in line
    ]

    assert not long


def test_pages_lie_in_the_folder_of_their_kind_and_in_the_index() -> None:
    index = page("docs/index.md")

    for path in (ROOT / "docs").rglob("*.md"):
        kind, _, name = str(path.relative_to(ROOT / "docs")).removesuffix(".md").rpartition("/")
        assert kind in KINDS or name == "index", path
        assert kind == "decisions" or name == "index" or f"\n{kind}/{name}\n" in index, path


def test_method_has_the_sections_and_rows_that_comments_cite() -> None:
    code = "".join(
        path.read_text()
        for folder in ("cropscore_ray", "jobs")
        for path in (ROOT / folder).rglob("*.py")
    )
    text = page("docs/explanation/method.md")

    sections = re.findall(r"METHOD\s+(?:#\s*)?sections? (\d+)(?: and (\d+))?", code)
    rows = re.findall(r"METHOD\s+(?:#\s*)?rows? (\d+)", code)
    assert sections
    assert rows
    for number in filter(None, (one for pair in sections for one in pair)):
        assert f"\n## {number}. " in text, number
    for number in rows:
        assert f"\n| {number} |" in text, number


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings]
            assert anchor in slugs, target


def test_decisions_are_numbered_from_one_and_fit_on_a_page() -> None:
    numbers = [int(path.name[:4]) for path in DECISIONS]

    assert numbers == list(range(1, len(DECISIONS) + 1))
    for number, path in zip(numbers, DECISIONS, strict=True):
        lines = path.read_text().splitlines()
        assert lines[0].startswith(f"# {number}. "), path.name
        assert len(lines) <= MAX_DECISION_LINES, path.name
