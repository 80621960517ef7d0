"""Tar archives of images (shards, as WebDataset names them): tar:GLOB.

Files of one archive with the same name up to the first dot of the file's own name are one
sample: `a/7.jpg` is an image, `a/7.cls` its class as text. What else a sample has is left
aside. Headers are read, and classes; no image is. A damaged archive has the images before the
damage; an archive that cannot be had has images that nobody knows, so it stops the index.
"""

import fnmatch
import io
import itertools
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import IO

from cropscore_ray import storage
from cropscore_ray.datasets.files import ReadProgress, read_all
from cropscore_ray.datasets.problems import Finding, ProblemLog
from cropscore_ray.datasets.records import ImageRecord, Scan, count_unlabelled, other_kind
from cropscore_ray.errors import DataError, StorageError
from cropscore_ray.images.archives import Member

_BUFFER = 2**20  # headers of small images lie close together
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def scan(glob_uri: str, log: ProblemLog, progress: ReadProgress | None = None) -> Scan:
    """Read the headers of archives: one, those of a folder, of a {000..123} or of a * pattern."""
    uris = find_archives(glob_uri)
    records: list[ImageRecord] = []
    left_aside: Counter[str] = Counter()
    for uri, archive in zip(uris, read_all(_read_archive, uris, progress), strict=True):
        for problem in archive.problems:
            log.add(problem.kind, uri, problem.detail)
        records += archive.records()
        left_aside += archive.left_aside
    count_unlabelled(records, log, "has no .cls beside it")
    return Scan(records=records, left_aside=dict(sorted(left_aside.items())))


def find_archives(glob_uri: str) -> list[str]:
    """Return the URIs of the archives that a location stands for, sorted."""
    uris = list(itertools.chain.from_iterable(map(_matching, _expand(glob_uri))))
    if not uris:
        raise DataError(f"{glob_uri}: no .tar file here", hint="compressed archives are not read")
    return uris


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


@dataclass
class _Archive:
    """What the headers of an archive name."""

    images: dict[str, Member] = field(default_factory=dict)
    """By name."""
    labels: dict[str, str] = field(default_factory=dict)
    """By sample."""
    left_aside: Counter[str] = field(default_factory=Counter)
    problems: list[Finding] = field(default_factory=list)

    def records(self) -> Iterator[ImageRecord]:
        """Yield the images with the classes of their samples."""
        for name, member in self.images.items():
            yield ImageRecord(image_uri=member.uri, label=self.labels.get(_sample(name)) or None)


def _read_archive(uri: str) -> _Archive:
    """Return what is in an archive; StorageError if its store has not answered in a while."""
    try:
        return storage.persistently(uri, partial(_read_headers, uri))
    except OSError as error:
        reason = str(error).splitlines()[0][:300]
        hint = "nothing is indexed without it; the same command begins again"
        raise StorageError(f"cannot read {uri}: {reason}", hint=hint) from error


def _read_headers(uri: str) -> _Archive:
    """Return what is in an archive; of a damaged one, what stands before the damage."""
    archive = _Archive()
    with storage.open_file(uri, buffer_bytes=_BUFFER) as file:
        try:
            for tar, entry in _entries(file):
                _add(uri, tar, entry, archive)
        except (tarfile.TarError, ValueError) as error:
            archive.problems.append(Finding("unreadable_archive", f"{error}"[:300]))
    return archive


def _entries(file: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the files of an archive; TarError where it is damaged, as `tarfile` itself has not."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for entry in iter(tar.next, None):
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            if entry.isreg():
                yield tar, entry
            if tar.offset > size:  # a store refuses to go there as if it were away
                raise tarfile.ReadError(f"the archive ends inside {entry.name!r}")
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE).strip(tarfile.NUL):
            raise tarfile.ReadError(f"no header at byte {tar.offset}, and not the end either")


def _add(uri: str, tar: tarfile.TarFile, entry: tarfile.TarInfo, archive: _Archive) -> None:
    """Take note of one file of an archive."""
    name = entry.name.removeprefix("./")
    other = other_kind(name)
    if other is None and not entry.issparse():
        if name in archive.images:
            twice = f"{name} stands there twice; the last is taken"
            archive.problems.append(Finding("duplicate_image", twice))
        archive.images[name] = Member(uri, entry.offset_data, entry.size, name)
    elif other == "cls":
        content = tar.extractfile(entry)
        label = content.read(1024) if content else b""
        archive.labels[_sample(name)] = label.decode(errors="replace").strip()
    else:
        archive.left_aside[other or "(sparse)"] += 1


def _sample(name: str) -> str:
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])
