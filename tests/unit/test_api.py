"""cropscore in a Python program: the same rows as the commands, from paths, bytes and arrays."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from models import random_model
from PIL import Image

import cropscore_ray as cropscore
from cropscore_ray import schema, storage
from cropscore_ray.config.bulk import LocalizeConfig, RunConfig
from cropscore_ray.datasets.drawn import draw_image_set
from cropscore_ray.errors import ConfigError, DataError, ImageError, ModelError
from cropscore_ray.grid import NUM_SQUARES
from cropscore_ray.jobs import index, localize

COMPATIBILITY = Path(__file__).parents[1] / "compatibility"
BOXES = ["xmin", "ymin", "xmax", "ymax", "confidence", "class_index", "class_rank", "status"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images with a manifest, and a model with random weights."""
    folder = tmp_path_factory.mktemp("api")
    labels = draw_image_set(str(folder / "drawn"), num_train=6, num_val=0, seed=1)
    index.run(f"csv:{labels}", str(folder / "manifest"))
    random_model(str(folder / "model"))
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> cropscore.Model:
    return cropscore.load(str(folder / "model"))


@pytest.fixture
def paths(folder: Path) -> list[Path]:
    return sorted((folder / "drawn" / "images").rglob("*.jpg"))


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys, cropscore_ray as cropscore\n"
        "assert 'load' in dir(cropscore)\n"
        "sys.exit(bool({'ray', 'torch', 'pyarrow', 'numpy', 'PIL'} & set(sys.modules)))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_that_is_used_here_starts_no_ray(folder: Path, paths: list[Path]) -> None:
    code = (
        "import sys, cropscore_ray as cropscore\n"
        f"cropscore.load({str(folder / 'model')!r}).localize([{str(paths[0])!r}])\n"
        "sys.exit('ray' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'localise'"):
        cropscore.localise  # noqa: B018


def test_rows_are_those_of_the_command(
    folder: Path, model: cropscore.Model, bulk_here: None
) -> None:
    out = str(folder / "run")
    where = RunConfig(source=str(folder / "manifest"), model=str(folder / "model"), out=out)
    localize.run("localize", where, LocalizeConfig(classes="predicted"))
    run = cropscore.read_run(out)
    wanted = run.table()

    uris = storage.read_table(str(folder / "manifest"))["image_uri"].to_pylist()
    found = model.localize(uris)

    assert run.complete
    assert found.schema.equals(schema.PREDICTIONS)
    for name in BOXES:
        assert found[name].to_pylist() == wanted[name].to_pylist(), name


def test_paths_bytes_and_pixels_of_an_image_have_the_same_boxes(
    model: cropscore.Model, paths: list[Path]
) -> None:
    pixels = np.asarray(Image.open(paths[0]))
    grey = np.asarray(Image.open(paths[0]).convert("L"))
    found = model.localize([paths[0], str(paths[0]), paths[0].read_bytes(), pixels, grey], top_k=1)

    assert found["image_uri"].to_pylist()[2:] == ["images[2]", "images[3]", "images[4]"]
    boxes = found.select(BOXES).to_pylist()
    assert boxes[0] == boxes[1] == boxes[2] == boxes[3]
    assert found["status"].to_pylist() == ["ok"] * 5


def test_labels_come_first_and_an_image_that_cannot_be_read_is_a_row(
    model: cropscore.Model, paths: list[Path]
) -> None:
    told: list[tuple[int, int]] = []
    found = model.localize(
        [paths[0], b"", "nowhere.jpg", paths[1]],
        labels=["3", "3", "3", None],
        top_k=2,
        progress=lambda *event: told.append(event),
    )
    rows = found.select(["image_id", "class_rank", "status"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        *((0, rank, "ok") for rank in (0, 1, 2)),
        (1, None, "empty"),
        (2, None, "missing"),
        *((3, rank, "ok") for rank in (1, 2)),
    ]
    assert found["class_index"][0].as_py() == 3
    assert told == [(4, 4)]


def test_more_images_than_a_group_keep_their_order(
    model: cropscore.Model, monkeypatch: pytest.MonkeyPatch, paths: list[Path]
) -> None:
    whole = model.score(paths, labels=["0"] * len(paths), classes="label")
    monkeypatch.setattr("cropscore_ray.api._GROUP", 2)
    assert model.score(paths, labels=["0"] * len(paths), classes="label").equals(whole)
    assert whole["image_id"].to_pylist() == list(range(len(paths)))
    assert whole.schema.equals(schema.SCORES)


def test_a_model_that_votes_scores_its_images_too(paths: list[Path]) -> None:
    voting = cropscore.load(str(COMPATIBILITY / "voting-model"))
    assert voting.bundle.config.mode == "votes"

    scores = voting.score(paths[:2], top_k=1)

    assert scores["status"].to_pylist() == ["ok", "ok"]
    assert np.isfinite(np.array(scores["scores"].to_pylist())).all()
    assert np.shape(scores["scores"].to_pylist()) == (2, NUM_SQUARES)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ("cat.jpg", None, "images is a single image"),
        ([np.zeros((4, 4), np.float32)], None, r"an image is an array of float32, \(4, 4\)"),
        ([np.zeros((4, 4, 4), np.uint8)], None, r"an image is an array of uint8, \(4, 4, 4\)"),
        ([b""], [], "there are 0 labels for 1 images"),
        ([b""], ["cat"], "'cat' is no class of the model"),
    ],
)
def test_a_callers_mistake_is_a_config_error(
    model: cropscore.Model, images: list[object], labels: list[str] | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        model.localize(images, labels=labels)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model bundle at"):
        cropscore.load(str(tmp_path))
    with pytest.raises(DataError, match=r"has no run\.json"):
        cropscore.read_run(str(tmp_path))


def test_predictions_in_memory_are_evaluated_as_those_of_a_run(
    folder: Path, model: cropscore.Model
) -> None:
    manifest = storage.read_table(str(folder / "manifest"))
    found = model.localize(manifest["image_uri"].to_pylist())
    storage.write_table(str(folder / "table.parquet"), found)

    in_memory = cropscore.evaluate(found, str(folder / "manifest"))
    assert in_memory == cropscore.evaluate(str(folder / "table.parquet"), str(folder / "manifest"))
    assert in_memory.num_images == 6


def test_boxes_are_drawn_where_they_are() -> None:
    row = {"xmin": 10.0, "ymin": 40.0, "xmax": 60.0, "ymax": 90.0, "class_name": "cat"}
    row |= {"confidence": 0.5, "image_id": 0, "image_uri": "a", "status": "ok"}
    failed = {"image_id": 0, "image_uri": "a", "status": "missing"}
    table = pa.Table.from_pylist([row, failed], schema.PREDICTIONS)

    drawn = np.asarray(cropscore.draw(np.zeros((100, 100, 3), np.uint8), table)).max(2)

    rows, columns = np.nonzero(drawn)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40, 89, 10, 59)
    # A line of two pixels, and nothing inside but the words at the top.
    assert drawn[40:42, 10:60].min() > 0
    assert drawn[75:88, 12:58].max() == 0


def test_the_surest_box_is_the_strongest() -> None:
    black = np.zeros((100, 100, 3), np.uint8)
    row = {"ymin": 40.0, "ymax": 90.0, "class_name": "cat", "image_id": 0, "image_uri": "a"}
    two = [
        {**row, "xmin": 5.0, "xmax": 45.0, "confidence": 0.9, "status": "ok"},
        {**row, "xmin": 55.0, "xmax": 95.0, "confidence": 0.2, "status": "ok"},
    ]
    drawn = np.asarray(cropscore.draw(black, pa.Table.from_pylist(two, schema.PREDICTIONS)))
    assert drawn[80, 5, 0] == 255
    assert 100 < drawn[80, 55, 0] < 200


def test_an_image_that_cannot_be_drawn_on_says_why() -> None:
    with pytest.raises(ImageError, match="0 bytes"):
        cropscore.draw(b"", schema.PREDICTIONS.empty_table())


def test_a_picture_of_the_file_is_what_is_drawn_on(paths: list[Path]) -> None:
    drawn = cropscore.draw(paths[0], schema.PREDICTIONS.empty_table())
    assert drawn.mode == "RGB"
    with io.BytesIO(paths[0].read_bytes()) as file:
        assert np.array_equal(np.asarray(drawn), np.asarray(Image.open(file)))
