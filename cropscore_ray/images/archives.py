"""Images inside larger files: members of a tar archive, rows of a Parquet file.

Such an image has a URI too: its file's and, after a #, where in the file it lies.

    s3://bucket/train-000001.tar#000000001536+34567/cat/7.jpg     offset, size and name
    s3://bucket/images.parquet#000000017/image                    row and column

Numbers have leading zeros, so that URIs in order lie in order. Images that lie side by side
are read together. Nothing here reads a file.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

_TAR = re.compile(r"(?P<file>.*\.tar)#(?P<offset>\d+)\+(?P<size>\d+)/(?P<name>.*)", re.DOTALL)
_PARQUET = re.compile(r"(?P<file>.*\.parquet)#(?P<row>\d+)/(?P<column>.*)", re.DOTALL)

_LARGEST_READ = 8 * 2**20
_LARGEST_GAP = 64 * 2**10  # bytes read in vain cost less than another request


@dataclass(frozen=True, slots=True)
class Member:
    """The bytes of one image in a tar archive."""

    file_uri: str
    offset: int
    size: int
    name: str

    @property
    def uri(self) -> str:
        """The image's URI."""
        return f"{self.file_uri}#{self.offset:012d}+{self.size}/{self.name}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One image in a column of a Parquet file."""

    file_uri: str
    row: int
    column: str

    @property
    def uri(self) -> str:
        """The image's URI."""
        return f"{self.file_uri}#{self.row:09d}/{self.column}"


def parse(uri: str) -> Member | Cell | None:
    """Return where in a larger file an image lies; None if it is a file of its own."""
    where: Member | Cell | None = None
    if match := _TAR.fullmatch(uri):
        where = Member(match["file"], int(match["offset"]), int(match["size"]), match["name"])
    elif match := _PARQUET.fullmatch(uri):
        where = Cell(match["file"], int(match["row"]), match["column"])
    return where if where and where.uri == uri else None  # with as many zeros, no more, no less


def spans(members: Sequence[Member]) -> Iterator[list[Member]]:
    """Yield all members, those together that are to be read at once, by their offsets."""
    span: list[Member] = []
    for member in sorted(members, key=lambda member: (member.file_uri, member.offset)):
        if span and not _joins(member, span):
            yield span
            span = []
        span.append(member)
    if span:
        yield span


def stop_of(span: list[Member]) -> int:
    """Return the byte after the last of members."""
    return max(member.offset + member.size for member in span)


def _joins(member: Member, span: list[Member]) -> bool:
    near = member.file_uri == span[0].file_uri and member.offset - stop_of(span) <= _LARGEST_GAP
    return near and stop_of([*span, member]) - span[0].offset <= _LARGEST_READ


def columns(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Yield all cells, those of a file's column together in the order of rows."""
    ordered = sorted(cells, key=lambda cell: (cell.file_uri, cell.column, cell.row))
    for _, together in groupby(ordered, key=lambda cell: (cell.file_uri, cell.column)):
        yield list(together)
