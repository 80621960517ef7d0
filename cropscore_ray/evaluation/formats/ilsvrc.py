"""Kaggle's CSV of the ILSVRC localization challenge.

    ImageId,PredictionString
    ILSVRC2012_val_00000001,n01440764 6 0 225 183 n01443537 0 0 99 120

ImageId is the image's file name without extension; then come up to five groups of
class id (wnid), xmin, ymin, xmax, ymax in inclusive pixels, best first.
"""

import csv
import io

import pyarrow as pa

from cropscore_ray import storage
from cropscore_ray.datasets.manifest import Manifest
from cropscore_ray.errors import DataError
from cropscore_ray.evaluation.formats import guess_lines
from cropscore_ray.evaluation.formats.guess_lines import Guess

HEADER = ["ImageId", "PredictionString"]


def write_ilsvrc(uri: str, predictions: pa.Table) -> None:
    """Write predictions with their classes in the metadata; a failed image has no guesses.

    Raises:
        DataError: There are no classes, an id has a blank in it, or file names repeat.
    """
    words = [known.id for known in guess_lines.require_classes(predictions, "the ilsvrc format")]
    spaced = [word for word in words if len(word.split()) != 1]
    if spaced:
        raise DataError(
            f"class id {spaced[0]!r} is not one word, which the ilsvrc format cannot hold",
            hint="export as coco or csv",
        )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(guess_lines.lines_by_stem(predictions, words).items())
    storage.write_bytes(uri, text.getvalue().encode())


def read_ilsvrc(uri: str, manifest: Manifest) -> pa.Table:
    """Read guesses as a predictions table; images without a guess get no row.

    A class that the manifest does not have is kept as a guess without class_index: it
    takes one of the five places and is wrong.

    Raises:
        DataError: The file is not of this format, or names an image twice, or an image that
            the manifest does not have.
    """
    ids = guess_lines.ids_by_stem(manifest.table)
    classes = {known.id: index for index, known in enumerate(manifest.classes)}
    lines: dict[int, list[Guess]] = {}
    for where, stem, words in _records(uri):
        if stem not in ids:
            raise DataError(
                f"{where}: the manifest has no image {stem!r}",
                hint="evaluate with the manifest that the predictions are for",
            )
        if ids[stem] in lines:
            raise DataError(f"{where}: image {stem!r} has a line already")
        groups = guess_lines.parse_groups(words, where)
        lines[ids[stem]] = [
            Guess(class_index=classes.get(wnid), box_inclusive=box) for wnid, box in groups
        ]
    return guess_lines.to_predictions(manifest, lines.items())


def _records(uri: str) -> list[tuple[str, str, list[str]]]:
    """Return where each line is, its ImageId, and the words of its PredictionString."""
    reader = csv.reader(io.StringIO(guess_lines.read_text(uri)))
    if [word.strip() for word in next(reader, [])] != HEADER:
        raise DataError(f"{uri}: the first line is not {','.join(HEADER)}")
    records = []
    for fields in filter(None, reader):
        where = f"{uri}:{reader.line_num}"
        if len(fields) != len(HEADER):
            raise DataError(f"{where}: {len(fields)} fields, not {len(HEADER)}")
        records.append((where, fields[0].strip(), fields[1].split()))
    return records
