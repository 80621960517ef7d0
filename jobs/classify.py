"""The job `evaluate` of a model bundle: how often its classifiers are wrong."""

from functools import partial

import pyarrow as pa

from cropscore_ray import storage
from cropscore_ray.datasets.manifest import match_classes, read_manifest
from cropscore_ray.errors import ConfigError, DataError
from cropscore_ray.evaluation.classifiers import ClassifierErrors, classifier_errors
from cropscore_ray.evaluation.metrics import TRAIN_SPLIT
from cropscore_ray.jobs.evaluate import line, percent
from cropscore_ray.models.bundle import load_bundle
from cropscore_ray.progress import Progress


def run(
    model: str, data_uri: str, *, split: str | None, json_path: str | None = None
) -> list[ClassifierErrors]:
    """Evaluate the classifiers of a bundle on a manifest's images, with one crop and with ten.

    Args:
        model: the bundle.
        data_uri: the manifest.
        split: of the manifest; None: the one that is not `train`.
        json_path: where to write the figures as JSON, if anywhere.

    Raises:
        ConfigError: the manifest has several splits and none was named.
        DataError: none of its images has a class of the model's.
    """
    bundle, manifest = load_bundle(model), read_manifest(data_uri)
    names = [name for name in manifest.splits if name != TRAIN_SPLIT] or manifest.splits
    if split is None and len(names) > 1:
        raise ConfigError(
            f"the manifest has the splits {', '.join(names)}", hint="choose one with --split NAME"
        )
    rows = manifest.only(split or (names[0] if names else None)).table
    class_map = match_classes(manifest.classes, bundle.classes)
    index = [None if one is None else class_map[one] for one in rows["class_index"].to_pylist()]
    at = rows.schema.get_field_index("class_index")
    rows = rows.set_column(at, "class_index", pa.array(index, pa.int32()))
    rows = rows.filter(rows["class_index"].is_valid())
    if not len(rows):
        raise DataError(
            f"no image of {data_uri} has a class of the model {model}",
            hint="evaluate on the image set that it was trained for",
        )
    shown = Progress()
    with shown.live():
        found = classifier_errors(bundle, rows, progress=partial(shown.update, "classify"))
    if json_path is not None:
        storage.write_json(json_path, [one.to_json() for one in found])
    return found


def render(found: list[ClassifierErrors]) -> str:
    """Return the classifiers' errors as plain text."""
    lines = [line("classification error, %", "crops", "top 1", "top 5")]
    for one in found:
        rates = (percent(one.top1), percent(one.top5))
        lines.append(line(f"  {one.network}", str(one.num_crops), *rates))
    return "\n".join([*lines, f"{found[0].top1.num_images:,} images; ± is one standard error."])
