"""Readers: any image set -> a manifest and a report of what is odd about it.

A source is a folder or prefix, or `FORMAT:LOCATION`; locations are local paths or URIs.
"""

import logging
import re
import time
from collections.abc import Callable

from cropscore_ray import storage
from cropscore_ray.datasets.assembly import Index, assemble, summarize
from cropscore_ray.datasets.files import ReadProgress
from cropscore_ray.datasets.manifest import Manifest
from cropscore_ray.datasets.problems import KINDS, Example, IndexReport, Problem, ProblemLog
from cropscore_ray.datasets.readers import csv, folder, ilsvrc, parquet, tar, voc
from cropscore_ray.datasets.records import Scan
from cropscore_ray.datasets.uri_list import STDIN
from cropscore_ray.errors import ConfigError, DataError

__all__ = [
    "FORMS",
    "KINDS",
    "Example",
    "Index",
    "IndexReport",
    "Problem",
    "ReadProgress",
    "absolute_source",
    "index_source",
]

logger = logging.getLogger(__name__)

FORMS = {
    "FOLDER": "photos/ or s3://bucket/photos",
    "ilsvrc:ROOT": "ilsvrc:imagenet, the folder that holds ILSVRC/ and LOC_synset_mapping.txt",
    "voc:ROOT": "voc:VOCdevkit/VOC2012",
    "csv:FILE": "csv:photos/train.csv",
    "tar:GLOB": "tar:s3://bucket/train-{000..123}.tar, or with *, or a folder of .tar files",
    "parquet:URI": "parquet:s3://bucket/images.parquet, or a manifest",
    STDIN: "find photos -name '*.jpg' | cropscore ... -, a list of URIs on standard input",
}

_Reader = Callable[[str, ProblemLog, ReadProgress | None], Scan | Manifest]

_READERS: dict[str, _Reader] = {
    "": folder.scan,
    "ilsvrc": ilsvrc.scan,
    "voc": voc.scan,
    "csv": csv.scan,
    "tar": tar.scan,
    "parquet": parquet.scan,
}


def index_source(source: str, *, progress: ReadProgress | None = None) -> Index:
    """Read an image set into a manifest; see FORMS for what a source may be.

    A bad image, box or annotation is counted in the report and never stops the reading.

    Args:
        source: one of FORMS.
        progress: called as files are read, with the number done and the total; it starts
            again with each pass (annotations or listing, then image headers).

    Raises:
        ConfigError: the source has no known form.
        StorageError: the location does not exist or cannot be read.
        DataError: what lies there is not of that form, or holds no image.
    """
    form, location_uri = _parse(source)
    log, start_s = ProblemLog(), time.monotonic()
    found = _READERS[form](location_uri, log, progress)
    if isinstance(found, Manifest):
        index = Index(manifest=found, report=summarize(found))
    elif found.records:
        index = assemble(found, log, progress)
    else:
        raise _no_image(source, found, log)
    rows, seconds = index.report.num_images, time.monotonic() - start_s
    logger.info("indexed %d images in %.1f s (%.0f/s)", rows, seconds, rows / max(seconds, 1e-3))
    return index


def absolute_source(source: str) -> str:
    """Return the same source, independent of the working directory; ConfigError if unknown."""
    if source == STDIN:
        return source
    form, location_uri = _parse(source)
    return f"{form}:{location_uri}" if form else location_uri


def _parse(source: str) -> tuple[str, str]:
    """Part a source into its form, "" for a folder, and the absolute location."""
    match = re.fullmatch(r"([A-Za-z0-9_+-]+):(?!//)(.*)", source, re.DOTALL)
    form, location = (match[1], match[2]) if match else ("", source)
    if form not in _READERS or not location.strip():
        raise ConfigError(
            f"{source!r} is not a source of images",
            hint="a source is one of\n"
            + "\n".join(f"  {form:12} for example {example}" for form, example in FORMS.items()),
        )
    return form, storage.absolute_uri(location)


def _no_image(source: str, found: Scan, log: ProblemLog) -> DataError:
    others = [f"{count} {extension}" for extension, count in found.left_aside.items()]
    seen = [f"{kind}: {one.count}" for kind, one in log.problems().items()]
    return DataError(
        f"{source}: no image here"
        + (f"; other files by extension: {', '.join(others)}" if others else "")
        + (f"; problems: {', '.join(seen)}" if seen else ""),
        hint="check the location; an image set in a table is given as csv:FILE or parquet:URI",
    )
