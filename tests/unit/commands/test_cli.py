"""The command line as a user meets it: help, messages, hints and exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cropscore_ray.cli import main
from cropscore_ray.config.bulk import LocalizeConfig, RunConfig, WorkerConfig


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def commands() -> list[str]:
    return sorted(main.list_commands(click.Context(main)))


def test_help_needs_neither_ray_nor_torch():
    code = (
        "import sys\n"
        "from cropscore_ray.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "sys.exit(bool({'ray', 'torch', 'pyarrow', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: " in done.stdout


def test_the_command_of_a_bulk_run_does_without_torch():
    """The processes with the model need it; the command would only wait for its import."""
    code = "import sys, cropscore_ray.jobs.localize; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", ["bulk.predict", "training.on_ray", "training.stages"])
def test_a_process_that_works_on_images_does_without_torchvision(module: str):
    """Its import brings PyTorch's compiler along: seconds of every start."""
    code = f"import sys, cropscore_ray.{module}; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", commands())
def test_every_command_has_help_with_an_example(command: str):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"cropscore {command} " in result.output
    assert "Example" in result.output


def test_an_unknown_option_is_a_usage_error():
    result = run("index", "photos", "--oout", "m")
    assert result.exit_code == 2
    assert "--oout" in result.output


def test_an_unknown_source_is_a_usage_error_that_lists_the_forms(tmp_path: Path):
    result = run("index", "zip:photos", "--out", str(tmp_path / "m"))
    assert result.exit_code == 2
    assert "zip" in result.stderr
    assert "csv:FILE" in result.stderr


def test_a_missing_folder_fails_with_a_hint_and_no_traceback(tmp_path: Path):
    result = run("index", str(tmp_path / "nowhere"), "--out", str(tmp_path / "m"))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "nowhere" in result.stderr
    assert "hint: " in result.stderr
    assert "Traceback" not in result.stderr


def test_index_prints_its_report_on_stdout(tmp_path: Path):
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "one.png")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    result = run("index", str(tmp_path), "--out", str(tmp_path / "m"))
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "1 images, 0 boxes on 0 of them, 1 classes"
    assert "1 .txt" in result.stdout or "1 txt" in result.stdout


def test_indexing_another_source_into_a_manifest_is_refused(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "one.png")
    out = str(tmp_path / "m")
    assert run("index", str(tmp_path / "a"), "--out", out).exit_code == 0
    refused = run("index", str(tmp_path / "b"), "--out", out)
    assert refused.exit_code == 1
    assert "--overwrite" in refused.stderr
    assert run("index", str(tmp_path / "b"), "--out", out, "--overwrite").exit_code == 0


def test_localizing_without_a_model_says_how_to_make_one(tmp_path: Path):
    result = run("localize", str(tmp_path), "--model", str(tmp_path / "no"), "--out", "r")
    assert result.exit_code == 1
    assert "no model bundle" in result.stderr
    assert "cropscore train" in result.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("scorer.epoch=3", "no setting 'scorer.epoch'"),
        ("scorer.epochs=many", "scorer.epochs is 'many'"),
        ("scorer.epochs=-1", "scorer.epochs is -1, but it must be 0 or more"),
        ("scorer.epochs", "has no '='"),
    ],
)
def test_a_wrong_setting_is_a_usage_error_that_names_it(tmp_path: Path, setting: str, message: str):
    model = str(tmp_path / "model")
    result = run("train", "--data", "m", "--model", model, "--recipe", "smoke", "--set", setting)
    assert result.exit_code == 2
    assert message in result.stderr


def test_an_unknown_recipe_lists_the_known_ones(tmp_path: Path):
    result = run("train", "--data", "m", "--model", str(tmp_path / "n"), "--recipe", "best-ever")
    assert result.exit_code == 2
    assert "poster" in result.stderr


def test_evaluate_of_nothing_is_an_error_without_a_traceback(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    manifest = str(tmp_path / "m")
    run("index", str(tmp_path), "--out", manifest)
    json_path = tmp_path / "e.json"
    result = run("evaluate", str(tmp_path / "no"), "--data", manifest, "--json", str(json_path))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert not json_path.exists()


def test_the_version_is_the_package_s():
    from importlib.metadata import version

    assert run("--version").output.strip().endswith(version("cropscore-ray"))


def test_ctrl_c_says_that_the_command_goes_on(monkeypatch: pytest.MonkeyPatch):
    from cropscore_ray.jobs import export

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "run", interrupted)
    result = run("export", "run", "--format", "csv", "--out", "x.csv")
    assert result.exit_code == 130
    assert "goes on from here" in result.stderr
    assert json.dumps(result.stdout) == '""'


def test_options_of_a_bulk_run_reach_its_job_as_configs(monkeypatch: pytest.MonkeyPatch):
    from cropscore_ray.jobs import localize

    calls = []

    def job(*given: object, workers: WorkerConfig, progress: object) -> dict:
        calls.append((*given, workers))
        return {"counts": {"images": 2, "by_status": {"ok": 2}, "rows": 6}}

    monkeypatch.setattr(localize, "run", job)
    where = ("--model", "m", "--out", "r", "--split", "val", "--retry")
    result = run("score", "photos", *where, "--top", "3", "--mode", "exact", "--workers", "2")
    assert result.stdout == "r: 2 images (2 ok), 6 rows\n"
    assert calls == [
        (
            "score",
            RunConfig(source="photos", model="m", out="r", split="val", retry=True),
            LocalizeConfig(top_k=3, mode="exact"),
            WorkerConfig(num_workers=2),
        )
    ]
