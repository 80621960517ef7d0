"""A list of URIs, one on a line, becomes a manifest: a chunk at a time, never all in memory.

A list cannot be listed again as a folder can. To resume a run it is given once more, and
compared with what was written of it.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, zip_longest

from cropscore_ray import schema, storage
from cropscore_ray.datasets.manifest import CHUNK_IMAGES, chunk_uri, delete_manifest
from cropscore_ray.errors import DataError, RunConflictError


def write_list(
    lines: Iterable[bytes],
    manifest_uri: str,
    *,
    begun: bool,
    progress: Callable[[int, None], None] | None = None,
) -> int:
    """Write the manifest of a list of URIs; return how many images it has.

    Args:
        lines: a path or a URI on each; empty ones are passed over.
        manifest_uri: where it goes, in place of what is there.
        begun: a run has begun on the manifest that is there; the list must be the same.
        progress: told how many URIs were read.

    Raises:
        RunConflictError: the run began with another list.
        DataError: a line is not UTF-8, or there is none.
    """
    uris = _read(lines)
    num_images = num_chunks = 0
    if not begun:
        delete_manifest(manifest_uri)
    while chunk := list(islice(uris, CHUNK_IMAGES)):
        where = chunk_uri(manifest_uri, num_chunks)
        if begun:
            _require_same(where, chunk, num_images)
        else:
            rows = [{"image_id": i, "image_uri": uri} for i, uri in enumerate(chunk, num_images)]
            storage.write_table(
                where, schema.rows_to_table(rows, schema.with_classes(schema.MANIFEST, []))
            )
        num_images, num_chunks = num_images + len(chunk), num_chunks + 1
        if progress:
            progress(num_images, None)
    if begun:
        _require_same(chunk_uri(manifest_uri, num_chunks), [], num_images)
    if not num_images:
        raise DataError("the list has no URI", hint="give one on each line")
    return num_images


def _read(lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode().strip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"line {number} of the list is not UTF-8: {line[:200]!r}") from error
        if text:
            yield storage.absolute_uri(text)


def _require_same(where: str, uris: list[str], first: int) -> None:
    """Raise RunConflictError if a chunk of the list is not what was written of it."""
    written: list[str] = []
    if storage.exists(where):
        written = storage.read_table(where, ["image_uri"])["image_uri"].to_pylist()
    for place, (old, new) in enumerate(zip_longest(written, uris, fillvalue="none"), first + 1):
        if old != new:
            raise RunConflictError(
                f"the list is not the one that the run began with; "
                f"URI {place}: {old} there, {new} now",
                hint="give the same list, choose another --out, or start afresh with --overwrite",
            )
