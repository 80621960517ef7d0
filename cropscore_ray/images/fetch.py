"""Encoded images from wherever their URIs point, many at once.

A fetch never raises: what could not be had is an ImageError in its place, and becomes a
row with a status.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from cropscore_ray import schema, storage
from cropscore_ray.errors import ImageError, StorageError
from cropscore_ray.images import archives
from cropscore_ray.images.archives import Cell, Member, Span
from cropscore_ray.storage import retries, s3

Fetched = bytes | ImageError
_Found = dict[str, Fetched]
_RowGroups = dict[tuple[str, str, int], pa.ChunkedArray]
"""The last row group that was read, by file, column and number: the next images may be in it."""

LARGEST_BYTES = 512 * 2**20
"""No image of 100 megapixels has more, and dozens of files and more are in memory at once."""
_GROUP_BYTES = 32 * 2**20
_STEP = 64  # images of a group that are fetched at once
_FEWEST = 16  # for which a group is not yet full

_STATUSES = {
    errno.ENOENT: "missing",
    errno.ENOTDIR: "missing",
    errno.EISDIR: "missing",
    errno.ELOOP: "missing",
    errno.ENAMETOOLONG: "missing",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.EBUSY: "throttled",
    errno.EFBIG: "too_large",
}


def fetch_images(uris: Iterable[str], kept: _RowGroups | None = None) -> list[Fetched]:
    """Return each URI's bytes, or the ImageError that says why not, in order.

    `kept` is for who fetches more of the same files: what was read of them and may serve again.
    """
    wanted = list(uris)
    found: _Found = {}
    with ThreadPoolExecutor(s3.CONNECTIONS, thread_name_prefix="fetch") as pool:
        for some in pool.map(lambda read: read(), _reads(wanted, {} if kept is None else kept)):
            found.update(some)
    return [found[uri] for uri in wanted]


def fetch_group(uris: list[str], kept: _RowGroups | None = None) -> list[Fetched]:
    """Return what `fetch_images` does of the first URIs: of as many as have 32 MiB, or of all.

    What an image has, nobody knows before; but those that are there tell what the next 64 may
    have. So a group has 64 images or more, if there are any, and what is beyond 32 MiB are 64
    images at most. It ends where the store gave no answer for any image.
    """
    kept = {} if kept is None else kept
    found = fetch_images(uris[:_STEP], kept)
    while len(found) < len(uris) and not all(map(_is_unanswered, found)):
        num_bytes = sum(len(one) for one in found if isinstance(one, bytes))
        fits = (_GROUP_BYTES - num_bytes) * len(found) // max(1, num_bytes)
        if fits < _FEWEST:
            break
        found += fetch_images(uris[len(found) :][: min(fits, _STEP)], kept)
    return found


def fetch_ahead(uris: list[str], begun: list[Fetched] | None = None) -> Iterator[list[Fetched]]:
    """Yield `fetch_group` after group, in order; while one is in use, the next is fetched.

    Not so where the store gave no answer for an image: who stops at that need not wait for more.

    Args:
        uris: of all images.
        begun: the first group, where it is there already.
    """
    kept: _RowGroups = {}
    group = begun or fetch_group(uris, kept)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as ahead:
        while len(group) < len(uris):
            uris = uris[len(group) :]
            in_vain = any(map(_is_unanswered, group))
            following = None if in_vain else ahead.submit(fetch_group, uris, kept)
            yield group
            group = following.result() if following else fetch_group(uris, kept)
    yield group


def _is_unanswered(one: Fetched) -> bool:
    return isinstance(one, ImageError) and one.status in schema.UNREACHED


def fetch_image(uri: str) -> bytes:
    """Return an image's bytes; ImageError with status missing, denied, throttled or unreachable."""
    [read] = _reads([uri], {})
    found = read()[uri]
    if isinstance(found, ImageError):
        raise found
    return found


def require_answer(error: ImageError) -> None:
    """Raise StorageError if a store gave no answer for an image, which is no image's fault."""
    if error.status in schema.UNREACHED:
        raise StorageError(
            f"an image is {error.status}: {error}",
            hint="once the storage answers, start the same command again; it goes on",
        ) from error


def _reads(uris: list[str], kept: _RowGroups) -> Iterator[Callable[[], _Found]]:
    """Yield what must be read: files, and parts of files that hold several images."""
    inside = {uri: archives.parse(uri) for uri in uris}
    for uri, where in inside.items():
        if where is None:
            yield partial(_read_file, uri)
    members = [where for where in inside.values() if isinstance(where, Member)]
    yield from (partial(_read_span, span) for span in archives.spans(members))
    cells = [where for where in inside.values() if isinstance(where, Cell)]
    yield from (partial(_read_cells, some, kept) for some in archives.columns(cells))


def _read_file(uri: str) -> _Found:
    try:
        return {uri: _read(uri)}
    except ImageError as error:
        return {uri: error}


def _read_span(span: Span) -> _Found:
    try:
        data = _read(span.file_uri, span.start, span.stop)
    except ImageError as error:
        return {one.uri: error for one in span.members}
    found: _Found = {}
    for one in span.members:
        at = one.offset - span.start
        image = data[at : at + one.size]
        short = ImageError("missing", f"{one.uri}: the archive ends before it")
        found[one.uri] = image if len(image) == one.size else short
    return found


def _read_cells(cells: list[Cell], kept: _RowGroups) -> _Found:
    """Read one column's cells; each row group that holds some is read once."""
    file_uri = cells[0].file_uri
    try:
        found = retries.persistently(lambda: _images_in(cells, kept), _may_pass(file_uri))
    except (OSError, StorageError, pa.ArrowException, KeyError) as error:
        return {one.uri: _explained(file_uri, error) for one in cells}
    gone = {one.uri: ImageError("missing", f"{one.uri}: no such row") for one in cells}
    return gone | found


def _images_in(cells: list[Cell], kept: _RowGroups) -> _Found:
    file_uri, column, start = cells[0].file_uri, cells[0].column, 0
    found: _Found = {}
    with storage.open_file(file_uri) as stream:
        file = pq.ParquetFile(stream)
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            some = [one for one in cells if start <= one.row < stop]
            if some:
                where = file_uri, column, group
                values = kept.get(where)
                if values is None:
                    values = _encoded(file.read_row_group(group, columns=[column])[column])
                    kept.clear()
                    kept[where] = values
                found |= {one.uri: values[one.row - start].as_py() or b"" for one in some}
            start = stop
    return found


def _encoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column's encoded images: its own, or the `bytes` of structs."""
    if pa.types.is_struct(column.type):
        return pa.chunked_array([chunk.field("bytes") for chunk in column.chunks])
    return column


def _read(uri: str, start: int = 0, stop: int | None = None) -> bytes:
    """Return a file's bytes, or those of a part of it, which may be fewer at the end."""
    try:
        return retries.persistently(lambda: _bytes(uri, start, stop), _may_pass(uri))
    except (OSError, StorageError, ValueError) as error:
        raise _explained(uri, error) from error


def _bytes(uri: str, start: int, stop: int | None) -> bytes:
    if uri.startswith(s3.SCHEME):
        return s3.read(*s3.bucket_and_key(uri), start, stop, most=LARGEST_BYTES)
    with storage.open_file(uri) as file:
        size = file.seek(0, os.SEEK_END)
        if (stop or size) - start > LARGEST_BYTES:
            raise OSError(errno.EFBIG, f"{size:,} bytes", uri)
        file.seek(start)
        return bytes(file.read() if stop is None else file.read(stop - start))


def _may_pass(uri: str) -> Callable[[Exception], bool]:
    """Tell of errors whether to read a file again; a disk's are there to stay."""
    if not storage.is_remote(uri):
        return lambda error: False
    return lambda error: s3.is_transient(error) and not _is_damage(uri, error)


def _is_damage(uri: str, error: Exception) -> bool:
    """Tell whether a file was read, but makes no sense."""
    if isinstance(error, OSError):  # pyarrow's own have no errno, those of disks and S3 do
        return error.errno is None and (uri.startswith(s3.SCHEME) or not storage.is_remote(uri))
    return isinstance(error, (pa.ArrowException, KeyError))


def _explained(uri: str, error: Exception) -> ImageError:
    """Return the ImageError of what a disk or a store said, or of what was found there."""
    number: int = getattr(error, "errno", None) or 0
    status = _STATUSES.get(number, "unreachable")
    if _is_damage(uri, error):
        status = "undecodable"
    elif isinstance(error, ValueError):  # no file's name has a zero byte
        status = "missing"
    reason = getattr(error, "strerror", None) or error
    return ImageError(status, f"{uri}: {reason}"[:300])
