"""Tar archives of images (shards, as WebDataset names them): tar:GLOB.

Files of one archive with the same name up to the first dot of the file's own name are one
sample: `a/7.jpg` is the image, `a/7.cls` its class as text. What else a sample has is left
aside. Headers are read, and classes; no image is.
"""

import fnmatch
import itertools
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator

from cropscore_ray import storage
from cropscore_ray.datasets.files import Progress, read_all
from cropscore_ray.datasets.records import IMAGE_EXTENSIONS, ImageRecord, Scan
from cropscore_ray.datasets.report import ProblemLog
from cropscore_ray.errors import DataError, StorageError
from cropscore_ray.shards import Member

_BUFFER = 2**20  # headers of small images lie close together
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def scan(glob_uri: str, log: ProblemLog, progress: Progress | None = None) -> Scan:
    """Read the headers of archives: one, those of a folder, of a {000..123} or of a * pattern."""
    archives = find_archives(glob_uri)
    records: list[ImageRecord] = []
    left_aside: Counter[str] = Counter()
    for archive, found in zip(archives, read_all(_read_archive, archives, progress), strict=True):
        if isinstance(found, str):
            log.add("unreadable_archive", archive, found)
            continue
        images, others = found
        records += images
        left_aside += others
    if any(record.label is not None for record in records):
        for record in records:
            if record.label is None:
                log.add("image_without_label", record.image_uri, "has no .cls beside it")
    return Scan(records=records, left_aside=dict(sorted(left_aside.items())))


def find_archives(glob_uri: str) -> list[str]:
    """Return the URIs of the archives that a location stands for, sorted."""
    found = list(itertools.chain.from_iterable(map(_matching, _expand(glob_uri))))
    if not found:
        raise DataError(f"{glob_uri}: no .tar file here", hint="compressed archives are not read")
    return found


def _expand(glob_uri: str) -> Iterator[str]:
    """Yield the locations that {000..123} stands for."""
    braces = _RANGE.search(glob_uri)
    if braces is None:
        yield glob_uri
        return
    first, last = braces.groups()
    for number in range(int(first), int(last) + 1):
        start, stop = braces.span()
        yield from _expand(f"{glob_uri[:start]}{number:0{len(first)}d}{glob_uri[stop:]}")


def _matching(uri: str) -> list[str]:
    if any(character in uri for character in "*?["):
        folder = posixpath.dirname(re.split(r"[*?\[]", uri)[0])
        files = storage.list_files(folder)
        return [file for file in files if fnmatch.fnmatchcase(file, uri)]
    if storage.is_folder(uri):
        return [file for file in storage.list_files(uri) if file.endswith(".tar")]
    if not storage.exists(uri):
        raise StorageError(f"{uri}: no such file", hint="check the path, or the bucket and key")
    return [uri]


def _read_archive(uri: str) -> tuple[list[ImageRecord], Counter[str]] | str:
    """Return an archive's images and a count of other files, or why it cannot be read."""
    images: dict[str, Member] = {}
    labels: dict[str, str] = {}
    others: Counter[str] = Counter()
    try:
        with (
            storage.open_file(uri, buffer_bytes=_BUFFER) as file,
            tarfile.open(fileobj=file) as tar,
        ):
            for entry in filter(tarfile.TarInfo.isreg, tar):
                key, extension = _key_and_extension(entry.name)
                kind = extension.rsplit(".", 1)[-1].lower()
                if kind in IMAGE_EXTENSIONS and not entry.issparse():
                    name = f"{key}.{extension}"
                    images[key] = Member(uri, entry.offset_data, entry.size, name)
                elif kind == "cls":
                    content = tar.extractfile(entry)
                    labels[key] = content.read(1024).decode().strip() if content else ""
                else:
                    others[kind or "(none)"] += 1
    except (OSError, tarfile.TarError, UnicodeDecodeError) as error:
        return f"{type(error).__name__}: {error}"[:300]
    records = [
        ImageRecord(image_uri=member.uri, label=labels.get(key) or None)
        for key, member in images.items()
    ]
    return records, others


def _key_and_extension(name: str) -> tuple[str, str]:
    folder, base = posixpath.split(name.removeprefix("./"))
    key, _, extension = base.partition(".")
    return posixpath.join(folder, key), extension
