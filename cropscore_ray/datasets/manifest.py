"""The manifest: one row per image, with its class and true boxes where they are known.

A manifest is a folder of Parquet files (or one file) of schema.MANIFEST, with the
list of classes in the schema's metadata. Rows stand in the order of image_id. A training
takes it whole into memory (`Manifest`), a bulk run a batch at a time (`StoredManifest`).
"""

import hashlib
import io
import re
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cropscore_ray import schema, storage
from cropscore_ray.errors import ConfigError, CropscoreError, DataError
from cropscore_ray.schema import ImageClass

_BATCH_ROWS = 65_536
_SMALL_ROWS, _READERS = 4096, 16  # of a packed set, say, which may have very many files
CHUNK_IMAGES = 16_384
"""Images a file of a manifest that is written while images are found."""
_OWN_FILE = re.compile(r"(manifest|chunk-\d{7})\.parquet|(index|listing)\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The rows of an image set (schema.MANIFEST) and the classes that they name."""

    table: pa.Table
    classes: list[ImageClass]

    @property
    def splits(self) -> list[str]:
        """The names in the split column, sorted."""
        return sorted(name for name in pc.unique(self.table["split"]).to_pylist() if name)

    def only(self, split: str | None) -> "Manifest":
        """Return the rows of one split; all rows for None; ConfigError if there is none."""
        if split is None:
            return self
        _require_split(split, self.splits)
        return Manifest(table=_of_split(self.table, split), classes=self.classes)

    def fingerprint(self) -> str:
        """Return a hash of the rows and classes that does not depend on how files are cut."""
        return _fingerprint([self.table], self.classes)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredManifest:
    """The rows of one split (all for None) of a manifest that stays where it is."""

    uri: str
    split: str | None
    classes: list[ImageClass]
    num_images: int
    fingerprint: str
    """As `Manifest.fingerprint` of the same rows."""
    files: list[str]
    """In the order of their rows; none if the rows must be sorted in memory."""

    @property
    def identity(self) -> str:
        """What makes it the same set: its rows and classes."""
        return self.fingerprint

    def batches(self, sizes: Iterable[int]) -> Iterator[pa.Table]:
        """Yield so many rows each time, and in the end what is left, in the order of image_id."""
        rows = _rows_in_order(self.uri, self.files)
        return recut((_of_split(some, self.split) for some in rows), sizes)


def open_manifest(uri: str, split: str | None = None) -> StoredManifest:
    """Look through a manifest, a batch at a time.

    Raises:
        DataError: it is no manifest, or an image_id stands there twice.
        ConfigError: it has no such split.
    """
    fields = storage.table_schema(uri)
    schema.check_table(fields, schema.MANIFEST, uri)
    classes = schema.read_classes(fields)
    files = _files_in_order(uri)
    num_images, splits = 0, set[str]()

    def counted() -> Iterator[pa.Table]:
        nonlocal num_images
        for rows in _rows_in_order(uri, files):
            splits.update(filter(None, pc.unique(rows["split"]).to_pylist()))
            chosen = _of_split(rows, split)
            num_images += len(chosen)
            yield chosen

    fingerprint = _fingerprint(counted(), classes)
    pa.default_memory_pool().release_unused()  # Arrow would keep the batches' memory for later
    if split is not None:
        _require_split(split, sorted(splits))
    return StoredManifest(
        uri=uri,
        split=split,
        classes=classes,
        num_images=num_images,
        fingerprint=fingerprint,
        files=files,
    )


def match_classes(classes: list[ImageClass], model_classes: list[ImageClass]) -> list[int | None]:
    """Return the index among a model's classes of each of a manifest's, matched by id."""
    index = {known.id: i for i, known in enumerate(model_classes)}
    return [index.get(wanted.id) for wanted in classes]


def _require_split(split: str, splits: list[str]) -> None:
    if split not in splits:
        raise ConfigError(
            f"the manifest has no split {split!r}",
            hint=f"its splits: {', '.join(splits) or 'none'}",
        )


def _of_split(rows: pa.Table, split: str | None) -> pa.Table:
    return rows if split is None else rows.filter(pc.equal(rows["split"], split))


class _Hash(io.RawIOBase):
    """A file that keeps nothing of what is written but its hash."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return len(data)


def _fingerprint(tables: Iterable[pa.Table], classes: list[ImageClass]) -> str:
    sink = _Hash()
    plain = schema.with_classes(schema.MANIFEST, classes)
    with pa.ipc.new_stream(pa.PythonFile(sink, "w"), plain) as writer:
        for rows in recut(tables, repeat(_BATCH_ROWS)):
            writer.write_table(rows.combine_chunks().cast(plain))
    return sink.sha256.hexdigest()[:16]


def recut(tables: Iterable[pa.Table], sizes: Iterable[int]) -> Iterator[pa.Table]:
    """Yield the same rows in tables of the sizes, which never end; at last what is left."""
    following = iter(sizes)
    waiting, size = list[pa.Table](), next(following)
    for table in tables:
        waiting.append(table)
        while sum(map(len, waiting)) >= size:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, size)
            waiting, size = [joined.slice(size)], next(following)
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting)


def _rows_in_order(uri: str, files: list[str]) -> Iterator[pa.Table]:
    """Yield a manifest's rows, a batch at a time; without files in order, sort them first."""
    if files:
        yield from _read_batches(files, schema.MANIFEST.names)
        return
    table = read_manifest(uri).table
    steps = np.diff(table["image_id"].to_numpy())
    if not steps.all():
        twice = table["image_id"][int(steps.argmin())].as_py()
        raise DataError(f"{uri}: image_id {twice} stands there twice", hint="give each row its own")
    yield table.replace_schema_metadata(None)


def _files_in_order(uri: str) -> list[str]:
    """Return a manifest's files so that ids grow from row to row; none if no order does that."""
    files = storage.table_files(uri)
    with ThreadPoolExecutor(_READERS) as pool:
        ends = list(pool.map(_first_and_last, files))
    spans = sorted((*ids, file) for ids, file in zip(ends, files, strict=True) if ids)
    apart = all(before[1] < after[0] for before, after in pairwise(spans))
    return [file for _, _, file in spans] if apart and None not in ends else []


def _first_and_last(file: str) -> tuple[int, int] | tuple[()] | None:
    """Return a file's first and last image_id, () if it has no row; None if they do not grow."""
    ends: tuple[int, int] | tuple[()] = ()
    for rows in _stream(file, ["image_id"]):
        ids = rows["image_id"].to_numpy()
        if (np.diff(ids) <= 0).any() or (ends and ids[0] <= ends[1]):
            return None
        ends = (ends[0] if ends else int(ids[0]), int(ids[-1]))
    return ends


def _read_batches(files: list[str], columns: list[str]) -> Iterator[pa.Table]:
    """Yield the rows of files, a batch at a time; those of small files are read ahead."""
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(files), _READERS):
            some = files[start : start + _READERS]
            tables = pool.map(partial(_if_small, columns=columns), some)
            for file, table in zip(some, tables, strict=True):
                batches = _stream(file, columns) if table is None else [table] if len(table) else []
                yield from (rows.replace_schema_metadata(None) for rows in batches)


def _if_small(file: str, columns: list[str]) -> pa.Table | None:
    with storage.open_file(file) as stream:
        parquet = pq.ParquetFile(stream)
        is_small = parquet.metadata.num_rows <= _SMALL_ROWS
        return parquet.read(columns, use_threads=False) if is_small else None


def _stream(file: str, columns: list[str]) -> Iterator[pa.Table]:
    with storage.open_file(file) as stream:
        for batch in pq.ParquetFile(stream).iter_batches(_BATCH_ROWS, columns=columns):
            yield pa.Table.from_batches([batch])


def is_manifest(uri: str) -> bool:
    """Return whether a URI holds a manifest of this version."""
    try:
        schema.check_table(storage.table_schema(uri), schema.MANIFEST, uri)
    except CropscoreError:
        return False
    return True


def read_manifest(uri: str) -> Manifest:
    """Read a manifest; DataError says what is wrong with it."""
    table = storage.read_table(uri)
    schema.check_table(table.schema, schema.MANIFEST, uri)
    ordered = table.select(schema.MANIFEST.names).sort_by("image_id")
    return Manifest(table=ordered, classes=schema.read_classes(table.schema))


def chunk_uri(uri: str, number: int) -> str:
    """Return where a file of CHUNK_IMAGES of a manifest is, or will be."""
    return storage.join(uri, f"chunk-{number:07d}.parquet")


def delete_manifest(uri: str, *, but: Collection[str] = ()) -> None:
    """Delete a manifest's files, known by their names; what else is in the folder stays."""
    folder = storage.absolute_uri(uri)
    for file in storage.list_files(folder):
        name = file.removeprefix(f"{folder}/")
        if _OWN_FILE.fullmatch(name) and name not in but:
            storage.delete_file(file)


def write_manifest(uri: str, manifest: Manifest) -> None:
    """Write a manifest as one file in the folder `uri`, in place of what is there."""
    delete_manifest(uri, but=("manifest.parquet", "index.json"))  # these are replaced whole
    full = schema.with_classes(schema.MANIFEST, manifest.classes)
    storage.write_table(
        storage.join(uri, "manifest.parquet"), manifest.table.cast(full), row_group_rows=_BATCH_ROWS
    )
