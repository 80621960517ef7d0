"""Packing: a part's images into one tar archive, and the manifest rows that find them there."""

import io
import tarfile
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from cropscore_ray import schema, storage
from cropscore_ray.bulk.parts import BulkRun, from_row, summary, with_images
from cropscore_ray.images import archives
from cropscore_ray.images.archives import Member

PACKED, LEFT = schema.OK, "left_where_it_was"
_HEADER = 512  # bytes of a tar header; names here fit into one
_LONGEST = 16  # of a file name extension


def shards_uri(folder_uri: str) -> str:
    """Return the folder of a packed set's archives."""
    return storage.join(folder_uri, "shards")


def pack_part(block: pa.Table, run: BulkRun) -> pa.Table:
    """Write a part's archive, and then its rows of the manifest; return a summary of one row.

    An image that cannot be read keeps its old URI, and gets a status when it is localized. A
    class stands beside its image as a file `.cls`, as in WebDataset.
    """
    number, table = from_row(block)
    archive_uri = storage.join(shards_uri(run.folder.uri), f"shard-{number:07d}.tar")
    rows = table.to_pylist()
    archive, reached = io.BytesIO(), True
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for group, fetched in with_images(rows):
            for row, image in zip(group, fetched, strict=True):
                if isinstance(image, bytes):
                    row["image_uri"] = _add(tar, archive_uri, row, image, run)
                else:
                    reached &= image.status not in schema.UNREACHED

    def write() -> None:
        run.folder.held.require()
        storage.write_bytes(archive_uri, archive.getvalue())

    storage.persistently(archive_uri, write)
    columns = [{name: row[name] for name in schema.MANIFEST.names} for row in rows]
    full = schema.with_classes(schema.MANIFEST, run.manifest.classes)
    packed = schema.rows_to_table(columns, full)
    run.folder.write_part(number, packed, reached=reached)
    return summary(packed, packed_by_status(packed, run.folder.uri))


def packed_by_status(rows: pa.Table, folder_uri: str) -> dict[str, int]:
    """Count the images of a packed manifest: in the archives, or left where they were."""
    inside = sum(uri.startswith(shards_uri(folder_uri)) for uri in rows["image_uri"].to_pylist())
    counts = {PACKED: inside, LEFT: len(rows) - inside}
    return {status: count for status, count in counts.items() if count}


def _add(
    tar: tarfile.TarFile, archive_uri: str, row: dict[str, Any], data: bytes, run: BulkRun
) -> str:
    """Add an image and its class; return the image's new URI."""
    where = archives.parse(row["image_uri"])
    old_name = where.name if isinstance(where, Member) else row["image_uri"]
    extension = PurePosixPath(old_name).suffix.lower()[:_LONGEST] or ".jpg"
    key = f"{row['image_id']:012d}"
    start = tar.offset + _HEADER
    _add_file(tar, key + extension, data)
    if row["class_index"] is not None:
        _add_file(tar, f"{key}.cls", run.manifest.classes[row["class_index"]].id.encode())
    return Member(archive_uri, start, len(data), key + extension).uri


def _add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)  # of the year 1970: the same images make the same archive
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
