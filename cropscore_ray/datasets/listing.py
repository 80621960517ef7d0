"""A manifest that grows while a folder is listed, for sets too large to list before work begins.

The lister writes the manifest in chunks, each a whole file, and in the end says how many images
there are. A reader takes chunk after chunk, and waits for those that are not there yet.
Stopped and started again, the lister resumes after the last image of its last chunk.
"""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cropscore_ray import schema, storage
from cropscore_ray.datasets.manifest import CHUNK_IMAGES, chunk_uri, recut
from cropscore_ray.datasets.records import is_text, other_kind
from cropscore_ray.errors import DataError, RunConflictError, StorageError
from cropscore_ray.schema import ImageClass
from cropscore_ray.storage.lock import Held

logger = logging.getLogger(__name__)

CHUNK_S = 5.0
"""A chunk is written when it is full, or so old: work begins with the first images listed."""
_POLL_S = 0.5
_AGAIN_S = 5.0
_LEFT_ASIDE = b"left_aside"
_MOST_CLASSES = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class GrowingManifest:
    """The manifest of a folder that may still be listed."""

    uri: str
    folder_uri: str
    classes: list[ImageClass]
    """The folder's own folders when the run began: an image is of the class of its folder."""

    @property
    def num_images(self) -> int | None:
        """How many there are; None while the folder is being listed, and if that failed."""
        ended = self.ended()
        return None if ended is None or ended["error"] else int(ended["num_images"])

    @property
    def identity(self) -> str:
        """What makes it the same set: the folder, whose content is what was found in it."""
        return self.folder_uri

    def batches(self, sizes: Iterable[int]) -> Iterator[pa.Table]:
        """Yield so many rows each time, and in the end what is left, as they are listed.

        Raises:
            DataError: the listing failed.
        """
        return recut(self._chunks(), sizes)

    def ended(self) -> dict[str, Any] | None:
        """Return how the listing ended; None while it has not."""
        where = storage.join(self.uri, "listing.json")
        ended: dict[str, Any] | None = storage.read_json(where) if storage.exists(where) else None
        return ended

    def _chunks(self) -> Iterator[pa.Table]:
        number = 0
        while True:
            ended = self.ended()  # before the look for the chunk: it is written after the last
            if storage.exists(chunk_uri(self.uri, number)):
                chunk = storage.read_table(chunk_uri(self.uri, number))
                yield chunk.replace_schema_metadata(None)
                number += 1
            elif ended is None:
                time.sleep(_POLL_S)
            elif ended["error"]:
                raise DataError(ended["error"])  # the store has answered; to ask again is in vain
            else:
                return


def growing_manifest(folder_uri: str, manifest_uri: str, *, begun: bool) -> GrowingManifest:
    """Return the manifest of a folder, to be listed or listed already.

    More folders than 10,000 in the folder are no classes, and neither are those of S3 that stand
    behind 10,000 files, nor the folder of the manifest itself. If a run has `begun` on the
    chunks that are there, its classes are theirs: by now the folder may have others.
    """
    manifest = GrowingManifest(uri=manifest_uri, folder_uri=folder_uri, classes=[])
    first = chunk_uri(manifest_uri, 0)
    if begun and storage.exists(first):
        return replace(manifest, classes=schema.read_classes(storage.table_schema(first)))
    names = list(islice(storage.iter_folders(folder_uri), _MOST_CLASSES + 1))
    if len(names) > _MOST_CLASSES:
        return manifest
    own = manifest_uri.removeprefix(f"{folder_uri}/").partition("/")[0]
    classes = [
        ImageClass(id=name, name=name) for name in sorted(names) if is_text(name) and name != own
    ]
    return replace(manifest, classes=classes)


@dataclass
class _Listed:
    """What a listing has come to so far."""

    num_chunks: int = 0
    num_images: int = 0
    num_late: int = 0
    """Images in folders that came when the classes were known already; they have none."""
    last_uri: str = ""
    left_aside: Counter[str] = field(default_factory=Counter)
    """Files that are no images, by extension."""


class _StoppedError(Exception):
    """The run has ended, and its lister with it."""


class Lister:
    """Lists a folder in a thread, until it ends or the run does.

    Args:
        manifest: where the images go.
        held: the run's lock, which is looked at before each file is written.
    """

    def __init__(self, manifest: GrowingManifest, held: Held) -> None:
        self.manifest = manifest
        self.has_images = threading.Event()
        """Set when there are the first images, or when it is known that there are none."""
        self.conflict: RunConflictError | None = None
        """Why it wrote no end into the folder: that is another run's by now."""
        self._held = held
        self._index = {known.id: index for index, known in enumerate(manifest.classes)}
        self._stopped, self._writing = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._list, name="lister", daemon=True)

    def start(self) -> None:
        """Begin, or go on where an earlier start was stopped; nothing if that ended."""
        ended = self.manifest.ended()
        if ended and ended["error"]:
            storage.delete_file(storage.join(self.manifest.uri, "listing.json"))
        elif ended:
            self.has_images.set()
            return
        self._thread.start()

    def stop(self) -> None:
        """Write nothing from now on; what is just being written is waited for."""
        with self._writing:
            self._stopped.set()

    def _list(self) -> None:
        listed = _Listed()
        try:
            error = self._write_chunks(listed)
            self._write_end(listed, error)
        except _StoppedError:
            pass
        except RunConflictError as conflict:
            self.conflict = conflict
        finally:
            self.has_images.set()

    def _write_chunks(self, listed: _Listed) -> str | None:
        """Write all images of the folder; return why the listing broke off, None if it did not."""
        try:
            self._read_before(listed)
            for chunk in self._chunks(listed):
                where = chunk_uri(self.manifest.uri, listed.num_chunks)
                self._write(where, partial(storage.write_table, where, chunk))
                listed.num_chunks += 1
                self.has_images.set()
        except (_StoppedError, RunConflictError):
            raise
        except Exception as failure:  # whatever it is: the run waits for images
            error = f"{self.manifest.folder_uri} cannot be listed: {failure}"
            return error.encode(errors="backslashreplace").decode()  # a file's name may be no text
        return None

    def _write_end(self, listed: _Listed, error: str | None) -> None:
        """Write how the listing ended, however long that takes: the run waits for it."""
        record = {
            "num_images": listed.num_images,
            "num_late": listed.num_late,
            "left_aside": dict(sorted(listed.left_aside.items())),
            "error": error,
        }
        where = storage.join(self.manifest.uri, "listing.json")
        while True:
            try:
                return self._write(where, partial(storage.write_json, where, record))
            except StorageError as failure:
                logger.warning("%s; trying again", failure)
                self._stopped.wait(_AGAIN_S)

    def _write(self, where: str, write: Callable[[], None]) -> None:
        """Write a file, unless the run has ended or lost its folder to another."""

        def attempt() -> None:
            with self._writing:
                if self._stopped.is_set():
                    raise _StoppedError
                self._held.require()
                write()

        storage.persistently(where, attempt)

    def _read_before(self, listed: _Listed) -> None:
        """Take in what an earlier start wrote."""
        while storage.exists(chunk_uri(self.manifest.uri, listed.num_chunks)):
            rows = storage.read_table(chunk_uri(self.manifest.uri, listed.num_chunks))
            listed.num_chunks += 1
            listed.num_images += len(rows)
            without_class = rows.filter(pc.is_null(rows["class_index"]))
            listed.num_late += sum(map(self._is_late, without_class["image_uri"].to_pylist()))
            listed.last_uri = rows["image_uri"][-1].as_py()
            listed.left_aside = Counter(json.loads(rows.schema.metadata[_LEFT_ASIDE]))
            self.has_images.set()

    def _chunks(self, listed: _Listed) -> Iterator[pa.Table]:
        """Yield the images as rows of the manifest, and count them."""
        rows: list[dict[str, Any]] = []
        began_s, aside = time.monotonic(), Counter[str]()  # since the last image
        for uri in storage.iter_files(self.manifest.folder_uri, listed.last_uri):
            if self._stopped.is_set():
                raise _StoppedError
            other = other_kind(uri)
            if other is not None:
                aside[other] += 1
                continue
            rows.append(self._row(uri, listed.num_images))
            listed.num_images += 1
            listed.num_late += self._is_late(uri)
            listed.left_aside.update(aside)
            aside.clear()
            if len(rows) == CHUNK_IMAGES or time.monotonic() - began_s > CHUNK_S:
                yield self._table(rows, listed.left_aside)
                rows, began_s = [], time.monotonic()
        if rows:
            yield self._table(rows, listed.left_aside)
        listed.left_aside.update(aside)

    def _row(self, uri: str, image_id: int) -> dict[str, Any]:
        index = self._index.get(self._folder_of(uri))
        return {"image_id": image_id, "image_uri": uri, "class_index": index}

    def _is_late(self, uri: str) -> bool:
        folder = self._folder_of(uri)
        return bool(self._index and folder) and folder not in self._index

    def _folder_of(self, uri: str) -> str:
        """Return the name of the first folder in which an image lies; empty if it lies in none."""
        first, slash, _ = uri.removeprefix(self.manifest.folder_uri).lstrip("/").partition("/")
        return first if slash else ""

    def _table(self, rows: list[dict[str, Any]], left_aside: Counter[str]) -> pa.Table:
        """Return a chunk, which also holds what was left aside before its last image."""
        full = schema.with_classes(schema.MANIFEST, self.manifest.classes)
        aside = {_LEFT_ASIDE: json.dumps(left_aside).encode()}
        return schema.rows_to_table(rows, full.with_metadata({**full.metadata, **aside}))
