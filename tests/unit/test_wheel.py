"""What a wheel installs; see docs/decisions/0001-cli-and-jobs-in-the-wheel.md."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling", reason="needs hatchling, which builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [path] = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_puts_one_name_beside_its_metadata_into_site_packages(
    wheel: zipfile.ZipFile,
) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}

    assert {top for top in tops if not top.endswith(".dist-info")} == {"cropscore_ray"}


def test_wheel_holds_the_linked_command_line_and_jobs_as_plain_files(
    wheel: zipfile.ZipFile,
) -> None:
    for source in [ROOT / "cli.py", *(ROOT / "jobs").glob("*.py")]:
        name = f"cropscore_ray/{source.relative_to(ROOT)}"
        assert wheel.read(name) == source.read_bytes()


def test_wheel_holds_what_the_report_is_made_of(wheel: zipfile.ZipFile) -> None:
    assert {"cropscore_ray/report/page.html.j2", "cropscore_ray/report/style.css"} <= set(
        wheel.namelist()
    )


def test_wheel_says_that_it_is_typed(wheel: zipfile.ZipFile) -> None:
    assert "cropscore_ray/py.typed" in wheel.namelist()


def test_links_of_the_repository_point_to_the_top() -> None:
    assert (ROOT / "cropscore_ray/cli.py").resolve() == ROOT / "cli.py"
    assert (ROOT / "cropscore_ray/jobs").resolve() == ROOT / "jobs"
