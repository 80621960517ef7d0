"""The whole flow, small, on a local Ray: every stage does its real work on drawn images."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from flow import NUM_VAL, Flow, rows
from PIL import Image
from plain import without_ray

from cropscore_ray import storage
from cropscore_ray.bulk.predict import LocalizeStage
from cropscore_ray.config.bulk import LocalizeConfig
from cropscore_ray.config.overrides import with_settings
from cropscore_ray.datasets.drawn import CLASS_NAMES
from cropscore_ray.errors import ConfigError, RunConflictError
from cropscore_ray.jobs import evaluate, localize, recipes, train
from cropscore_ray.models.bundle import load_bundle
from cropscore_ray.terminal.progress import Progress
from cropscore_ray.training import on_ray

pytestmark = pytest.mark.usefixtures("ray_local")


def test_training_leaves_every_part_and_the_baselines(flow: Flow):
    bundle = load_bundle(flow.model)
    assert sorted(bundle.parts) == ["classifier-0", "classifier-1", "localizer", "scorer"]
    assert [one.id for one in bundle.classes] == sorted(CLASS_NAMES)
    assert len(bundle.baselines["constant_box"]) == 4
    assert 0 < bundle.baselines["cam_threshold"] < 1
    metrics = bundle.parts["localizer"]["metrics"]
    counts = [metrics[f"num_{name}"] for name in ("train", "choosing", "judging")]
    assert counts == [27, 2, 3]


def test_training_again_does_nothing(flow: Flow, capsys: pytest.CaptureFixture[str]):
    before = load_bundle(flow.model).fingerprint
    train.run("all", data=flow.manifest, model=flow.model, config=recipes.smoke())
    assert load_bundle(flow.model).fingerprint == before
    assert capsys.readouterr().err.count("already trained") == 3


def test_ctrl_c_while_training_is_what_it_is_elsewhere():
    before = signal.getsignal(signal.SIGINT)

    def interrupted_fit() -> None:
        with on_ray._as_keyboard_interrupt():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # as Ray Train, whose handler then exits
            raise SystemExit(0)

    with pytest.raises(KeyboardInterrupt):
        interrupted_fit()
    assert signal.getsignal(signal.SIGINT) is before


def test_another_network_is_refused_for_an_existing_model(flow: Flow):
    other = with_settings(recipes.smoke(), ["network.width=0.25"])
    with pytest.raises(ConfigError, match=r"has network .*0\.125.* not .*0\.25"):
        train.run("scorer", data=flow.manifest, model=flow.model, config=other)


def test_localize_gives_the_label_and_five_guesses_for_each_image(flow: Flow):
    found = rows(flow.run)
    assert len(found) == NUM_VAL * 6
    assert sorted(row["class_rank"] for row in found[:6]) == [0, 1, 2, 3, 4, 5]
    for row in found:
        assert row["status"] == "ok"
        assert 0 <= row["xmin"] <= row["xmax"] <= row["width_px"]
        assert 0 <= row["ymin"] <= row["ymax"] <= row["height_px"]
        assert 0 < row["confidence"] < 1


def test_run_json_tells_the_story(flow: Flow):
    record = storage.read_json(f"{flow.run}/run.json")
    assert record["complete"] is True
    assert record["counts"] == {
        "images": NUM_VAL,
        "rows": NUM_VAL * 6,
        "by_status": {"ok": NUM_VAL},
    }
    assert record["identity"]["model"] == load_bundle(flow.model).fingerprint
    assert record["times"]["wall_s"] > 0


def test_evaluate_of_the_run_has_every_figure(flow: Flow, tmp_path: Path):
    evaluate.run(flow.run, flow.manifest, json_path=str(tmp_path / "e.json"))
    figures = json.loads((tmp_path / "e.json").read_text())
    assert figures["num_images"] == NUM_VAL
    values = [*figures["error"].values(), *figures["baselines"].values()]
    assert all(0 <= value <= 1 for value in values)


def test_a_folder_with_every_kind_of_file_gives_each_image_a_row(flow: Flow):
    folder = flow.folder / "wild"
    folder.mkdir()
    good = Image.effect_noise((40, 30), 90).convert("RGB")
    good.save(folder / "good.jpg")
    good.convert("CMYK").save(folder / "cmyk.jpg")
    good.convert("L").save(folder / "grey.png")
    Image.new("I;16", (20, 20), 40_000).save(folder / "sixteen.png")
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    (folder / "truncated.jpg").write_bytes((folder / "good.jpg").read_bytes()[:400])
    (folder / "empty.JPEG").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    (folder / "notes.txt").write_text("left aside")
    Image.new("1", (20_000, 10_000)).save(folder / "huge.png")
    out = str(flow.folder / "wild-run")
    record = flow.localize(out, source=str(folder))
    status = {Path(row["image_uri"]).name: row["status"] for row in rows(out)}
    assert status == {
        **dict.fromkeys(["good.jpg", "cmyk.jpg", "grey.png", "sixteen.png", "pixel.png"], "ok"),
        **dict.fromkeys(["truncated.jpg", "text.png"], "undecodable"),
        "empty.JPEG": "empty",
        "huge.png": "too_large",
    }
    assert record["counts"]["by_status"] == {
        "ok": 5,
        "undecodable": 2,
        "empty": 1,
        "too_large": 1,
    }


def test_predictions_are_one_parquet_file_a_part(flow: Flow):
    files = storage.list_files(f"{flow.run}/predictions")
    assert [Path(file).name for file in files] == [f"part-{i:07d}.parquet" for i in range(3)]
    assert [pq.read_metadata(file).num_rows for file in files] == [36, 36, 24]


def test_progress_in_a_log_is_whole_lines(capsys: pytest.CaptureFixture[str]):
    progress = Progress()
    with progress.live():
        progress.update("score", 1, 4)
        progress.update("score", 4, 4, "1 failed")
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "score: 4 of 4, 1 failed"


@pytest.mark.usefixtures("train_here")
def test_training_a_stage_again_takes_later_parts_out(flow: Flow):
    model = str(flow.folder / "retrained")
    shutil.copytree(flow.model, model)
    config = with_settings(load_bundle(model).config, ["scorer.epochs=0"])
    train.run("scorer", data=flow.manifest, model=model, config=config)
    assert sorted(load_bundle(model).parts) == ["classifier-0", "classifier-1", "scorer"]


def test_a_second_run_in_the_folder_is_refused_and_the_first_is_not_disturbed(flow: Flow):
    out = str(flow.folder / "twice")
    refused: list[RunConflictError] = []

    def start_again_after_the_first_part() -> None:
        deadline_s = time.monotonic() + 60
        while not storage.list_files(f"{out}/predictions") and time.monotonic() < deadline_s:
            time.sleep(0.05)
        with pytest.raises(RunConflictError) as caught:
            flow.localize(out, split="val", overwrite=True)
        refused.append(caught.value)

    second = threading.Thread(target=start_again_after_the_first_part)
    second.start()
    record = flow.localize(out, LocalizeConfig(part_images=1), split="val")
    second.join()
    assert f"another run is at work in {out} (process {os.getpid()} on " in str(refused[0])
    assert record["complete"]
    assert rows(out) == rows(flow.run)


class DiesAtOneImage(LocalizeStage):
    """A stage whose process dies at an image, as a broken decoder's would."""

    def by_image(self, rows, fetched):
        for row, data in zip(rows, fetched, strict=True):
            if row["image_uri"].endswith("-poison.jpg") and isinstance(data, bytes):
                os.kill(os.getpid(), signal.SIGKILL)
        return super().by_image(rows, fetched)


def make_dying_stage(command, *told):
    return DiesAtOneImage(*told)


def test_an_image_that_kills_its_process_costs_no_neighbour_its_row(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
):
    folder = flow.folder / "mixed"
    folder.mkdir()
    images = sorted((flow.folder / "images").rglob("*.jpg"))[:9]
    for number, image in enumerate(images):
        shutil.copy(image, folder / f"{number}{'-poison' if number == 4 else ''}.jpg")
    out = str(flow.folder / "poisoned")
    monkeypatch.setattr(localize, "make_stage", make_dying_stage)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers have no tests
    record = flow.localize(out, source=str(folder), config=LocalizeConfig(part_images=4))
    assert record["counts"]["by_status"] == {"ok": 8, "crashed": 1}
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    monkeypatch.undo()
    clean = str(flow.folder / "without-poison")
    with without_ray():
        flow.localize(clean, source=str(folder), config=LocalizeConfig(part_images=4))
    spared = [row for row in rows(clean) if "poison" not in row["image_uri"]]
    assert [row for row in rows(out) if row["status"] == "ok"] == spared
