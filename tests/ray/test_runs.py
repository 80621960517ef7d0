"""Runs of the flow's model: parts, restarts, refusals, sources and modes.

Their parts are done in this process (`bulk_here`); the model was trained, and the run that they
are compared with was done, on Ray.
"""

import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from flow import CONFIG, NUM_VAL, Flow, rows
from PIL import Image

from cropscore_ray import storage
from cropscore_ray.config.bulk import LocalizeConfig, RunConfig
from cropscore_ray.config.overrides import with_settings
from cropscore_ray.errors import ConfigError, DataError, ModelError, RunConflictError
from cropscore_ray.jobs import index, localize, pack, recipes, train
from cropscore_ray.models.bundle import load_bundle, save_bundle

pytestmark = pytest.mark.usefixtures("flow", "bulk_here")


def test_part_size_does_not_change_predictions(flow: Flow):
    out = str(flow.folder / "one-part")
    flow.localize(out, LocalizeConfig(part_images=100), split="val")
    assert len(storage.list_files(f"{out}/predictions")) == 1
    assert rows(out) == rows(flow.run)


def test_a_lost_part_is_done_again_and_no_other(flow: Flow):
    out = str(flow.folder / "resumed")
    flow.localize(out, split="val")
    files = storage.list_files(f"{out}/predictions")
    kept = Path(files[0]).stat().st_mtime_ns
    Path(files[1]).unlink()
    record = storage.read_json(f"{out}/run.json")
    storage.write_json(f"{out}/run.json", {**record, "complete": False})
    flow.localize(out, split="val")
    assert rows(out) == rows(flow.run)
    assert Path(files[0]).stat().st_mtime_ns == kept


def test_a_complete_run_is_left_alone(flow: Flow, capsys: pytest.CaptureFixture[str]):
    before = Path(flow.run, "run.json").read_bytes()
    flow.localize(flow.run, split="val")
    assert "nothing to do" in capsys.readouterr().err
    assert Path(flow.run, "run.json").read_bytes() == before


def test_another_config_on_the_same_folder_is_refused_by_name(flow: Flow):
    with pytest.raises(RunConflictError, match=r"config\.top_k: 5 there, 3 now"):
        flow.localize(flow.run, LocalizeConfig(part_images=6, top_k=3), split="val")


def test_an_image_that_vanished_is_a_row(flow: Flow):
    folder = flow.folder / "vanishing"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (30, 30)).save(folder / name)
    index.run(str(folder), str(flow.folder / "vanishing-manifest"))
    (folder / "b.jpg").unlink()
    out = str(flow.folder / "vanished")
    flow.localize(out, source=str(flow.folder / "vanishing-manifest"))
    found = {Path(row["image_uri"]).name: row["status"] for row in rows(out)}
    assert found == {"a.jpg": "ok", "b.jpg": "missing"}


def test_what_the_storage_gave_no_answer_for_is_asked_for_again(
    flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (30, 30)).save(tmp_path / name)
    index.run(str(tmp_path), str(tmp_path / "manifest"))
    (tmp_path / "b.jpg").rename(tmp_path / "c")
    os.mknod(tmp_path / "b.jpg", stat.S_IFSOCK)  # it cannot be read, and may another time
    source, out = str(tmp_path / "manifest"), str(tmp_path / "run")
    flow.localize(out, source=source)
    assert "--retry asks again" in capsys.readouterr().err
    assert [row["status"] for row in rows(out)] == ["ok"] * 5 + ["unreachable"]
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "c").rename(tmp_path / "b.jpg")
    flow.localize(out, source=source)
    assert "nothing to do" in capsys.readouterr().err
    record = flow.localize(out, source=source, retry=True)
    assert record["counts"]["by_status"] == {"ok": 2}
    assert [row["status"] for row in rows(out)] == ["ok"] * 10
    flow.localize(out, source=source, retry=True)
    assert "nothing to do" in capsys.readouterr().err


def test_score_writes_the_scores_table(flow: Flow):
    out = str(flow.folder / "scores")
    run = RunConfig(source=flow.manifest, split="val", model=flow.model, out=out)
    localize.run("score", run, LocalizeConfig(classes="label", part_images=16))
    found = storage.read_table(f"{out}/scores").to_pylist()
    assert len(found) == NUM_VAL
    assert {len(row["scores"]) for row in found} == {140}


def test_a_source_with_a_form_needs_no_index_before(flow: Flow):
    out = str(flow.folder / "from-csv")
    flow.localize(out, source=f"csv:{flow.folder}/images/labels.csv", split="val")
    assert rows(out) == rows(flow.run)
    assert storage.read_json(f"{out}/run.json")["manifest_uri"] == f"{out}/manifest"


def test_overwrite_replaces_the_run_and_only_after_all_is_checked(flow: Flow):
    out = str(flow.folder / "overwritten")
    flow.localize(out, split="val")
    with pytest.raises(ConfigError, match="no split 'vall'"):
        flow.localize(out, split="vall", overwrite=True)
    assert rows(out) == rows(flow.run)
    known = LocalizeConfig(part_images=6, classes="label")
    flow.localize(out, known, split="val", overwrite=True)
    assert [row["class_rank"] for row in rows(out)] == [0] * NUM_VAL


def test_an_untrained_model_is_refused_before_a_run_begins(flow: Flow):
    model = flow.folder / "half-trained"
    shutil.copytree(flow.model, model)
    bundle = load_bundle(str(model))
    save_bundle(replace(bundle, parts={"classifier-0": bundle.parts["classifier-0"]}))
    half = replace(flow, model=str(model))
    with pytest.raises(ModelError, match="has no scorer") as caught:
        half.localize(str(flow.folder / "never"), split="val")
    assert "cropscore train scorer" in str(caught.value.hint)
    assert not (flow.folder / "never").exists()


@pytest.mark.usefixtures("train_here")
def test_a_voters_model_localizes_and_still_scores(flow: Flow, tmp_path: Path) -> None:
    model, out = str(tmp_path / "model"), str(tmp_path / "run")
    settings = ["mode=votes", "scorer.epochs=0", "localizer_fraction=1", "voter.epochs=1"]
    config = with_settings(recipes.smoke(), ["classifier.num_members=1", *settings])
    bundle = train.run("all", data=flow.manifest, model=model, config=config)
    metrics = bundle.parts["localizer"]["metrics"]
    assert (metrics["num_train"], metrics["num_judging"]) == (58, 6)
    run = RunConfig(source=flow.manifest, split="val", model=model, out=out)
    record = localize.run("localize", run, CONFIG)
    assert record["config"]["mode"] == "votes"
    found = rows(out)
    assert len(found) == NUM_VAL * 6
    for row in found:
        assert row["status"] == "ok"
        assert 0 <= row["xmin"] < row["xmax"] <= row["width_px"]
        assert 0 <= row["ymin"] < row["ymax"] <= row["height_px"]
        assert 0 < row["confidence"] < 1
    scores = localize.run("score", replace(run, out=out + "-scores"), CONFIG)
    assert scores["config"]["mode"] == "pyramid"


@pytest.mark.usefixtures("train_here")
def test_a_pyramids_model_localizes_in_its_own_mode(flow: Flow, tmp_path: Path) -> None:
    model = str(tmp_path / "model")
    settings = ["mode=pyramid", "classifier.num_members=1", "max_localizer_images=16"]
    config = with_settings(recipes.smoke(), settings)
    bundle = train.run("all", data=flow.manifest, model=model, config=config)
    assert bundle.fingerprint != load_bundle(flow.model).fingerprint

    def run(command: str, out: str, mode: str | None) -> dict:
        where = RunConfig(source=flow.manifest, split="val", model=model, out=str(tmp_path / out))
        return localize.run(command, where, LocalizeConfig(mode=mode))

    record = run("localize", "run", None)
    assert record["config"]["mode"] == "pyramid"
    assert record["counts"]["by_status"] == {"ok": NUM_VAL}
    with pytest.raises(ConfigError, match="learnt boxes from scores of pyramid mode, not exact"):
        run("localize", "other", "exact")
    own, other = run("score", "own", "pyramid"), run("score", "scores", "exact")
    assert own["counts"]["rows"] == other["counts"]["rows"]


def test_too_many_failures_are_an_error_after_all_rows_are_written(flow: Flow):
    folder = flow.folder / "half-broken"
    folder.mkdir()
    Image.new("RGB", (30, 30)).save(folder / "a.jpg")
    (folder / "b.jpg").write_text("not an image")
    out = str(flow.folder / "half-broken-run")
    with pytest.raises(DataError, match=r"1 of 2 images failed \(1 undecodable\)"):
        flow.localize(out, source=str(folder), max_failed_fraction=0.4)
    assert {row["status"] for row in rows(out)} == {"ok", "undecodable"}
    assert flow.localize(out, source=str(folder), max_failed_fraction=0.5)["complete"]
    (folder / "a.jpg").write_text("nor this")
    with pytest.raises(DataError, match="2 of 2 images failed"):
        flow.localize(str(flow.folder / "broken-run"), source=str(folder))


def test_a_packed_set_gives_the_same_rows(flow: Flow, capsys: pytest.CaptureFixture[str]):
    source, out = flow.folder / "to-pack", str(flow.folder / "packed")
    for number, image in enumerate(sorted((flow.folder / "images").rglob("*.jpg"))[:10]):
        (source / f"class-{number % 3}").mkdir(parents=True, exist_ok=True)
        shutil.copy(image, source / f"class-{number % 3}" / f"{number}.jpg")
    index.run(str(source), str(flow.folder / "to-pack-manifest"))
    (source / "class-2" / "5.jpg").unlink()
    listed = str(flow.folder / "to-pack-manifest")
    record = pack.run(listed, out=out, shard_images=4)
    assert record["counts"] == {
        "images": 10,
        "rows": 10,
        "by_status": {"ok": 9, "left_where_it_was": 1},
    }
    shards = [Path(file).name for file in storage.list_files(f"{out}/shards")]
    assert shards == [f"shard-{number:07d}.tar" for number in range(3)]
    before = {path: path.read_bytes() for path in Path(out).rglob("*.tar")}
    pack.run(listed, out=out, shard_images=4)
    assert "nothing to do" in capsys.readouterr().err
    pack.run(listed, out=out, shard_images=4, overwrite=True)
    assert before == {path: path.read_bytes() for path in Path(out).rglob("*.tar")}
    # The archives stand for themselves too, but for the image that is in none of them.
    again = index.run(f"tar:{out}/shards", str(flow.folder / "from-shards"))
    assert (again.num_images, again.num_classes) == (9, 3)

    def found(where: str) -> list[dict]:
        return [
            {name: value for name, value in row.items() if name not in ("image_uri", "error")}
            for row in rows(where)
        ]

    flow.localize(f"{out}-run", source=f"{out}/manifest")
    flow.localize(f"{out}-plain", source=listed)
    assert found(f"{out}-run") == found(f"{out}-plain")
    assert [row["status"] for row in found(f"{out}-run")].count("missing") == 1


def test_a_folder_is_worked_on_while_it_is_listed_and_its_listing_survives(
    flow: Flow, capsys: pytest.CaptureFixture[str]
):
    folder, out = flow.folder / "listed", str(flow.folder / "listed-run")
    folder.mkdir()
    for number, image in enumerate(sorted((flow.folder / "images").rglob("*.jpg"))[:5]):
        shutil.copy(image, folder / f"{number}.jpg")
    (folder / "notes.txt").touch()
    flow.localize(out, source=str(folder))
    said = capsys.readouterr().err
    assert "5 images found; other files left aside, by extension: 1 txt" in said
    before = rows(out)
    # What came later is not of this run, whether it is gone on with or only looked at.
    shutil.copy(folder / "0.jpg", folder / "late.jpg")
    Path(storage.list_files(f"{out}/predictions")[0]).unlink()
    record = storage.read_json(f"{out}/run.json")
    storage.write_json(f"{out}/run.json", {**record, "complete": False})
    flow.localize(out, source=str(folder))
    assert rows(out) == before
    with pytest.raises(RunConflictError, match=r"manifest: .*listed.* there, .*images.* now"):
        flow.localize(out, source=str(flow.folder / "images"))
    assert flow.localize(out, source=str(folder), overwrite=True)["counts"]["images"] == 6


def test_a_folder_without_images_leaves_no_run(flow: Flow):
    folder = flow.folder / "no-images"
    folder.mkdir()
    (folder / "notes.txt").touch()
    with pytest.raises(DataError, match=r"no image here; other files left aside.*1 txt"):
        flow.localize(str(flow.folder / "no-run"), source=str(folder))
    assert not (flow.folder / "no-run" / "run.json").exists()
