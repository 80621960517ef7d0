"""A CSV file of images, with a header row; see `tables` for the columns."""

import csv
import io
import posixpath
from collections.abc import Iterator

from cropscore_ray import storage
from cropscore_ray.datasets.files import ReadProgress
from cropscore_ray.datasets.problems import ProblemLog
from cropscore_ray.datasets.records import Scan
from cropscore_ray.datasets.tables import Cells, scan_table
from cropscore_ray.errors import DataError


def scan(csv_uri: str, log: ProblemLog, progress: ReadProgress | None = None) -> Scan:
    """Read a CSV file; DataError if it is none, or if its columns are not those of images.

    All cells stay text, so that a label such as 0012 remains what it is.
    """
    try:
        # utf-8-sig: spreadsheets begin their files with a byte order mark.
        text = storage.read_bytes(csv_uri).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        columns = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = columns
        rows = _whole_rows(reader, csv_uri, log)
        scan = scan_table(
            columns, rows, table_uri=csv_uri, folder_uri=posixpath.dirname(csv_uri), log=log
        )
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{csv_uri}: not a CSV file: {error}",
            hint="UTF-8, commas, and a first row with the names of the columns",
        ) from error
    if progress:
        progress(len(scan.records), len(scan.records))
    return scan


def _whole_rows(reader: "csv.DictReader[str]", csv_uri: str, log: ProblemLog) -> Iterator[Cells]:
    """Yield the rows that have as many cells as the header."""
    for row in reader:
        # DictReader files surplus cells under None and fills absent ones with None.
        if None in row or None in row.values():
            log.add("unreadable_annotation", csv_uri, f"line {reader.line_num}: number of cells")
        else:
            yield dict(row)
