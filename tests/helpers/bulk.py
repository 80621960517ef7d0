"""A bulk run that lasts long enough to be watched: few drawn images, which come again and again."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from heads import WAIT_S
from models import random_model

from cropscore_ray import storage
from cropscore_ray.datasets.drawn import draw_image_set
from cropscore_ray.datasets.uri_list import write_list

NUM_IMAGES = 160
PART_IMAGES = 4
NUM_PARTS = NUM_IMAGES // PART_IMAGES


def make_images_and_model(folder: Path) -> None:
    draw_image_set(str(folder / "drawn"), num_train=30, num_val=0, seed=1)
    random_model(str(folder / "model"))
    uris = [uri for uri in storage.list_files(str(folder / "drawn")) if uri.endswith(".jpg")]
    lines = [uris[i % len(uris)].encode() for i in range(NUM_IMAGES)]
    write_list(lines, str(folder / "manifest"), begun=False)


@dataclass(frozen=True)
class Bulk:
    """A run, by its folder of images and model and the name of what it writes there."""

    folder: Path
    out: str

    def command(self, *options: str) -> list[str]:
        """Return the arguments of `cropscore`, from within the folder."""
        command = ["localize", "manifest", "--model", "model", "--out", self.out, *options]
        command += ["--classes", "predicted", "--top", "1"]
        return [*command, "--part-images", str(PART_IMAGES)]

    @property
    def table_uri(self) -> str:
        return str(self.folder / self.out / "predictions")

    def num_parts(self) -> int:
        return len(storage.list_files(self.table_uri))

    def rows(self) -> pa.Table:
        return storage.read_table(self.table_uri)

    def is_complete(self) -> bool:
        record: Any = storage.read_json(str(self.folder / self.out / "run.json"))
        return record["complete"] and record["counts"]["by_status"] == {"ok": NUM_IMAGES}


def wait_for(is_so: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
