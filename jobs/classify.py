"""The job `evaluate` of a model bundle: how often its classifiers are wrong."""

from functools import partial

import pyarrow as pa

from cropscore_ray import storage
from cropscore_ray.datasets.manifest import match_classes, read_manifest
from cropscore_ray.errors import ConfigError, DataError
from cropscore_ray.evaluation.classifiers import ClassifierErrors, classifier_errors
from cropscore_ray.evaluation.metrics import TRAIN_SPLIT
from cropscore_ray.jobs.evaluate import percent, table
from cropscore_ray.models.bundle import load_bundle
from cropscore_ray.terminal.progress import Progress
from cropscore_ray.terminal.tables import Table


def run(
    model: str, data_uri: str, *, split: str | None, json_path: str | None = None
) -> list[ClassifierErrors]:
    """Evaluate the classifiers of a bundle on a manifest's images, with one crop and with ten.

    Arguments as `jobs.evaluate.run` has them; without a split, the one that is not `train`.

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
    known = rows["class_index"].to_pylist()
    index = [None if class_index is None else class_map[class_index] for class_index in known]
    at = rows.schema.get_field_index("class_index")
    rows = rows.set_column(at, "class_index", pa.array(index, pa.int32()))
    rows = rows.filter(rows["class_index"].is_valid())
    if not len(rows):
        raise DataError(
            f"no image of {data_uri} has a class of the model {model}",
            hint="evaluate on the image set that it was trained for",
        )
    with Progress().live() as progress:
        errors = classifier_errors(bundle, rows, progress=partial(progress.update, "classify"))
    if json_path is not None:
        storage.write_json(json_path, [row.to_json() for row in errors])
    return errors


def render(errors: list[ClassifierErrors]) -> list[Table | str]:
    """Return the classifiers' errors as a table, and how many images they are of."""
    rows = [
        (f"  {row.network}", str(row.num_crops), percent(row.top1), percent(row.top5))
        for row in errors
    ]
    return [
        table(("classification error, %", "crops", "top 1", "top 5"), *rows),
        f"{errors[0].top1.num_images:,} images; ± is one standard error.",
    ]
