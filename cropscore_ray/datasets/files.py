"""Read many small files at once: image headers, annotations, what a folder holds.

Threads are enough: the time goes into waiting for the disk or the object store.
"""

import io
import posixpath
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TypeVar

from PIL import Image, UnidentifiedImageError

from cropscore_ray import storage
from cropscore_ray.datasets.problems import Finding
from cropscore_ray.datasets.records import Size
from cropscore_ray.errors import ImageError, StorageError
from cropscore_ray.images import archives, fetch
from cropscore_ray.images.decode import DAMAGED

ReadProgress = Callable[[int, int | None], None]
"""Called with the number of files done in this pass, and the total if it is known."""

Item = TypeVar("Item")
Result = TypeVar("Result")

# One request of this size answers for nearly every JPEG. Where the header is longer (large
# EXIF or colour profiles) or stands at the end (TIFF), Pillow seeks in the file itself.
HEAD_BYTES = 65_536
NUM_THREADS = 32
CHUNK = 1_024


def read_all(
    read: Callable[[Item], Result], items: Sequence[Item], progress: ReadProgress | None = None
) -> Iterator[Result]:
    """Yield `read(item)` for each item, in order, with NUM_THREADS reads under way."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        # By chunks, so that a million items are not a million waiting futures.
        for start in range(0, len(items), CHUNK):
            chunk = items[start : start + CHUNK]
            yield from pool.map(read, chunk)
            if progress:
                progress(start + len(chunk), len(items))


def image_sizes(
    image_uris: Sequence[str], progress: ReadProgress | None = None
) -> Iterator[Size | Finding]:
    """Yield each image's width and height from its header, or why there is none.

    The pixels are not decoded, and EXIF rotation is not applied: boxes lie in the frame
    of the stored pixels.
    """
    # Pillow warns about large images and odd metadata; localize gives those a status.
    # Set here, around the threads, because warning filters belong to the whole process.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for start in range(0, len(image_uris), CHUNK):
            chunk = image_uris[start : start + CHUNK]
            if any(map(archives.parse, chunk)):  # many in one file: they are read together
                yield from map(_size_of_bytes, fetch.fetch_images(chunk))
            else:
                yield from read_all(_image_size, chunk)
            if progress:
                progress(start + len(chunk), len(image_uris))


def _size_of_bytes(data: fetch.Fetched) -> Size | Finding:
    if isinstance(data, ImageError):
        kind = "image_without_file" if data.status == "missing" else "unreadable_header"
        return Finding(kind, str(data))
    try:
        return _header_size(io.BytesIO(data))
    except DAMAGED as error:
        return _unreadable(error)


def _image_size(image_uri: str) -> Size | Finding:
    try:
        with storage.open_file(image_uri, buffer_bytes=HEAD_BYTES) as file:
            return _header_size(file)
    except FileNotFoundError:
        return Finding("image_without_file", "no file at this URI")
    except (StorageError, *DAMAGED) as error:
        return _unreadable(error)


def _unreadable(error: Exception) -> Finding:
    # Pillow's message names the buffer's address, which would change from run to run.
    known = isinstance(error, UnidentifiedImageError)
    reason = "not an image" if known else f"{type(error).__name__}: {error}"
    return Finding("unreadable_header", reason)


def _header_size(file: IO[bytes]) -> Size:
    with Image.open(file) as image:
        return image.size


def missing_files(uris: Sequence[str]) -> dict[str, Finding]:
    """Return, for those URIs that name no file, what is wrong; in the order of `uris`.

    It lists their folders: a listing answers for a thousand files with one request, where
    asking for each would take a thousand.
    """
    folders = sorted({posixpath.dirname(uri) for uri in uris})
    names = dict(zip(folders, read_all(_names_in, folders), strict=True))
    missing: dict[str, Finding] = {}
    for uri in uris:
        folder, name = posixpath.split(uri)
        listed = names[folder]
        if isinstance(listed, Finding):
            missing[uri] = listed
        elif name not in listed:
            missing[uri] = Finding("image_without_file", "no file at this URI")
    return missing


def _names_in(folder_uri: str) -> set[str] | Finding:
    try:
        return storage.file_names_in(folder_uri)
    except (UnicodeDecodeError, StorageError) as error:
        return Finding("image_without_file", f"its folder cannot be listed: {error}")
