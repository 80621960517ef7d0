"""The job behind `cropscore pack`: many small files become archives and their manifest."""

from typing import Any

from cropscore_ray import lock, packing, pipeline, run_folder, storage
from cropscore_ray.datasets import absolute_source
from cropscore_ray.errors import DataError
from cropscore_ray.jobs import index
from cropscore_ray.manifest import open_manifest
from cropscore_ray.parts import BulkRun
from cropscore_ray.progress import Progress


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
        out: a folder, which becomes a run folder with shards/ and manifest/.
        shard_images: images an archive.
        overwrite: delete another packed set that is in the folder.
        progress: where to show it.
    """
    shown = progress or Progress()
    out = storage.absolute_uri(out)
    with lock.held(out, shown.say):
        listed = index.manifest_of(source, out, shown, overwrite=overwrite, name="source")
        manifest = open_manifest(listed)
        if not manifest.num_images:
            raise DataError("there are no images to pack", hint="check the source")
        if overwrite:
            run_folder.discard(out)
        folder = run_folder.open_run(
            out,
            table="manifest",
            identity={
                "command": "pack",
                "manifest": manifest.fingerprint,
                "config": {"shard_images": shard_images},
            },
            facts={"command": "pack", "source_uri": absolute_source(source)},
        )
        if folder.complete:
            shown.say(f"{out} is complete: {manifest.num_images} images; nothing to do")
            return folder.record
        pipeline.run_parts(
            BulkRun(command="pack", manifest=manifest, part_images=shard_images, folder=folder),
            pipeline.packed,
            pipeline.Count(
                columns=["image_uri"], by_status=lambda rows: packing.packed_by_status(rows, out)
            ),
            progress=shown.run("pack"),
        )
        return folder.record
