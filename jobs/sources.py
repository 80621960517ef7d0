"""What `localize`, `score` and `pack` work on: a source's manifest, there or still to be made."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from cropscore_ray import storage
from cropscore_ray.bulk import pipeline, run_folder
from cropscore_ray.bulk.parts import BulkRun
from cropscore_ray.config.bulk import WorkerConfig
from cropscore_ray.datasets.listing import GrowingManifest, Lister, growing_manifest
from cropscore_ray.datasets.manifest import StoredManifest, delete_manifest, open_manifest
from cropscore_ray.datasets.problems import aside_in_words
from cropscore_ray.datasets.sources import Source
from cropscore_ray.datasets.uri_list import write_list
from cropscore_ray.errors import ConfigError, DataError
from cropscore_ray.jobs import index
from cropscore_ray.storage import lock
from cropscore_ray.storage.lock import Held
from cropscore_ray.terminal.progress import Progress


@contextmanager
def opened(
    command: str,
    source: Source,
    run_uri: str,
    shown: Progress,
    *,
    overwrite: bool,
    split: str | None = None,
) -> Iterator[tuple[StoredManifest | GrowingManifest, Held]]:
    """Hold a run folder while the block runs; give what it works on, and the folder's lock.

    What follows in the block: `make_room` for the run, `run_folder.open_run`, and `work`.
    """
    name = "source" if command == "pack" else "manifest"  # a packed set has another manifest
    with lock.held(run_uri, shown.say) as held:
        run_folder.require_kind(run_uri, command)
        manifest = open_source(source, run_uri, shown, overwrite=overwrite, split=split, name=name)
        if manifest.num_images == 0:
            raise DataError(f"there are no images to {command}", hint="check the source or --split")
        yield manifest, held


def open_source(
    source: Source,
    run_uri: str,
    shown: Progress,
    *,
    overwrite: bool,
    split: str | None = None,
    name: str = "manifest",
) -> StoredManifest | GrowingManifest:
    """Return a source's manifest; that of a folder is still to be made, or to be gone on with.

    Unless the source is a manifest, it is in RUN/NAME.
    """
    if not source.is_folder():
        where = manifest_of(source, run_uri, shown, overwrite=overwrite, name=name)
        return open_manifest(where, split)
    if split is not None:
        raise ConfigError(f"{source} is a folder and has no split {split!r}")
    begun = _has_begun(run_uri) and not overwrite
    return growing_manifest(source.location_uri, storage.join(run_uri, name), begun=begun)


def _has_begun(run_uri: str) -> bool:
    """Return whether a run goes on; a manifest without its run was left by a start that failed."""
    return run_folder.read_record(run_uri) is not None


def make_room(manifest: StoredManifest | GrowingManifest, held: Held, *, overwrite: bool) -> None:
    """Clear what is not of the run that shall begin or go on in a folder.

    That is another run if it is to be overwritten, and where a folder is to be listed, what was
    listed for no run.
    """
    held.require()
    if overwrite:
        run_folder.discard(held.folder_uri)
    if isinstance(manifest, GrowingManifest) and not _has_begun(held.folder_uri):
        delete_manifest(manifest.uri)


def work(
    run: BulkRun,
    link: pipeline.Link,
    count: pipeline.Count,
    shown: Progress,
    *,
    workers: WorkerConfig | None = None,
) -> None:
    """Do what is left of a run (`pipeline.run_parts`), or say that nothing is."""
    if run.folder.complete:
        num_images = run.folder.record["counts"]["images"]
        shown.say(f"{run.folder.uri} is complete: {num_images} images; nothing to do")
        return
    with listed(run.manifest, run.folder.held, shown):
        show = shown.run(run.command)
        pipeline.run_parts(run, link, count, workers=workers, show=show)


def manifest_of(
    source: Source, run_uri: str, shown: Progress, *, overwrite: bool, name: str = "manifest"
) -> str:
    """Return where a run's manifest is: the source, or else RUN/NAME, indexed once a run."""
    if source.is_manifest():
        return source.location_uri
    inside = storage.join(run_uri, name)
    begun = _has_begun(run_uri) and not overwrite
    if begun and source.is_list:
        write_list(sys.stdin.buffer, inside, begun=True)  # compared with what is there
        return inside
    if not (begun and index.require_source(source, inside)):
        report = index.run(source, inside, overwrite=True, progress=partial(shown.update, "index"))
        shown.say(index.render(report))
    return inside


@contextmanager
def listed(
    manifest: StoredManifest | GrowingManifest, held: Held, shown: Progress
) -> Iterator[None]:
    """List the folder of a growing manifest while the block runs; begin once it has an image.

    Nothing is done for a stored manifest. If the folder has no image, the run is discarded.

    Raises:
        DataError: the folder has no image.
        RunConflictError: another run took the run folder over.
    """
    if isinstance(manifest, StoredManifest):
        yield
        return
    lister = Lister(manifest, held)
    lister.start()
    try:
        lister.has_images.wait()
        if lister.conflict:
            raise lister.conflict
        ended = manifest.ended()
        if ended and ended["error"] is None and ended["num_images"] == 0:
            run_folder.discard(held.folder_uri)
            delete_manifest(manifest.uri)
            raise DataError(
                f"{manifest.folder_uri}: no image here{_others(ended['left_aside'])}",
                hint="check the location; a set in a table is given as csv:FILE or parquet:URI",
            )
        yield
    finally:
        lister.stop()
    ended = storage.persistently(manifest.uri, manifest.ended)
    assert ended is not None, "all images are done, so all were found"
    late = f"; {ended['num_late']:,} of them in folders that came later, so without a class"
    shown.say(
        f"{ended['num_images']:,} images found{late if ended['num_late'] else ''}"
        f"{_others(ended['left_aside'])}"
    )


def _others(left_aside: dict[str, int]) -> str:
    aside = aside_in_words(left_aside)
    return f"; {aside}" if aside else ""
