"""What lies in folders of a disk, in order and as it is found; `s3` has the same for S3."""

import os
from collections.abc import Iterator


def iter_files(folder: str) -> Iterator[str]:
    """Yield all files below a folder in the order of their whole names; none if there is none.

    Links to nothing and odd names too. A level of folders is in memory.
    """
    yield from _files_below(folder, {os.path.realpath(folder)})


def _files_below(folder: str, seen: set[str]) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(f"{one.name}/" if _is_folder(one) else one.name for one in entries)
    except FileNotFoundError:  # taken away since it was seen, as objects of S3 may be
        return
    for name in names:
        where = os.path.join(folder, name)
        if not name.endswith("/"):
            yield where
            continue
        place = os.path.realpath(where)
        if place not in seen:  # a link to a folder above would be walked for ever
            seen.add(place)
            yield from _files_below(where.rstrip("/"), seen)


def iter_level(folder: str) -> Iterator[tuple[str, bool]]:
    """Yield the names directly in a folder, in no order, and whether each is a folder."""
    with os.scandir(folder) as entries:
        yield from ((one.name, _is_folder(one)) for one in entries)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere: who reads it will say so
        return False
