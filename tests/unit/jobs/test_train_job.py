"""Which config a training begins as, and what it may not change."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cropscore_ray.config.overrides import with_settings
from cropscore_ray.datasets.manifest import Manifest, write_manifest
from cropscore_ray.errors import ConfigError, DataError, ModelError, RunConflictError
from cropscore_ray.jobs import recipes, train
from cropscore_ray.models.bundle import Bundle, load_bundle, save_bundle
from cropscore_ray.schema import MANIFEST, ImageClass
from cropscore_ray.storage import lock
from cropscore_ray.storage.lock import Held
from cropscore_ray.terminal.progress import Progress
from cropscore_ray.training import ledger
from cropscore_ray.training.data.shares import TrainingRun
from cropscore_ray.training.on_ray import FitConfig

CLASSES = [ImageClass(id="a", name="a"), ImageClass(id="b", name="b")]
IMAGES = Manifest(table=MANIFEST.empty_table(), classes=CLASSES)
OTHERS = replace(IMAGES, classes=CLASSES[::-1])  # with another fingerprint


@pytest.fixture
def data(tmp_path: Path) -> str:
    """A manifest of one image without a box."""
    row = {"image_id": 0, "image_uri": "a.jpg", "class_index": 0, "gt_boxes": [], "split": "train"}
    uri = str(tmp_path / "m")
    write_manifest(uri, Manifest(table=pa.Table.from_pylist([row], MANIFEST), classes=CLASSES))
    return uri


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A bundle whose classifier is trained, with settings that no recipe has."""
    config = with_settings(recipes.smoke(), ["classifier.epochs=7", "scorer.epochs=5"])
    parts = {"classifier-0": {"sha256": "0", "metrics": {}}}
    uri = str(tmp_path / "model")
    save_bundle(Bundle(uri=uri, config=config, classes=CLASSES, parts=parts, baselines={}))
    return uri


def test_a_new_model_begins_as_its_recipe(tmp_path: Path) -> None:
    new = str(tmp_path / "new")
    assert train.first_config("all", model=new, recipe=None) == recipes.poster()
    assert train.first_config("all", model=new, recipe="demo") == recipes.demo()


def test_a_model_goes_on_with_its_own_config(model: str) -> None:
    config = train.first_config("scorer", model=model, recipe=None)
    assert (config.classifier.epochs, config.scorer.epochs) == (7, 5)


def test_a_recipe_for_a_later_stage_keeps_what_is_settled(model: str) -> None:
    config = train.first_config("scorer", model=model, recipe="demo")
    assert config.classifier.epochs == 7
    assert config.network == recipes.smoke().network
    assert config.scorer == recipes.demo().scorer
    assert train.first_config("localizer", model=model, recipe="demo").scorer.epochs == 5
    assert train.first_config("all", model=model, recipe="demo") == recipes.demo()


@pytest.mark.parametrize(
    ("stage", "setting", "name"),
    [
        ("scorer", "classifier.epochs=9", "classifier"),
        ("localizer", "scorer.epochs=9", "scorer"),
        ("localizer", "localizer_fraction=0.25", "localizer_fraction"),
        ("localizer", "mode=pyramid", "mode"),
        ("scorer", "localizer_fraction=0.25", "localizer_fraction"),
        ("scorer", "seed=3", "seed"),
        ("scorer", "mode=votes", "mode"),
        ("localizer", "max_localizer_images=9", "max_localizer_images"),
        ("localizer", "localizer.held_back_fraction=0.3", "localizer.held_back_fraction"),
        ("all", "network.width=0.5", "network"),
        ("classifier", "preprocess.frame_px=48", "preprocess"),
    ],
)
def test_what_is_settled_cannot_be_set(model: str, stage: str, setting: str, name: str) -> None:
    own = train.first_config(stage, model=model, recipe=None)
    with pytest.raises(ConfigError, match=f"has {name} "):
        ledger.open_bundle(stage, model, with_settings(own, [setting]), IMAGES)


def test_what_no_classifier_learnt_from_may_be_set(tmp_path: Path, model: str) -> None:
    own = train.first_config("scorer", model=model, recipe=None)
    for setting in ("mode=pyramid", "voter.held_back_fraction=0.3"):
        assert ledger.open_bundle("scorer", model, with_settings(own, [setting]), IMAGES)
    # Given weights have seen none of these images.
    config = replace(own, classifier=replace(own.classifier, epochs=0, num_members=1))
    bundle = replace(load_bundle(model), uri=str(tmp_path / "given"), config=config)
    save_bundle(bundle)
    for setting in ("localizer.held_back_fraction=0.3", "max_localizer_images=9"):
        assert ledger.open_bundle("localizer", bundle.uri, with_settings(config, [setting]), IMAGES)


def fingerprint(stage: str, model: str, *settings: str) -> str:
    config = with_settings(load_bundle(model).config, list(settings))
    return ledger.fingerprint(stage, replace(load_bundle(model), config=config), "images")


@pytest.mark.parametrize(
    "setting",
    ["localizer_fraction=0.25", "max_localizer_images=9", "localizer.held_back_fraction=0.3"],
)
def test_trained_classifiers_depend_on_what_is_held_back(model: str, setting: str) -> None:
    given = ["classifier.epochs=0", "classifier.num_members=1"]
    assert fingerprint("classifier", model, setting) != fingerprint("classifier", model)
    assert fingerprint("classifier", model, *given, setting) == fingerprint(
        "classifier", model, *given
    )
    other = ["voter.held_back_fraction=0.3", "mode=pyramid"]
    assert fingerprint("classifier", model, *other) == fingerprint("classifier", model)
    assert fingerprint("classifier", model, "mode=votes") != fingerprint("classifier", model)


def test_another_file_of_first_weights_under_the_same_name_is_seen(
    model: str, tmp_path: Path
) -> None:
    file = tmp_path / "first.pth"
    file.write_bytes(b"one")
    before = fingerprint("classifier", model, f"classifier.init={file}")
    assert fingerprint("classifier", model, f"classifier.init={file}") == before
    file.write_bytes(b"two")
    assert fingerprint("classifier", model, f"classifier.init={file}") != before


def test_the_scorer_does_not_depend_on_how_many_images_the_localizer_has(model: str) -> None:
    most = "max_localizer_images=9"
    assert fingerprint("scorer", model, most) == fingerprint("scorer", model)
    assert fingerprint("localizer", model, most) != fingerprint("localizer", model)


@pytest.mark.parametrize("recipe", ["best", "overlap", "pyramid", "ilsvrc-4k"])
def test_a_recipe_that_trains_no_classifier_wants_given_weights(
    tmp_path: Path, recipe: str
) -> None:
    model = tmp_path / "model"
    with pytest.raises(ConfigError, match=f"recipe {recipe}: .*no first weights") as caught:
        train.run("all", data="", model=str(model), config=recipes.get(recipe))
    assert "--init" in str(caught.value.hint)
    assert not model.exists()


def test_without_boxes_classifiers_alone_are_trained(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_train_stage", lambda stage, run, bundle, *_: bundle)
    model = tmp_path / "model"
    with pytest.raises(DataError, match="fewer than two images with a class and boxes"):
        train.run("all", data=data, model=str(model), config=recipes.smoke())
    assert not model.exists()
    train.run("classifier", data=data, model=str(model), config=recipes.smoke())


def test_first_weights_may_be_gone_once_the_classifier_is_trained(
    model: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_train_stage", lambda stage, run, bundle, *_: bundle)
    found = load_bundle(model)
    config = with_settings(found.config, ["classifier.init=/gone.pth"])
    save_bundle(replace(found, config=config))
    train.run("scorer", data=data, model=model, config=config)
    with pytest.raises(ModelError, match=r"no weights file /gone\.pth"):
        train.run("classifier", data=data, model=model, config=config)


@pytest.mark.parametrize("stage", ["classifier", "scorer", "localizer"])
def test_a_training_that_lost_its_bundle_to_another_writes_nothing_there(
    model: str, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Its lock was taken while its networks learnt."""
    taken = False

    def require(held: Held) -> None:
        if taken:
            raise RunConflictError(f"another run took over {held.folder_uri}")

    def fit(training: Any, config: FitConfig, progress: Any) -> dict[str, Any]:
        nonlocal taken
        taken = True
        with pytest.raises(RunConflictError):
            config.may_write()
        name = "classifier-0" if stage == "classifier" else stage
        return {name: {"tensors": {}, "metrics": {}}}

    monkeypatch.setattr(Held, "require", require)
    monkeypatch.setattr(train.on_ray, "fit", fit)
    monkeypatch.setattr(train, "_score_images", lambda *_: "scores")
    found = load_bundle(model)
    bundle = replace(found, parts={**found.parts, "scorer": {"sha256": "1", "metrics": {}}})
    run = TrainingRun(
        manifest_uri="",
        split=None,
        model_uri=model,
        config=bundle.config,
        held=Held(folder_uri=model),
    )
    before = [one.relative_to(model) for one in Path(model).rglob("*.safetensors")]
    with pytest.raises(RunConflictError, match="took over"):
        train._train_stage(stage, run, bundle, IMAGES, Progress(io.StringIO()))
    after = [one.relative_to(model) for one in Path(model).rglob("*.safetensors")]
    assert set(after) <= set(before)


@pytest.fixture
def fit_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages leave empty parts."""
    members = {"classifier": ["classifier-0", "classifier-1"]}

    def train_nothing(stage: str, *_: Any) -> dict[str, Any]:
        return {name: {"tensors": {}, "metrics": {}} for name in members.get(stage, [stage])}

    monkeypatch.setattr(train, "_train", train_nothing)


def train_on(images: Manifest, stage: str, model: str) -> str:
    """Train a stage on these images; return what was said."""
    bundle, said, held = load_bundle(model), io.StringIO(), Held(folder_uri=model)
    run = TrainingRun(manifest_uri="", split=None, model_uri=model, config=bundle.config, held=held)
    train._train_stage(stage, run, bundle, images, Progress(said))
    return said.getvalue()


def without_images(model: str) -> None:
    """Make parts such as older versions left."""
    bundle = load_bundle(model)
    for part in bundle.parts.values():
        part["metrics"].pop("images", None)
    save_bundle(bundle)


@pytest.mark.usefixtures("fit_nothing")
def test_a_localizer_of_another_manifest_than_the_scorers_is_refused(model: str) -> None:
    train_on(OTHERS, "scorer", model)
    before = Path(model, "model.json").read_text()
    with pytest.raises(ConfigError, match="another manifest or split, and may have") as caught:
        train_on(IMAGES, "localizer", model)
    assert "--data and --split" in str(caught.value.hint)
    assert Path(model, "model.json").read_text() == before
    train_on(OTHERS, "localizer", model)
    for name in ("scorer", "localizer"):
        found = load_bundle(model).parts[name]["metrics"]["images"]
        assert found == OTHERS.fingerprint()
    without_images(model)
    train_on(IMAGES, "localizer", model)


@pytest.mark.usefixtures("fit_nothing")
def test_a_scorer_that_is_not_trained_has_learnt_from_no_manifest(model: str) -> None:
    bundle = load_bundle(model)
    save_bundle(replace(bundle, config=with_settings(bundle.config, ["scorer.epochs=0"])))
    train_on(OTHERS, "scorer", model)
    train_on(IMAGES, "localizer", model)


@pytest.mark.usefixtures("fit_nothing")
def test_classifiers_of_another_manifest_may_have_seen_what_is_held_back(model: str) -> None:
    told = "the classifiers were trained on another manifest or split"
    train_on(OTHERS, "classifier", model)
    assert told in train_on(IMAGES, "scorer", model)
    assert told in train_on(IMAGES, "localizer", model)
    assert told not in train_on(OTHERS, "scorer", model)
    without_images(model)
    assert told not in train_on(IMAGES, "scorer", model)


def test_another_set_of_classes_is_refused(model: str) -> None:
    other = replace(IMAGES, classes=[*CLASSES, ImageClass(id="c", name="c")])
    with pytest.raises(ConfigError, match="2 classes that are not the manifest's 3"):
        ledger.open_bundle(
            "scorer", model, train.first_config("scorer", model=model, recipe=None), other
        )


def test_a_second_training_in_a_bundle_is_refused(tmp_path: Path, data: str) -> None:
    model = str(tmp_path / "model")
    with (
        lock.held(f"{model}/training", lambda _: None),
        pytest.raises(RunConflictError, match=f"another run is at work in {model}/training"),
    ):
        train.run("classifier", data=data, model=model, config=recipes.smoke())
    assert not (tmp_path / "model" / "model.json").exists()


@pytest.mark.parametrize(("use_gpu", "gpus"), [(None, None), (True, 1.0), (False, 0.0)])
def test_the_localizers_images_are_scored_where_the_networks_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_gpu: bool | None, gpus: float | None
) -> None:
    asked: list[Any] = []

    def score(*_: Any, workers: Any, **options: Any) -> dict[str, Any]:
        asked.append(workers.gpus_per_worker)
        return {"counts": {"by_status": {}}}

    monkeypatch.setattr(train.localize, "run", score)
    rows = [
        {"image_id": i, "image_uri": f"{i}.jpg", "class_index": 0, "gt_boxes": [[0, 0, 1, 1]]}
        for i in range(20)
    ]
    boxed = Manifest(table=pa.Table.from_pylist(rows, MANIFEST), classes=CLASSES)
    config = replace(recipes.smoke(), use_gpu=use_gpu)
    uri = str(tmp_path)
    bundle = Bundle(uri=uri, config=config, classes=CLASSES, parts={}, baselines={})
    run = TrainingRun(
        manifest_uri="m", split=None, model_uri=uri, config=config, held=Held(folder_uri=uri)
    )
    train._score_images(run, bundle, boxed, Progress())
    assert asked == [gpus]
