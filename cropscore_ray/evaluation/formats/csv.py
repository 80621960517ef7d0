"""The whole predictions table as CSV, for spreadsheets and data frames."""

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from cropscore_ray import storage

_CAM_SIDES = ["cam_xmin", "cam_ymin", "cam_xmax", "cam_ymax"]


def write_csv(uri: str, predictions: pa.Table) -> None:
    """Write every row and column, failed images included, by image_id and class_rank.

    The box in cam_xyxy becomes four columns, cam_xmin to cam_ymax; a null is an empty field.
    """
    table = predictions.sort_by([("image_id", "ascending"), ("class_rank", "ascending")])
    at = table.schema.get_field_index("cam_xyxy")
    sides = [pc.list_element(table["cam_xyxy"], i) for i in range(len(_CAM_SIDES))]
    table = table.remove_column(at)
    for offset, (name, side) in enumerate(zip(_CAM_SIDES, sides, strict=True)):
        table = table.add_column(at + offset, name, side)
    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())
