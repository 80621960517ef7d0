"""The text that the ILSVRC development kit's eval_clsloc.m reads.

One line per image, in the sorted order of file names, with up to five groups of class id,
xmin, ymin, xmax, ymax in inclusive pixels, best first. The ids are the kit's own, 1 to
1000 in an order that is NOT the sorted order of wnids; they are mapped through its meta file.

An image without a guess is `0 0 0 0 0`. The kit reads with dlmread, which fills short
lines with zeros, so label 0, which is no class, is how it sees an absent guess. A blank line
will not do: a reader that passes over it judges all later lines against the wrong images,
and the kit checks no more than the number of lines.
"""

import io
import re
from typing import Any

import pyarrow as pa
from scipy import io as scipy_io

from cropscore_ray import storage
from cropscore_ray.datasets.manifest import Manifest
from cropscore_ray.errors import ConfigError, DataError
from cropscore_ray.evaluation.formats import guess_lines
from cropscore_ray.evaluation.formats.guess_lines import Guess

NO_GUESS = "0 0 0 0 0"
_ID_FIELD = re.compile(r"ILSVRC\d{4}_(CLSLOC_)?ID")  # its year and infix differ between kits


def write_devkit(uri: str, predictions: pa.Table, ids: dict[str, int]) -> None:
    """Write predictions with their classes in the metadata.

    Args:
        uri: The file to write.
        predictions: A table of schema.PREDICTIONS that holds every image of the set.
        ids: The kit's id of each wnid, from `read_ids`.

    Raises:
        DataError: A class has no id in the kit, or file names repeat.
    """
    classes = guess_lines.require_classes(predictions, "the devkit format")
    absent = [known.id for known in classes if known.id not in ids]
    if absent:
        raise DataError(
            f"{len(absent)} classes are not in the kit's meta file, such as {absent[0]!r}",
            hint="the devkit format is for ImageNet's 1000 classes; else export as coco or csv",
        )
    words = [str(ids[known.id]) for known in classes]
    lines = guess_lines.lines_by_stem(predictions, words).values()
    storage.write_bytes(uri, "".join(f"{line or NO_GUESS}\n" for line in lines).encode())


def read_devkit(uri: str, manifest: Manifest, ids: dict[str, int]) -> pa.Table:
    """Read guesses as a predictions table; images without a guess get no row.

    Lines that are blank or all zeros are images without a guess. An id that is no class
    of the manifest is kept as a guess without class_index: it takes a place and is wrong.

    Args:
        uri: The file to read.
        manifest: The rows of exactly the images that the lines are for.
        ids: The kit's id of each wnid, from `read_ids`.

    Raises:
        DataError: A line is not of this format, or there are not as many as images.
    """
    lines = guess_lines.read_text(uri).splitlines()
    by_stem = guess_lines.ids_by_stem(manifest.table)
    if len(lines) != len(by_stem):
        raise DataError(
            f"{uri}: {len(lines)} lines for {len(by_stem)} images",
            hint="the kit's format has one line per image of the split; choose it with --split",
        )
    index_of_class = {known.id: index for index, known in enumerate(manifest.classes)}
    index_of_id = {float(kit_id): index_of_class.get(wnid) for wnid, kit_id in ids.items()}
    guesses = [_parse(line, f"{uri}:{n}", index_of_id) for n, line in enumerate(lines, start=1)]
    image_ids = [by_stem[stem] for stem in sorted(by_stem)]
    return guess_lines.to_predictions(manifest, zip(image_ids, guesses, strict=True))


def read_ids(meta_uri: str | None) -> dict[str, int]:
    """Read the kit's id of each wnid.

    Args:
        meta_uri: The kit's `meta_clsloc.mat` (or `meta.mat`), or a text file with lines
            of `id wnid`, separated by blanks or a comma; more columns and a header may follow.

    Raises:
        ConfigError: No file was named.
        DataError: The file holds no such table.
    """
    if meta_uri is None:
        raise ConfigError(
            "the devkit format needs the development kit's meta file",
            hint="add --meta .../data/meta_clsloc.mat",
        )
    is_mat = meta_uri.endswith(".mat")
    pairs = _mat_pairs(meta_uri) if is_mat else _text_pairs(guess_lines.read_text(meta_uri))
    ids = {wnid: kit_id for kit_id, wnid in pairs}
    if not ids or len(set(ids.values())) != len(pairs):
        raise DataError(
            f"{meta_uri}: not a table of class ids: {len(pairs)} lines of `id wnid` found,"
            f" {len(ids)} different classes",
            hint="give the development kit's data/meta_clsloc.mat",
        )
    return ids


def _parse(line: str, where: str, index_of_id: dict[float, int | None]) -> list[Guess]:
    groups = guess_lines.parse_groups(line.replace(",", " ").split(), where)
    try:
        kit_ids = [float(word) for word, _ in groups]
    except ValueError as error:
        raise DataError(f"{where}: a class id is no number: {error}") from error
    if not any(kit_ids):
        return []
    return [
        Guess(class_index=index_of_id.get(kit_id), box_inclusive=box)
        for kit_id, (_, box) in zip(kit_ids, groups, strict=True)
    ]


def _mat_pairs(meta_uri: str) -> list[tuple[int, str]]:
    data = io.BytesIO(storage.read_bytes(meta_uri))
    try:
        synsets: Any = scipy_io.loadmat(data, squeeze_me=True).get("synsets")
    except (ValueError, NotImplementedError) as error:
        raise DataError(f"{meta_uri}: not a MATLAB file: {error}") from error
    names = () if synsets is None else synsets.dtype.names or ()
    field = next(filter(_ID_FIELD.fullmatch, names), None)
    if field is None:
        return []
    return [(int(row[field]), str(row["WNID"])) for row in synsets.ravel()]


def _text_pairs(text: str) -> list[tuple[int, str]]:
    rows = [line.replace(",", " ").split() for line in text.splitlines()]
    return [(int(row[0]), row[1].strip('"')) for row in rows if len(row) > 1 and row[0].isdecimal()]
