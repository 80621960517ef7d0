"""Encoded images from wherever their URIs point, many at once.

A fetch never raises: what could not be had is an ImageError in its place, and becomes a
row with a status.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError, ClientError

from cropscore_ray import retries, s3, shards, storage
from cropscore_ray.errors import CropscoreError, ImageError
from cropscore_ray.shards import Cell, Member, Span

Fetched = bytes | ImageError
_Found = dict[str, Fetched]

_MISSING = {"NoSuchKey", "NoSuchBucket", "404", "NotFound"}
_DENIED = {"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch"}


def fetch_images(uris: Iterable[str]) -> list[Fetched]:
    """Return each URI's bytes, or the ImageError that says why not, in order."""
    wanted = list(uris)
    found: _Found = {}
    with ThreadPoolExecutor(s3.CONNECTIONS, thread_name_prefix="fetch") as pool:
        for some in pool.map(lambda read: read(), _reads(wanted)):
            found.update(some)
    return [found[uri] for uri in wanted]


def fetch_image(uri: str) -> bytes:
    """Return an image's bytes; ImageError with status missing, denied, throttled or unreachable."""
    [read] = _reads([uri])
    found = read()[uri]
    if isinstance(found, ImageError):
        raise found
    return found


def _reads(uris: list[str]) -> Iterator[Callable[[], _Found]]:
    """Yield what must be read: files, and parts of files that hold several images."""
    inside = {uri: shards.parse(uri) for uri in uris}
    for uri, where in inside.items():
        if where is None:
            yield partial(_read_file, uri)
    members = [where for where in inside.values() if isinstance(where, Member)]
    yield from (partial(_read_span, span) for span in shards.spans(members))
    cells = [where for where in inside.values() if isinstance(where, Cell)]
    yield from (partial(_read_cells, some) for some in shards.columns(cells))


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


def _read_cells(cells: list[Cell]) -> _Found:
    """Read one column's cells; each row group that holds some is read once."""
    file_uri, column = cells[0].file_uri, cells[0].column
    found: _Found = {}
    try:
        with storage.open_file(file_uri) as stream:
            file = pq.ParquetFile(stream)
            start = 0
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                some = [one for one in cells if start <= one.row < stop]
                if some:
                    values = _images(file.read_row_group(group, columns=[column])[column])
                    found |= {one.uri: values[one.row - start].as_py() or b"" for one in some}
                start = stop
    except FileNotFoundError:
        return {one.uri: ImageError("missing", f"no file {file_uri}") for one in cells}
    except PermissionError:
        return {one.uri: ImageError("denied", f"no permission for {file_uri}") for one in cells}
    except (OSError, pa.ArrowException, KeyError, CropscoreError) as error:
        reason = ImageError("unreachable", f"{file_uri}: {error}"[:300])
        return {one.uri: found.get(one.uri, reason) for one in cells}
    gone = {one.uri: ImageError("missing", f"{one.uri}: no such row") for one in cells}
    return gone | found


def _images(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column's encoded images: its own, or the `bytes` of structs."""
    if pa.types.is_struct(column.type):
        return pa.chunked_array([chunk.field("bytes") for chunk in column.chunks])
    return column


def _read(uri: str, start: int = 0, stop: int | None = None) -> bytes:
    """Return a file's bytes, or those of a part of it, which may be fewer at the end."""
    if uri.startswith(s3.SCHEME):
        return _from_s3(uri, start, stop)
    try:
        with storage.open_file(uri) as file:
            file.seek(start)
            return bytes(file.read() if stop is None else file.read(stop - start))
    except FileNotFoundError as error:
        raise ImageError("missing", f"no file {uri}") from error
    except PermissionError as error:
        raise ImageError("denied", f"no permission to read {uri}") from error
    except (OSError, CropscoreError) as error:
        raise ImageError("unreachable", f"{uri}: {error}"[:300]) from error


def _from_s3(uri: str, start: int, stop: int | None) -> bytes:
    bucket, key = s3.bucket_and_key(uri)
    part = {} if stop is None else {"Range": f"bytes={start}-{stop - 1}"}

    def read() -> bytes:
        found = s3.client().get_object(Bucket=bucket, Key=key, **part, **s3.payer())
        return bytes(found["Body"].read())

    try:
        return retries.persistently(read, s3.is_transient)
    except (BotoCoreError, ClientError, OSError) as error:
        if isinstance(error, ClientError) and s3.code_of(error) in ("InvalidRange", "416"):
            return b""
        raise _explained(uri, error) from error


def _explained(uri: str, error: Exception) -> ImageError:
    """Return the ImageError of what S3 answered, or of why it did not."""
    if not isinstance(error, ClientError):
        return ImageError("unreachable", f"{uri}: {type(error).__name__}: {error}"[:300])
    code = s3.code_of(error)
    status = "missing" if code in _MISSING else "denied" if code in _DENIED else "unreachable"
    status = "throttled" if s3.is_throttled(error) else status
    return ImageError(status, f"{uri}: {code}: {error}"[:300])
