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
from cropscore_ray.config.bulk import LocalizeConfig, WorkerConfig
from cropscore_ray.config.overrides import to_dict, to_identity
from cropscore_ray.config.sections import SCORE_MODES
from cropscore_ray.datasets.manifest import match_classes
from cropscore_ray.datasets.sources import Source, parse_source
from cropscore_ray.errors import ConfigError, DataError
from cropscore_ray.jobs import sources
from cropscore_ray.models.bundle import Bundle, load_bundle, required_parts
from cropscore_ray.progress import Progress
from cropscore_ray.schema import ImageClass

TABLES = {"localize": "predictions", "score": "scores"}


def run(
    command: str,
    *,
    source: str,
    model: str,
    out: str,
    config: LocalizeConfig,
    split: str | None = None,
    overwrite: bool = False,
    retry: bool = False,
    max_failed_fraction: float = 1.0,
    workers: WorkerConfig | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run a bulk command to its end, or go on where it was stopped; return run.json.

    Raises, among others:
        RunConflictError: another run, or the same one, is at work in the folder.
        DataError: too many images failed; the run is complete all the same.

    Args:
        command: localize or score.
        source: a manifest, or anything that `index` takes.
        model: the bundle.
        out: the run folder.
        config: what to compute.
        split: of the manifest; None takes all its images.
        overwrite: delete another run that is in the folder.
        retry: of a complete run, do those parts again in which the store gave no answer for
            an image; a run that goes on does so anyway.
        max_failed_fraction: of the images, before the run counts as failed; it always does
            when all of them failed.
        workers: the processes that hold the model.
        progress: where to show it.
    """
    shown = progress or Progress()
    out, model = storage.absolute_uri(out), storage.absolute_uri(model)
    bundle = load_bundle(model)
    config = _with_mode(command, config, bundle)
    bundle.require(*required_parts(command, config))
    parsed = parse_source(source)
    with sources.opened(command, parsed, out, shown, overwrite=overwrite, split=split) as (
        manifest,
        held,
    ):
        class_map = match_classes(manifest.classes, bundle.classes)
        _check_classes(config, manifest.classes, class_map, model, shown)
        sources.make_room(manifest, held, overwrite=overwrite)
        folder = run_folder.open_run(
            out,
            table=TABLES[command],
            identity={
                "command": command,
                "model": bundle.fingerprint,
                "manifest": manifest.identity,
                "split": split,
                "config": to_identity(config),
            },
            facts=_facts(command, bundle, parsed, manifest.uri, split, config),
            held=held,
        )
        if retry and folder.unreached:
            folder.update(complete=False)
        bulk_run = BulkRun(
            command=command, manifest=manifest, part_images=config.part_images, folder=folder
        )
        scoring = Scoring(
            stage=partial(make_stage, command),
            model_uri=model,
            config=config,
            class_map=class_map,
        )
        link = partial(pipeline.scored, scoring)
        sources.work(bulk_run, link, pipeline.SCORED, shown, workers=workers)
    counts = folder.record["counts"]
    if schema.UNREACHED & counts["by_status"].keys():
        shown.say("where the store gave no answer, the same command with --retry asks again")
    _check_failures(counts, out, max_failed_fraction)
    return folder.record


def _check_failures(counts: dict[str, Any], out: str, max_failed_fraction: float) -> None:
    num_images = counts["images"]
    failed = {status: n for status, n in counts["by_status"].items() if status != schema.OK}
    num_failed = sum(failed.values())
    if num_failed == num_images or num_failed > max_failed_fraction * num_images:
        reasons = ", ".join(f"{n} {status}" for status, n in sorted(failed.items()))
        raise DataError(
            f"{num_failed} of {num_images} images failed ({reasons}); {out} is complete",
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
    unknown = [one.id for one, index in zip(classes, class_map, strict=True) if index is None]
    if not unknown or config.classes == "predicted":
        return
    message = f"{len(unknown)} of the manifest's classes are not the model's, e.g. {unknown[0]!r}"
    if config.classes == "label":
        raise ConfigError(f"{message} ({model})", hint="use --classes predicted")
    shown.say(f"note: {message}; their images get predicted classes only")


def _facts(
    command: str,
    bundle: Bundle,
    source: Source,
    manifest_uri: str,
    split: str | None,
    config: LocalizeConfig,
) -> dict[str, Any]:
    return {
        "command": command,
        "source_uri": source.absolute,
        "manifest_uri": manifest_uri,
        "model_uri": bundle.uri,
        "split": split,
        "config": to_dict(config),
        "classes": [asdict(one) for one in bundle.classes],
        "baselines": bundle.baselines,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("cropscore-ray", "ray", "torch", "torchvision")},
        },
    }
