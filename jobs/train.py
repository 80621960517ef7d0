"""The job behind `cropscore train`: a manifest becomes a model bundle, stage by stage."""

import hashlib
import json
from dataclasses import is_dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any

from cropscore_ray import schema, storage
from cropscore_ray.config.bulk import LocalizeConfig, RunConfig, WorkerConfig
from cropscore_ray.config.overrides import to_dict, to_identity, with_settings
from cropscore_ray.config.sections import TrainConfig
from cropscore_ray.datasets.manifest import Manifest, write_manifest
from cropscore_ray.errors import ConfigError, StorageError
from cropscore_ray.images import archives
from cropscore_ray.jobs import localize, recipes
from cropscore_ray.models.bundle import (
    LOCALIZER,
    SCORER,
    Bundle,
    classifier_part,
    is_bundle,
    load_bundle,
    save_bundle,
    save_part,
)
from cropscore_ray.models.pretrained import adapt_config, init_digest, require_init
from cropscore_ray.progress import Progress
from cropscore_ray.storage import lock
from cropscore_ray.training import on_ray
from cropscore_ray.training.data.shares import TrainingRun, split_boxed, training_manifest
from cropscore_ray.training.stages import (
    train_classifiers,
    train_regressors,
    train_scorer,
    train_voter,
)

STAGES = ("classifier", "scorer", "localizer")


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
        split_boxed(manifest, config)  # says before hours of classifiers that there are no boxes
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
        bundle = _open(stage, model, config, manifest)
        run = TrainingRun(
            manifest_uri=data, split=split, model_uri=model, config=bundle.config, held=held
        )
        for one in STAGES if stage == "all" else (stage,):
            bundle = _train_stage(one, run, bundle, manifest, shown)
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
    if stage in ("classifier", "all"):
        return named
    kept = {name: _plain(attrgetter(name)(own)) for name in _settled(stage, own, named)}
    return with_settings(named, [f"{name}={json.dumps(value)}" for name, value in kept.items()])


def _settled(stage: str, own: TrainConfig, new: TrainConfig) -> list[str]:
    """Return the fields of its config that a stage may not change in a bundle with parts."""
    before = [] if stage == "all" else list(STAGES[: STAGES.index(stage)])
    settled = ["network", "preprocess", *before]
    if "scorer" in before:
        # The seed and the share decide which images the scorer has seen, the mode decides how.
        settled += ["seed", "localizer_fraction", "mode"]
    if "classifier" in before and own.classifier.epochs:
        # So do these which images the classifiers have not seen.
        held_back = f"{'voter' if own.mode == 'votes' else 'localizer'}.held_back_fraction"
        settled += ["seed", "localizer_fraction", "max_localizer_images", held_back]
        settled += ["mode"] if "votes" in (own.mode, new.mode) else []
    return settled


def _open(stage: str, model: str, config: TrainConfig, manifest: Manifest) -> Bundle:
    """Return the bundle with this config, or a new one.

    Raises:
        ConfigError: its classes are others, or the config changes what is settled.
    """
    if not is_bundle(model):
        bundle = Bundle(uri=model, config=config, classes=manifest.classes, parts={}, baselines={})
        save_bundle(bundle)
        return bundle
    found = load_bundle(model)
    if [one.id for one in found.classes] != [one.id for one in manifest.classes]:
        raise ConfigError(
            f"the model {model} has {len(found.classes)} classes that are not the manifest's "
            f"{len(manifest.classes)}",
            hint="train into another --model",
        )
    for name in _settled(stage, found.config, config) if found.parts else ():
        old, new = (attrgetter(name)(one) for one in (found.config, config))
        if old != new:
            raise ConfigError(
                f"the model {model} has {name} {_plain(old)}, not {_plain(new)}",
                hint="leave out that --recipe or --set, or train into another --model",
            )
    return Bundle(
        uri=model,
        config=config,
        classes=found.classes,
        parts=found.parts,
        baselines=found.baselines,
    )


def _plain(value: Any) -> Any:
    return to_dict(value) if is_dataclass(value) else value


def _train_stage(
    stage: str, run: TrainingRun, bundle: Bundle, manifest: Manifest, shown: Progress
) -> Bundle:
    fingerprint = _stage_fingerprint(stage, run, bundle, manifest)
    if _is_done(stage, bundle, fingerprint):
        shown.say(f"{stage}: already trained with these settings on these images")
        return bundle
    bundle.require(*_upstream(stage))
    images = manifest.fingerprint()
    _compare_images(stage, bundle, images, shown)
    run.held.require()
    bundle = _drop_stale(stage, bundle, shown)
    if stage == "localizer":
        return _train_localizer(run, bundle, manifest, fingerprint, shown)
    training = train_classifiers if stage == "classifier" else train_scorer
    finished = _fit(partial(training, run), stage, fingerprint, run, shown)
    for name, trained in finished.items():
        metrics = {"fingerprint": fingerprint, "images": images, "epochs": trained["metrics"]}
        run.held.require()
        bundle = save_part(bundle, name, trained["weights"], metrics=metrics)
    storage.delete_folder(_folder(run, stage))
    return bundle


def _upstream(stage: str) -> list[str]:
    """Return the parts that a stage's training runs on."""
    first = classifier_part(0)
    return {"classifier": [], "scorer": [first], "localizer": [first, SCORER]}[stage]


def _compare_images(stage: str, bundle: Bundle, images: str, shown: Progress) -> None:
    """Tell of networks before this stage that learnt from another manifest or split.

    Each has its own shares, so that what is held back from this one may have been learnt from.

    Raises:
        ConfigError: it is the scorer, and the localizer would trust its scores too much.
    """
    # Parts of older versions do not say.
    seen = {name: bundle.parts[name]["metrics"].get("images") for name in _upstream(stage)}
    if bundle.config.scorer.epochs and seen.get(SCORER) not in (None, images):
        raise ConfigError(
            f"the scorer of {bundle.uri} was trained on another manifest or split, and may have "
            "learnt from images that the localizer is to learn from",
            hint="give --data and --split what the scorer had, or train the scorer on these first",
        )
    if bundle.config.classifier.epochs and seen.get(classifier_part(0)) not in (None, images):
        shown.say(
            "note: the classifiers were trained on another manifest or split, so they may have "
            "seen images that are held back here"
        )


def _drop_stale(stage: str, bundle: Bundle, shown: Progress) -> Bundle:
    """Take the parts of this stage and of later ones out of the bundle, and save it.

    A bundle never mixes a new part with old ones that were trained on its predecessor.
    """
    stale = STAGES[STAGES.index(stage) :]
    kept = {name: part for name, part in bundle.parts.items() if name.split("-")[0] not in stale}
    dropped = sorted(set(bundle.parts) - set(kept))
    if dropped:
        shown.say(f"{stage}: to be trained again, so {', '.join(dropped)} leave the model")
    current = replace(bundle, parts=kept, baselines={})  # these come with the localizer
    save_bundle(current)
    return current


def _train_localizer(
    run: TrainingRun, bundle: Bundle, manifest: Manifest, fingerprint: str, shown: Progress
) -> Bundle:
    if run.config.mode == "votes":
        trained = _fit(partial(train_voter, run), "localizer", fingerprint, run, shown)
    else:
        scored = _score_images(run, bundle, manifest, shown)
        training = partial(train_regressors, run, storage.join(scored, "scores"))
        trained = _fit(training, "localizer", fingerprint, run, shown, num_workers=1)
    run.held.require()
    images = manifest.fingerprint()
    bundle = save_part(
        bundle,
        LOCALIZER,
        trained["tensors"],
        metrics={"fingerprint": fingerprint, "images": images, **trained["metrics"]},
        baselines=trained["baselines"],
    )
    storage.delete_folder(_folder(run, "localizer"))
    return bundle


def _score_images(run: TrainingRun, bundle: Bundle, manifest: Manifest, shown: Progress) -> str:
    """Score the localizer's images; return the run folder.

    It stays in the bundle: other settings of the localizer need no new scores.
    """
    rows, use_gpu = split_boxed(manifest, run.config).scored, run.config.use_gpu
    images = Manifest(table=rows, classes=manifest.classes)
    where = _folder(run, f"scores-{_digest([bundle.fingerprint, images.fingerprint()])}")
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


def _fit(
    training: on_ray.Training,
    stage: str,
    fingerprint: str,
    run: TrainingRun,
    shown: Progress,
    num_workers: int | None = None,
) -> Any:
    return on_ray.fit(
        training,
        name=f"{stage}-{fingerprint}",
        storage_uri=_folder(run, stage),
        may_write=run.held.require,
        num_workers=num_workers or run.config.num_workers,
        min_workers=num_workers or run.config.min_workers,
        use_gpu=run.config.use_gpu,
        checkpoint_steps=run.config.checkpoint_steps,
        progress=lambda name, done, total, detail: shown.update(
            f"train {name}", done, total, detail
        ),
    )


def _folder(run: TrainingRun, stage: str) -> str:
    """Return where a training keeps its checkpoints or its scores."""
    return storage.join(run.model_uri, "training", stage)


def _stage_fingerprint(stage: str, run: TrainingRun, bundle: Bundle, manifest: Manifest) -> str:
    """Return a hash of all that a stage's result depends on."""
    config = to_identity(run.config)
    depends = {
        "images": manifest.fingerprint(),
        "settings": config[stage],
        "common": [config[name] for name in ("seed", "preprocess", "network")],
        "parts": [bundle.parts.get(name, {}).get("sha256") for name in _upstream(stage)],
    }
    is_voting = run.config.mode == "votes"
    if stage == "classifier":
        depends["init"] = init_digest(run.config.classifier.init)
    if stage == "localizer" and is_voting:
        depends["settings"] = config["voter"]
    if stage != "classifier":
        depends["mode"] = config["mode"]
        most = config["max_localizer_images"] if stage == "localizer" else None
        depends["shares"] = [config["localizer_fraction"], most]
    elif run.config.classifier.epochs:  # on the images that are not held back
        depends["shares"] = [config["localizer_fraction"], config["max_localizer_images"]]
        depends["held_back"] = [run.config.held_back_fraction, is_voting]
    return _digest(depends)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _is_done(stage: str, bundle: Bundle, fingerprint: str) -> bool:
    members = range(bundle.config.classifier.num_members)
    names = [classifier_part(i) for i in members] if stage == "classifier" else [stage]
    found = [bundle.parts.get(name, {}).get("metrics", {}).get("fingerprint") for name in names]
    return found == [fingerprint] * len(names)
