"""What a source of images is, and from any source a manifest and a report of what is odd about it.

A source is a folder or prefix, a manifest, `FORMAT:LOCATION`, or a list on standard input;
locations are local paths or URIs. Which form a source has, and what lies there, is decided here
alone. This module does not know where manifests go, nor how long a list is.
"""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from cropscore_ray import storage
from cropscore_ray.datasets.assembly import Index, assemble, summarize
from cropscore_ray.datasets.files import ReadProgress
from cropscore_ray.datasets.manifest import Manifest, is_manifest
from cropscore_ray.datasets.problems import ProblemLog
from cropscore_ray.datasets.readers import csv, folder, ilsvrc, parquet, tar, voc
from cropscore_ray.datasets.records import Scan
from cropscore_ray.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

STDIN = "-"
"""The source that is a list of URIs on standard input, which `uri_list` writes."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A source of images; as text, what was given."""

    given: str
    form: str
    """A key of the readers: "" for a folder or a manifest; or STDIN."""
    location_uri: str
    """Absolute."""

    def __str__(self) -> str:
        return self.given

    @property
    def absolute(self) -> str:
        """The same source, independent of the working directory."""
        if self.is_list:
            return STDIN
        return f"{self.form}:{self.location_uri}" if self.form else self.location_uri

    @property
    def is_list(self) -> bool:
        """Whether it is a list of URIs on standard input."""
        return self.form == STDIN

    def is_manifest(self) -> bool:
        """Return whether it is a manifest already, which its location is asked for."""
        uri = self.location_uri
        return not self.form and storage.exists(uri) and is_manifest(uri)

    def is_folder(self) -> bool:
        """Return whether it is a folder of images.

        Raises:
            StorageError, DataError: it is given as a folder, and neither a folder nor a manifest.
        """
        if self.form or self.is_manifest():
            return False
        folder.require_folder(self.location_uri)
        return True


def parse_source(text: str) -> Source:
    """Return the source that a text names, which nothing is asked of; ConfigError if unknown."""
    if text == STDIN:
        return Source(given=text, form=STDIN, location_uri=storage.absolute_uri(text))
    match = re.fullmatch(r"([A-Za-z0-9_+-]+):(?!//)(.*)", text, re.DOTALL)
    form, location = (match[1], match[2]) if match else ("", text)
    if form not in _READERS or not location.strip():
        raise ConfigError(
            f"{text!r} is not a source of images",
            hint="a source is one of\n"
            + "\n".join(f"  {form:12} for example {example}" for form, example in FORMS.items()),
        )
    return Source(given=text, form=form, location_uri=storage.absolute_uri(location))


def index_source(source: Source | str, *, progress: ReadProgress | None = None) -> Index:
    """Read an image set into a manifest; see FORMS for what a source may be.

    A bad image, box or annotation is counted in the report and never stops the reading.

    Args:
        source: one of FORMS, but no list on standard input.
        progress: called as files are read, with the number done and the total; it starts
            again with each pass (annotations or listing, then image headers).

    Raises:
        ConfigError: the source has no known form.
        StorageError: the location does not exist or cannot be read.
        DataError: what lies there is not of that form, or holds no image.
    """
    source = parse_source(source) if isinstance(source, str) else source
    assert not source.is_list, "a list is written by uri_list.write_list"
    log, start_s = ProblemLog(), time.monotonic()
    scan = _READERS[source.form](source.location_uri, log, progress)
    if isinstance(scan, Manifest):
        index = Index(manifest=scan, report=summarize(scan))
    elif scan.records:
        index = assemble(scan, log, progress)
    else:
        raise _no_image(source, scan, log)
    rows, seconds = index.report.num_images, time.monotonic() - start_s
    logger.info("indexed %d images in %.1f s (%.0f/s)", rows, seconds, rows / max(seconds, 1e-3))
    return index


def _no_image(source: Source, scan: Scan, log: ProblemLog) -> DataError:
    others = [f"{count} {extension}" for extension, count in scan.left_aside.items()]
    problems = [f"{kind}: {problem.count}" for kind, problem in log.problems().items()]
    return DataError(
        f"{source}: no image here"
        + (f"; other files by extension: {', '.join(others)}" if others else "")
        + (f"; problems: {', '.join(problems)}" if problems else ""),
        hint="check the location; an image set in a table is given as csv:FILE or parquet:URI",
    )
