"""The plan of the house: how many rooms there are, how large what is in them, how fast its door."""

import ast
import configparser
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "cropscore_ray"
LINKS = {"cli.py", "jobs"}
"""In the package, to what stands at the top."""

MAX_MODULES, MAX_PACKAGES, MAX_LAYERS = 6, 13, 14
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 350, 60, 6
MAX_START_S = 0.3

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    """Return the Python files of the project, each once."""
    own = [path for path in PACKAGE.rglob("*.py") if not is_linked(path)]
    return sorted([ROOT / "cli.py", *(ROOT / "jobs").rglob("*.py"), *own])


def is_linked(path: Path) -> bool:
    return any(part.is_symlink() for part in (path, *path.parents) if PACKAGE in part.parents)


def functions(path: Path) -> Iterator[tuple[str, Function]]:
    """Yield each function of a file and where it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function):
            yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def is_called_with_options(function: Function) -> bool:
    """Return whether click or Triton gives the arguments, by name."""
    decorators = (ast.unparse(one) for one in function.decorator_list)
    return any(
        re.search(r"\b(click|jit)\b|\.(command|group)\b|wraps\(command\)", text)
        for text in decorators
    )


def num_parameters(function: Function) -> float:
    """Return how many parameters a caller may give; any number, with `**options`."""
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return float("inf") if given.kwarg else len({*names} - {"self", "cls"})


def test_few_modules_stand_beside_few_packages() -> None:
    entries = [path for path in PACKAGE.iterdir() if path.name not in LINKS]
    modules = {path.name for path in entries if path.suffix == ".py"} - {"__init__.py"}
    packages = {path.name for path in entries if (path / "__init__.py").exists()}
    assert len(modules) <= MAX_MODULES, sorted(modules)
    assert len(packages) <= MAX_PACKAGES, sorted(packages)


def test_imports_run_through_few_layers() -> None:
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    first = next(name for name in contracts.sections() if name.startswith("importlinter:contract"))
    assert len(contracts[first]["layers"].split("\n")) - 1 <= MAX_LAYERS


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    for place, function in functions(path):
        assert function.end_lineno is not None
        assert function.end_lineno - function.lineno < MAX_FUNCTION_LINES, place
        assert num_parameters(function) <= MAX_PARAMETERS or is_called_with_options(function), place


def test_no_package_imports_ray_or_torch_by_itself() -> None:
    inits = sorted(path for path in PACKAGE.rglob("__init__.py") if not is_linked(path))
    names = [path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in inits]
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert not {'ray', 'torch'} & set(sys.modules), name\n"
    )
    command = [sys.executable, "-c", program, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def start_s(*arguments: str) -> float:
    """Return the processor time of Python with these arguments, the best of five."""

    def used_s() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    times = []
    for _ in range(5):
        before_s = used_s()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(used_s() - before_s)
    return min(times)


@pytest.mark.parametrize(
    "arguments", [["-c", "import cropscore_ray"], ["-m", "cropscore_ray.cli", "--help"]]
)
def test_a_start_is_fast(arguments: list[str]) -> None:
    """Processor time, since other work on the machine takes none of it.

    On a slow machine, where Python alone takes more than 20 ms, as many times more.
    """
    assert start_s(*arguments) < MAX_START_S * max(1, start_s("-c", "pass") / 0.02)


def test_a_commit_is_checked_as_make_check_checks() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    [checks] = re.findall(r"^CHECKS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [hook["entry"] for hook in hooks] == [f"make check-{name}" for name in checks.split()]


def test_make_help_tells_of_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    told = set(re.findall(r'@echo "make (\S+) ', makefile))
    assert {name for name in phony.split() if re.fullmatch(r"[a-z-]+", name)} - {"help"} == told
