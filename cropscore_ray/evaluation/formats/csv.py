"""The whole predictions table as CSV, for spreadsheets and data frames."""

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from cropscore_ray import storage
from cropscore_ray.schema import SIDES


def write_csv(uri: str, predictions: pa.Table) -> None:
    """Write every row and column, failed images included, by image_id and class_rank.

    The box in cam_xyxy becomes four columns, cam_xmin to cam_ymax; a null is an empty field.
    """
    table = predictions.sort_by([("image_id", "ascending"), ("class_rank", "ascending")])
    at = table.schema.get_field_index("cam_xyxy")
    cam, table = table["cam_xyxy"], table.remove_column(at)
    for i, side in enumerate(SIDES):
        table = table.add_column(at + i, f"cam_{side}", pc.list_element(cam, i))
    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())
