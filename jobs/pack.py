"""The job behind `cropscore pack`: many small files become archives and their manifest."""

from itertools import repeat
from typing import Any

from cropscore_ray import storage
from cropscore_ray.bulk import packing, pipeline, run_folder
from cropscore_ray.bulk.parts import BulkRun
from cropscore_ray.datasets.manifest import StoredManifest
from cropscore_ray.datasets.sources import parse_source
from cropscore_ray.errors import ConfigError
from cropscore_ray.jobs import sources
from cropscore_ray.terminal.progress import Progress


def run(
    source: str,
    *,
    out: str,
    shard_images: int = 1000,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Pack an image set, or go on where it was stopped; return run.json.

    Args:
        source: a manifest, or anything that `index` takes.
        out: a folder, which becomes a run folder with shards/ and manifest/, and with source/,
            the manifest of what is packed, unless `source` is a manifest.
        shard_images: images an archive.
        overwrite: delete another packed set that is in the folder.
        progress: where to show it.
    """
    shown = progress or Progress()
    out, parsed = storage.absolute_uri(out), parse_source(source)
    if overwrite:
        _require_apart(parsed.absolute, out)
    with sources.opened("pack", parsed, out, shown, overwrite=overwrite) as (manifest, held):
        if overwrite and isinstance(manifest, StoredManifest):
            [first] = next(manifest.batches(repeat(1)))["image_uri"].to_pylist()
            _require_apart(first, out)
        sources.make_room(manifest, held, overwrite=overwrite)
        folder = run_folder.open_run(
            out,
            table="manifest",
            identity={
                "command": "pack",
                "manifest": manifest.identity,
                "config": {"shard_images": shard_images},
            },
            facts={"command": "pack", "source_uri": parsed.absolute},
            held=held,
        )
        bulk_run = BulkRun(
            command="pack", manifest=manifest, part_images=shard_images, folder=folder
        )
        count = pipeline.Count(
            columns=["image_uri"], by_status=lambda rows: packing.packed_by_status(rows, out)
        )
        sources.work(bulk_run, pipeline.packed, count, shown)
    return folder.record


def _require_apart(source: str, out: str) -> None:
    """Raise ConfigError if the set to be deleted is the set to be packed."""
    folders = [f"{storage.join(out, name)}/" for name in run_folder.PACKED]
    place = f"{source}/"  # or tar:FOLDER/...
    if any(place.startswith(folder) or f":{folder}" in place for folder in folders):
        raise ConfigError(
            f"the images to pack are those of {out}, which --overwrite would delete first",
            hint="choose another --out",
        )
