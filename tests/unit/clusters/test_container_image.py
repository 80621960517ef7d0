"""The image: what its Dockerfile says, and what its one step does in a plain environment."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = ROOT / "cluster/Dockerfile"
INSTALL = ROOT / "cluster/install.sh"


def instructions() -> list[tuple[str, str]]:
    """Return what the Dockerfile does, line by line, continued lines joined."""
    lines = DOCKERFILE.read_text().replace("\\\n", " ").splitlines()
    words = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    return [(name, rest) for name, rest in words]


def test_the_linter_finds_nothing() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_last_stage_takes_only_what_was_installed_and_runs_without_rights() -> None:
    starts = [place for place, (name, _) in enumerate(instructions()) if name == "FROM"]
    assert len(starts) == 2
    last = instructions()[starts[-1] :]
    assert [rest for name, rest in last if name == "COPY"] == ["--from=build /install /usr/local"]
    assert [rest for name, rest in last if name == "USER"] == ["1000"]


def test_rays_launcher_finds_its_programs_and_the_users_home() -> None:
    last = dict(instructions())
    assert {"openssh-client", "rsync"} <= set(last["RUN"].split())
    assert "HOME=/home/ray" in last["ENV"].split()
    assert last["WORKDIR"] == "/home/ray"


def test_what_the_build_needs_is_sent_and_secrets_and_data_are_not() -> None:
    ignored = (ROOT / "cluster/Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in ignored if not line.startswith("#")]
    assert rules[0] == "*"
    for kept in (rule.removeprefix("!") for rule in rules if rule.startswith("!")):
        assert kept == "wheels" or list(ROOT.glob(kept)), kept


class Install:
    """install.sh with a pip that only notes what it is asked for, and a PyTorch that says what
    it is built for."""

    def __init__(self, folder: Path, cuda: str | None) -> None:
        self.folder, self.asked = folder, folder / "asked"
        packages = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
        self._write(f"prefix/{packages}/torch.py", f"class version: cuda = {cuda!r}\n")
        self._write("prefix/bin/cropscore", "#!/bin/sh\necho cropscore 1\n")
        self._write("constraints.txt", "")
        self._write(
            "bin/python",
            f'#!/bin/sh\n[ "$2" = pip ] || exec {sys.executable} "$@"\n'
            f'shift 2; echo "$@" >> {self.asked}\n',
        )

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            [INSTALL, self.folder, self.folder / "prefix"],
            env={**os.environ, "PATH": path, **environment},
            capture_output=True,
            text=True,
            check=False,
        )


def test_pytorch_comes_from_the_index_that_has_it_and_all_is_pinned(tmp_path: Path) -> None:
    install = Install(tmp_path, cuda=None)
    done = install.run(VARIANT="cpu", TORCH_INDEX="http://wheels")
    assert (done.returncode, done.stdout) == (0, "cropscore 1\n"), done.stderr
    first, second = install.asked.read_text().splitlines()
    assert first.endswith("--index-url http://wheels torch torchvision")
    assert second.endswith(f" {tmp_path}")
    assert all(f"-c {tmp_path}/constraints.txt" in line for line in (first, second))


def test_where_there_are_wheels_the_network_is_left_alone(tmp_path: Path) -> None:
    install = Install(tmp_path, cuda="13")
    install._write("wheels/cropscore_ray-1-py3-none-any.whl", "")
    assert install.run(VARIANT="cuda").returncode == 0
    [asked] = install.asked.read_text().splitlines()
    assert f"--no-index --find-links {tmp_path}/wheels cropscore-ray" in asked


@pytest.mark.parametrize(("variant", "cuda"), [("cpu", "13"), ("cuda", None)])
def test_a_pytorch_for_something_else_ends_the_build(
    tmp_path: Path, variant: str, cuda: str | None
) -> None:
    done = Install(tmp_path, cuda=cuda).run(VARIANT=variant)
    assert done.returncode == 1
    assert re.search(rf"not {variant}: TORCH_INDEX", done.stderr)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_image_is_made_of_wheels_alone(tmp_path: Path) -> None:
    """All wheels are fetched first; then pip may look at nothing else."""
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", ROOT, source], check=True)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    wheels = ["wheel", "-w", source / "wheels", "-c", source / "constraints.txt", source]
    subprocess.run([*pip, *wheels], check=True)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    done = subprocess.run(
        [source / "cluster/install.sh", source, tmp_path / "prefix"],
        env={
            "PATH": f"{tmp_path / 'venv/bin'}:/usr/bin:/bin",
            "VARIANT": "cuda" if torch.version.cuda else "cpu",
            "http_proxy": "http://127.0.0.1:9",
            "https_proxy": "http://127.0.0.1:9",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("cropscore, version")
