"""The job behind `cropscore train`: a manifest becomes a model bundle, stage by stage.

`training.ledger` decides what need not be done again, and what may not change.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from cropscore_ray import schema, storage
from cropscore_ray.config.bulk import LocalizeConfig, RunConfig, WorkerConfig
from cropscore_ray.config.modes import VOTER
from cropscore_ray.config.sections import TrainConfig
from cropscore_ray.datasets.manifest import Manifest, write_manifest
from cropscore_ray.errors import ConfigError, StorageError
from cropscore_ray.images import archives
from cropscore_ray.jobs import localize, recipes
from cropscore_ray.models.bundle import Bundle, is_bundle, load_bundle, save_bundle, save_part
from cropscore_ray.models.pretrained import adapt_config, require_init
from cropscore_ray.storage import lock
from cropscore_ray.terminal.progress import Progress
from cropscore_ray.training import ledger, on_ray, stages
from cropscore_ray.training.data.shares import TrainingRun, split_boxed, training_manifest


def run(
    stage: str,
    *,
    data: str,
    model: str,
    config: TrainConfig,
    split: str | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Train one stage, or `all`, into the bundle at `model`; done stages are passed over.

    Args:
        stage: classifier, scorer, localizer or all.
        data: the manifest.
        model: the bundle; made if there is none.
        config: the whole training; stages before this one are trained, so theirs is settled.
        split: of the manifest; None takes `train`, or the only one.
        progress: where to show it.

    Returns:
        the bundle as it is now.

    Raises, among others:
        RunConflictError: another training is at work in the bundle.
        DataError: scorer and localizer lack images with boxes.
        StorageError: the storage gave no answer for an image that the localizer needs.
    """
    shown = progress or Progress()
    data, model = storage.absolute_uri(data), storage.absolute_uri(model)
    if stage in ("classifier", "all") and not (config.classifier.epochs or config.classifier.init):
        raise ConfigError(
            f"recipe {config.recipe}: with classifier.epochs=0 the classifier is not trained, and "
            "it has no first weights",
            hint="name some with --init, such as torchvision:IMAGENET1K_V1",
        )
    manifest = training_manifest(data, split)
    if stage == "all":
        split_boxed(manifest, config)  # fails before hours of classifiers if there are no boxes
    first_uri = manifest.table["image_uri"][0].as_py() if len(manifest.table) else ""
    if isinstance(archives.parse(first_uri), archives.Cell):
        shown.say(
            "note: each image is read with its whole row group of a Parquet file, epoch after "
            "epoch; `cropscore pack` makes archives, of which it is read alone"
        )
    config = adapt_config(config)
    if stage in ("classifier", "all"):  # the others begin from networks in the bundle
        require_init(config.classifier.init)
    with lock.held(storage.join(model, "training"), shown.say) as held:
        bundle = ledger.open_bundle(stage, model, config, manifest)
        run = TrainingRun(
            manifest_uri=data, split=split, model_uri=model, config=bundle.config, held=held
        )
        for name in ledger.STAGES if stage == "all" else (stage,):
            bundle = _train_stage(name, run, bundle, manifest, shown)
    return bundle


def first_config(stage: str, *, model: str, recipe: str | None) -> TrainConfig:
    """Return the config that a training begins as, before any --set.

    A new bundle begins as its recipe, `poster` if none is named; a bundle that is there
    goes on with its own config. A recipe named for a later stage changes all but what
    the stages before it have settled.
    """
    if not is_bundle(model):
        return recipes.get(recipe or "poster")
    own = load_bundle(model).config
    if recipe is None:
        return own
    named = recipes.get(recipe)
    return named if stage in ("classifier", "all") else ledger.keep_settled(stage, own, named)


def _train_stage(
    stage: str, run: TrainingRun, bundle: Bundle, manifest: Manifest, shown: Progress
) -> Bundle:
    images = manifest.fingerprint()
    fingerprint = ledger.fingerprint(stage, bundle, images)
    if ledger.is_done(stage, bundle, fingerprint):
        shown.say(f"{stage}: already trained with these settings on these images")
        return bundle
    for note in ledger.check_upstream(stage, bundle, images):
        shown.say(note)
    run.held.require()
    kept = ledger.without_stale(stage, bundle)
    if dropped := sorted(bundle.parts.keys() - kept.parts.keys()):
        shown.say(f"{stage}: to be trained again, so {', '.join(dropped)} leave the model")
    bundle = kept
    save_bundle(bundle)
    trained = _train(stage, fingerprint, run, bundle, manifest, shown)
    for name, part in trained.items():
        run.held.require()
        bundle = save_part(
            bundle,
            name,
            part["tensors"],
            metrics={"fingerprint": fingerprint, "images": images, **part["metrics"]},
            baselines=part.get("baselines"),
        )
    storage.delete_folder(_folder(run, stage))
    return bundle


def _train(
    stage: str,
    fingerprint: str,
    run: TrainingRun,
    bundle: Bundle,
    manifest: Manifest,
    shown: Progress,
) -> dict[str, Any]:
    """Train a stage on Ray; return its parts as functions in `training.stages` do."""
    how = on_ray.FitConfig(
        name=f"{stage}-{fingerprint}",
        storage_uri=_folder(run, stage),
        may_write=run.held.require,
        num_workers=run.config.num_workers,
        min_workers=run.config.min_workers,
        use_gpu=run.config.use_gpu,
        checkpoint_steps=run.config.checkpoint_steps,
    )
    trainings = {"classifier": stages.train_classifiers, "scorer": stages.train_scorer}
    training = partial(trainings.get(stage, stages.train_voter), run)
    if stage == "localizer" and run.config.localizer_kind is not VOTER:
        scores_uri = storage.join(_score_images(run, bundle, manifest, shown), "scores")
        training = partial(stages.train_regressors, run, scores_uri)
        how = replace(how, num_workers=1, min_workers=None)
    trained: dict[str, Any] = on_ray.fit(
        training,
        how,
        lambda name, done, total, detail: shown.update(f"train {name}", done, total, detail),
    )
    return trained


def _score_images(run: TrainingRun, bundle: Bundle, manifest: Manifest, shown: Progress) -> str:
    """Score the localizer's images; return the run folder.

    It stays in the bundle: other settings of the localizer need no new scores.
    """
    rows, use_gpu = split_boxed(manifest, run.config).scored, run.config.use_gpu
    images = Manifest(table=rows, classes=manifest.classes)
    where = _folder(run, f"scores-{ledger.digest([bundle.fingerprint, images.fingerprint()])}")
    source = storage.join(where, "manifest")
    write_manifest(source, images)
    record = localize.run(
        "score",
        RunConfig(source=source, model=run.model_uri, out=where, retry=True),
        LocalizeConfig(classes="label"),
        workers=WorkerConfig(gpus_per_worker=None if use_gpu is None else float(use_gpu)),
        progress=shown,
    )
    if schema.UNREACHED & record["counts"]["by_status"].keys():
        raise StorageError(
            "the storage gave no answer for some of the images that the localizer learns from",
            hint="once it answers, start the same command again; it goes on",
        )
    return where


def _folder(run: TrainingRun, stage: str) -> str:
    """Return where a training keeps its checkpoints or its scores."""
    return storage.join(run.model_uri, "training", stage)
