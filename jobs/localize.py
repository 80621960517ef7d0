"""The job behind `cropscore localize` and `cropscore score`: images become a table."""

import platform
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from typing import Any

from cropscore_ray import schema, storage
from cropscore_ray.bulk import pipeline, run_folder
from cropscore_ray.bulk.parts import BulkRun
from cropscore_ray.bulk.score_actor import Scoring, make_stage
from cropscore_ray.config.bulk import LocalizeConfig, RunConfig, WorkerConfig
from cropscore_ray.config.modes import SCORE_MODES
from cropscore_ray.config.overrides import to_dict, to_identity
from cropscore_ray.datasets.manifest import match_classes
from cropscore_ray.datasets.sources import parse_source
from cropscore_ray.errors import ConfigError, DataError
from cropscore_ray.jobs import sources
from cropscore_ray.models.bundle import Bundle, load_bundle, required_parts
from cropscore_ray.schema import ImageClass
from cropscore_ray.terminal.progress import Progress

TABLES = {"localize": "predictions", "score": "scores"}


def run(
    command: str,
    run: RunConfig,
    config: LocalizeConfig,
    *,
    workers: WorkerConfig | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run a bulk command to its end, or resume it where it was stopped; return run.json.

    Raises, among others:
        RunConflictError: another run, or the same one, is at work in the folder.
        DataError: too many images failed; the run is complete all the same.

    Args:
        command: localize or score.
        run: of what, with which model, and where the results go.
        config: what to compute.
        workers: the processes that hold the model.
        progress: where to show it.
    """
    shown = progress or Progress()
    bundle = load_bundle(storage.absolute_uri(run.model))
    config = _with_mode(command, config, bundle)
    bundle.require(*required_parts(command, config))
    source = parse_source(run.source)
    run = replace(run, source=source.absolute, out=storage.absolute_uri(run.out))
    opened = sources.opened(
        command, source, run.out, shown, overwrite=run.overwrite, split=run.split
    )
    with opened as (manifest, held):
        class_map = match_classes(manifest.classes, bundle.classes)
        _check_classes(config, manifest.classes, class_map, bundle.uri, shown)
        sources.make_room(manifest, held, overwrite=run.overwrite)
        folder = run_folder.open_run(
            run.out,
            table=TABLES[command],
            identity=_identity(command, bundle, run, manifest.identity, config),
            facts=_facts(command, bundle, run, manifest.uri, config),
            held=held,
        )
        if run.retry and folder.unreached:
            folder.update({"complete": False})
        bulk_run = BulkRun(
            command=command, manifest=manifest, part_images=config.part_images, folder=folder
        )
        scoring = Scoring(
            stage=partial(make_stage, command),
            model_uri=bundle.uri,
            config=config,
            class_map=class_map,
        )
        link = partial(pipeline.scored, scoring)
        sources.work(bulk_run, link, pipeline.SCORED, shown, workers=workers)
    counts = folder.record["counts"]
    if schema.UNREACHED & counts["by_status"].keys():
        shown.say("where the store gave no answer, the same command with --retry asks again")
    _check_failures(counts, run)
    return folder.record


def _check_failures(counts: dict[str, Any], run: RunConfig) -> None:
    num_images = counts["images"]
    failed = {status: n for status, n in counts["by_status"].items() if status != schema.OK}
    num_failed = sum(failed.values())
    if num_failed == num_images or num_failed > run.max_failed_fraction * num_images:
        reasons = ", ".join(f"{n} {status}" for status, n in sorted(failed.items()))
        raise DataError(
            f"{num_failed} of {num_images} images failed ({reasons}); {run.out} is complete",
            hint="its rows say why, one by one; --max-failed-fraction says how many may fail",
        )


def _with_mode(command: str, config: LocalizeConfig, bundle: Bundle) -> LocalizeConfig:
    """Return the config with the mode that was asked for, or else the model's own.

    Raises:
        ConfigError: boxes are asked for in a mode that the localizer has not learnt from.
    """
    learnt = bundle.config.mode
    if command == "localize" and config.mode not in (None, learnt):
        raise ConfigError(
            f"the model {bundle.uri} learnt boxes from scores of {learnt} mode, not {config.mode}",
            hint="leave --mode out, or train scorer and localizer of another bundle with "
            f"--set mode={config.mode}",
        )
    mode = config.mode or learnt
    if command == "score" and mode not in SCORE_MODES:
        mode = "pyramid"  # a voter's scorer scores squares as any other does
    return replace(config, mode=mode)


def _check_classes(
    config: LocalizeConfig,
    classes: list[ImageClass],
    class_map: list[int | None],
    model: str,
    shown: Progress,
) -> None:
    pairs = zip(classes, class_map, strict=True)
    unknown = [image_class.id for image_class, index in pairs if index is None]
    if not unknown or config.classes == "predicted":
        return
    message = f"{len(unknown)} of the manifest's classes are not the model's, e.g. {unknown[0]!r}"
    if config.classes == "label":
        raise ConfigError(f"{message} ({model})", hint="use --classes predicted")
    shown.say(f"note: {message}; their images get predicted classes only")


def _identity(
    command: str, bundle: Bundle, run: RunConfig, manifest_identity: str, config: LocalizeConfig
) -> dict[str, Any]:
    """Return what makes two runs different ones."""
    return {
        "command": command,
        "model": bundle.fingerprint,
        "manifest": manifest_identity,
        "split": run.split,
        "config": to_identity(config),
    }


def _facts(
    command: str,
    bundle: Bundle,
    run: RunConfig,
    manifest_uri: str,
    config: LocalizeConfig,
) -> dict[str, Any]:
    return {
        "command": command,
        "source_uri": run.source,
        "manifest_uri": manifest_uri,
        "model_uri": bundle.uri,
        "split": run.split,
        "config": to_dict(config),
        "classes": [asdict(known) for known in bundle.classes],
        "baselines": bundle.baselines,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("cropscore-ray", "ray", "torch", "torchvision")},
        },
    }
