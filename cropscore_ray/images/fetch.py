"""Encoded images from wherever their URIs point, many at once.

A fetch never raises: an image that cannot be read is an ImageError in its place, and becomes a
row with a status. Nothing here decodes an image, or looks at the scheme of a URI.
"""

import errno
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from cropscore_ray import schema, storage
from cropscore_ray.errors import ImageError, StorageError
from cropscore_ray.images import archives
from cropscore_ray.images.ahead import made_ahead
from cropscore_ray.images.archives import Cell, Member
from cropscore_ray.storage import retries, s3

Fetched = bytes | ImageError
_ByUri = dict[str, Fetched]
_RowGroups = dict[tuple[str, str, int], pa.ChunkedArray]
"""The last row group that was read, by file, column and number: the next images may be in it."""

LARGEST_BYTES = 512 * 2**20
"""No image of 100 megapixels has more, and dozens of files and more are in memory at once."""
_GROUP_BYTES = 32 * 2**20
_STEP = 64  # images of a group that are fetched at once
_FEWEST = 16  # for which a group is not yet full

_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
_STATUSES = {
    **dict.fromkeys(_NO_FILE, "missing"),
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
    images: _ByUri = {}
    with ThreadPoolExecutor(s3.CONNECTIONS, thread_name_prefix="fetch") as pool:
        for some in pool.map(lambda read: read(), _reads(wanted, {} if kept is None else kept)):
            images.update(some)
    return [images[uri] for uri in wanted]


def fetch_group(uris: list[str], kept: _RowGroups | None = None) -> list[Fetched]:
    """Return what `fetch_images` does of the first URIs: of as many as have 32 MiB, or of all.

    How large the next 64 images are is guessed from those that are there. So a group has 64
    images or more, if there are any, and what is beyond 32 MiB are 64 images at most. It ends
    where the store gave no answer for any image.
    """
    kept = {} if kept is None else kept
    images = fetch_images(uris[:_STEP], kept)
    while len(images) < len(uris) and not all(map(_is_unanswered, images)):
        num_bytes = sum(len(image) for image in images if isinstance(image, bytes))
        fits = (_GROUP_BYTES - num_bytes) * len(images) // max(1, num_bytes)
        if fits < _FEWEST:
            break
        images += fetch_images(uris[len(images) :][: min(fits, _STEP)], kept)
    return images


def fetch_ahead(uris: list[str], begun: list[Fetched] | None = None) -> Iterator[list[Fetched]]:
    """Yield `fetch_group` after group, in order; while one is in use, the next is fetched.

    Not so where the store gave no answer for an image: who stops at that need not wait for more.
    `begun` is the first group, where it is there already.
    """
    return made_ahead(_groups(uris, begun), stops_at=lambda group: any(map(_is_unanswered, group)))


def _groups(uris: list[str], group: list[Fetched] | None) -> Iterator[list[Fetched]]:
    kept: _RowGroups = {}
    group = group or fetch_group(uris, kept)
    yield group
    while len(group) < len(uris):
        uris = uris[len(group) :]
        group = fetch_group(uris, kept)
        yield group


def _is_unanswered(image: Fetched) -> bool:
    return isinstance(image, ImageError) and image.status in schema.UNREACHED


def fetch_image(uri: str) -> bytes:
    """Return an image's bytes; ImageError with status missing, denied, throttled or unreachable."""
    [read] = _reads([uri], {})
    image = read()[uri]
    if isinstance(image, ImageError):
        raise image
    return image


def require_answer(error: ImageError) -> None:
    """Raise StorageError if a store gave no answer for an image, which is no image's fault."""
    if error.status in schema.UNREACHED:
        raise StorageError(
            f"an image is {error.status}: {error}",
            hint="once the storage answers, start the same command again; it goes on",
        ) from error


def _reads(uris: list[str], kept: _RowGroups) -> Iterator[Callable[[], _ByUri]]:
    """Yield what must be read: files, and parts of files that hold several images."""
    inside = {uri: archives.parse(uri) for uri in uris}
    for uri, where in inside.items():
        if where is None:
            yield partial(_read_file, uri)
    members = [where for where in inside.values() if isinstance(where, Member)]
    yield from (partial(_read_span, span) for span in archives.spans(members))
    cells = [where for where in inside.values() if isinstance(where, Cell)]
    yield from (partial(_read_cells, some, kept) for some in archives.columns(cells))


def _read_file(uri: str) -> _ByUri:
    return {uri: _read(uri)}


def _read_span(span: list[Member]) -> _ByUri:
    start = span[0].offset
    data = _read(span[0].file_uri, start, archives.stop_of(span))
    if isinstance(data, ImageError):
        return {member.uri: data for member in span}
    images: _ByUri = {}
    for member in span:
        image = data[member.offset - start : member.offset - start + member.size]
        short = ImageError("missing", f"{member.uri}: the archive ends before it")
        images[member.uri] = image if len(image) == member.size else short
    return images


def _read_cells(cells: list[Cell], kept: _RowGroups) -> _ByUri:
    """Read one column's cells; each row group that holds some is read once."""
    file_uri = cells[0].file_uri
    try:
        images = retries.persistently(
            partial(_images_in, cells, kept), partial(_may_pass, file_uri)
        )
    except (OSError, StorageError, pa.ArrowException, KeyError) as error:
        return {cell.uri: _explained(file_uri, error) for cell in cells}
    gone = {cell.uri: ImageError("missing", f"{cell.uri}: no such row") for cell in cells}
    return gone | images


def _images_in(cells: list[Cell], kept: _RowGroups) -> _ByUri:
    file_uri, column, start = cells[0].file_uri, cells[0].column, 0
    images: _ByUri = {}
    with storage.open_file(file_uri) as stream:
        file = pq.ParquetFile(stream)
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            some = [cell for cell in cells if start <= cell.row < stop]
            if some:
                where = file_uri, column, group
                values = kept.get(where)
                if values is None:
                    values = _encoded(file.read_row_group(group, columns=[column])[column])
                    kept.clear()
                    kept[where] = values
                images |= {cell.uri: values[cell.row - start].as_py() or b"" for cell in some}
            start = stop
    return images


def _encoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column's encoded images: its own, or the `bytes` of structs."""
    if pa.types.is_struct(column.type):
        return pa.chunked_array([chunk.field("bytes") for chunk in column.chunks])
    return column


def _read(uri: str, start: int = 0, stop: int | None = None) -> Fetched:
    """Return a file's bytes, or those of a part of it, which may be fewer at the end."""
    try:
        read = partial(storage.store_of(uri).read, uri, start, stop, most=LARGEST_BYTES)
        return retries.persistently(read, partial(_may_pass, uri))
    except (OSError, StorageError, ValueError) as error:
        return _explained(uri, error)


def _may_pass(uri: str, error: Exception) -> bool:
    store = storage.store_of(uri)
    return store.is_transient(error) and not store.is_damage(error)


def _explained(uri: str, error: Exception) -> ImageError:
    """Return the ImageError of what a store raised, or of what it read."""
    number: int = getattr(error, "errno", None) or 0
    status = _STATUSES.get(number, "unreachable")
    if storage.store_of(uri).is_damage(error):
        status = "undecodable"
    elif isinstance(error, ValueError):  # no file's name has a zero byte
        status = "missing"
    reason = getattr(error, "strerror", None) or error
    return ImageError(status, f"{uri}: {reason}"[:300])
