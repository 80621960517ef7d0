"""What of a training is done, stale or settled: a bundle's parts beside settings and images.

A job asks before each stage. Nothing is trained or shown here.
"""

import hashlib
import json
from dataclasses import is_dataclass, replace
from operator import attrgetter
from typing import Any

from cropscore_ray.config.modes import VOTER
from cropscore_ray.config.overrides import to_dict, to_identity, with_settings
from cropscore_ray.config.sections import TrainConfig
from cropscore_ray.datasets.manifest import Manifest
from cropscore_ray.errors import ConfigError
from cropscore_ray.models.bundle import (
    SCORER,
    Bundle,
    classifier_part,
    is_bundle,
    load_bundle,
    save_bundle,
)
from cropscore_ray.models.pretrained import init_digest

STAGES = ("classifier", "scorer", "localizer")


def keep_settled(stage: str, own: TrainConfig, named: TrainConfig) -> TrainConfig:
    """Return the named config with all that the stages before this one have settled in a bundle."""
    kept = {name: _plain(attrgetter(name)(own)) for name in _settled(stage, own, named)}
    return with_settings(named, [f"{name}={json.dumps(value)}" for name, value in kept.items()])


def open_bundle(stage: str, model: str, config: TrainConfig, manifest: Manifest) -> Bundle:
    """Return the bundle with this config, or a new one.

    Raises:
        ConfigError: its classes are others, or the config changes what is settled.
    """
    if not is_bundle(model):
        bundle = Bundle(uri=model, config=config, classes=manifest.classes, parts={}, baselines={})
        save_bundle(bundle)
        return bundle
    bundle = load_bundle(model)
    if [known.id for known in bundle.classes] != [known.id for known in manifest.classes]:
        raise ConfigError(
            f"the model {model} has {len(bundle.classes)} classes that are not the manifest's "
            f"{len(manifest.classes)}",
            hint="train into another --model",
        )
    for name in _settled(stage, bundle.config, config) if bundle.parts else ():
        old, new = (attrgetter(name)(settings) for settings in (bundle.config, config))
        if old != new:
            raise ConfigError(
                f"the model {model} has {name} {_plain(old)}, not {_plain(new)}",
                hint="leave out that --recipe or --set, or train into another --model",
            )
    return replace(bundle, config=config)


def _settled(stage: str, own: TrainConfig, new: TrainConfig) -> list[str]:
    """Return the fields of its config that a stage may not change in a bundle with parts."""
    before = [] if stage == "all" else list(STAGES[: STAGES.index(stage)])
    settled = ["network", "preprocess", *before]
    if "scorer" in before:
        # The seed and the share decide which images the scorer has seen, the mode decides how.
        settled += ["seed", "localizer_fraction", "mode"]
    if "classifier" in before and own.classifier.epochs:
        # So do these which images the classifiers have not seen.
        held_back = f"{own.localizer_kind.section}.held_back_fraction"
        settled += ["seed", "localizer_fraction", "max_localizer_images", held_back]
        settled += ["mode"] if own.localizer_kind is not new.localizer_kind else []
    return settled


def _plain(value: Any) -> Any:
    return to_dict(value) if is_dataclass(value) else value


def upstream(stage: str) -> list[str]:
    """Return the parts that a stage's training runs on."""
    first = classifier_part(0)
    return {"classifier": [], "scorer": [first], "localizer": [first, SCORER]}[stage]


def fingerprint(stage: str, bundle: Bundle, images: str) -> str:
    """Return a hash of all that a stage's result depends on; `images` is a manifest's."""
    config = bundle.config
    plain, kind = to_identity(config), config.localizer_kind
    depends = {
        "images": images,
        "settings": plain[kind.section if stage == "localizer" else stage],
        "common": [plain[name] for name in ("seed", "preprocess", "network")],
        "parts": [bundle.parts.get(name, {}).get("sha256") for name in upstream(stage)],
    }
    if stage == "classifier":
        depends["init"] = init_digest(config.classifier.init)
        if config.classifier.epochs:  # on the images that are not held back
            depends["shares"] = [config.localizer_fraction, config.max_localizer_images]
            depends["held_back"] = [config.held_back_fraction, kind is VOTER]
    else:
        depends["mode"] = config.mode
        most = config.max_localizer_images if stage == "localizer" else None
        depends["shares"] = [config.localizer_fraction, most]
    return digest(depends)


def digest(value: Any) -> str:
    """Return a hash of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def is_done(stage: str, bundle: Bundle, fingerprint: str) -> bool:
    """Return whether all parts of a stage are in the bundle, trained as the fingerprint says."""
    members = range(bundle.config.classifier.num_members)
    names = [classifier_part(i) for i in members] if stage == "classifier" else [stage]
    return all(
        bundle.parts.get(name, {}).get("metrics", {}).get("fingerprint") == fingerprint
        for name in names
    )


def check_upstream(stage: str, bundle: Bundle, images: str) -> list[str]:
    """Return notes on networks before this stage that learnt from another manifest or split.

    Each has its own shares, so that what is held back from this one may have been learnt from.

    Raises:
        ModelError: a network before this stage is not trained.
        ConfigError: the scorer learnt from others, and the localizer would trust it too much.
    """
    bundle.require(*upstream(stage))
    # Parts of older versions lack this.
    seen = {name: bundle.parts[name]["metrics"].get("images") for name in upstream(stage)}
    if bundle.config.scorer.epochs and seen.get(SCORER) not in (None, images):
        raise ConfigError(
            f"the scorer of {bundle.uri} was trained on another manifest or split, and may have "
            "learnt from images that the localizer is to learn from",
            hint="give --data and --split what the scorer had, or train the scorer on these first",
        )
    if bundle.config.classifier.epochs and seen.get(classifier_part(0)) not in (None, images):
        return [
            "note: the classifiers were trained on another manifest or split, so they may have "
            "seen images that are held back here"
        ]
    return []


def without_stale(stage: str, bundle: Bundle) -> Bundle:
    """Return the bundle without the parts of this stage and of later ones.

    A bundle never mixes a new part with old ones that were trained on its predecessor.
    """
    stale = STAGES[STAGES.index(stage) :]
    kept = {name: part for name, part in bundle.parts.items() if name.split("-")[0] not in stale}
    return replace(bundle, parts=kept, baselines={})  # these come with the localizer
