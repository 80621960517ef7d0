"""The notebook of the docs runs, on the small flow in place of the demo."""

import json
from pathlib import Path

import pytest
from flow import Flow

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_every_cell_runs(
    notebook: Path, flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").symlink_to(flow.folder)
    monkeypatch.chdir(tmp_path)
    cells = json.loads(notebook.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]

    names: dict[str, object] = {}
    for source in sources:
        exec(compile(source, notebook.name, "exec"), names)

    assert len(sources) > 3
    assert len(names["predictions"]) == 3  # type: ignore[arg-type]
