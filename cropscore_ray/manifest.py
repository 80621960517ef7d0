"""The manifest: one row per image, with its class and true boxes where they are known.

A manifest is a folder of Parquet files (or one file) of schema.MANIFEST, with the
list of classes in the schema's metadata. Rows stand in the order of image_id.
"""

import hashlib
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from cropscore_ray import schema, storage
from cropscore_ray.errors import ConfigError, CropscoreError
from cropscore_ray.schema import ImageClass


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
        if split not in self.splits:
            raise ConfigError(
                f"the manifest has no split {split!r}",
                hint=f"its splits: {', '.join(self.splits) or 'none'}",
            )
        return Manifest(
            table=self.table.filter(pc.equal(self.table["split"], split)), classes=self.classes
        )

    def class_map(self, model_classes: list[ImageClass]) -> list[int | None]:
        """Return the index among a model's classes of each of the manifest's, matched by id."""
        index = {one.id: i for i, one in enumerate(model_classes)}
        return [index.get(one.id) for one in self.classes]

    def fingerprint(self) -> str:
        """Return a hash of the rows and classes that does not depend on how files are cut."""
        sink = pa.BufferOutputStream()
        plain = schema.with_classes(schema.MANIFEST, self.classes)
        with pa.ipc.new_stream(sink, plain) as writer:
            writer.write_table(self.table.combine_chunks().cast(plain))
        return hashlib.sha256(sink.getvalue()).hexdigest()[:16]


def is_manifest(uri: str) -> bool:
    """Tell whether a URI holds a manifest of this version."""
    try:
        schema.check_table(storage.open_table(uri).schema, schema.MANIFEST, uri)
    except CropscoreError:
        return False
    return True


def read_manifest(uri: str) -> Manifest:
    """Read a manifest; DataError says what is wrong with it."""
    table = storage.read_table(uri)
    schema.check_table(table.schema, schema.MANIFEST, uri)
    ordered = table.select(schema.MANIFEST.names).sort_by("image_id")
    return Manifest(table=ordered, classes=schema.read_classes(table.schema))


def write_manifest(uri: str, manifest: Manifest) -> None:
    """Write a manifest as one file in the folder `uri`, replacing it as a whole."""
    full = schema.with_classes(schema.MANIFEST, manifest.classes)
    storage.write_table(
        storage.join(uri, "manifest.parquet"), manifest.table.cast(full), row_group_rows=65_536
    )
