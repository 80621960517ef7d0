"""The process that holds a model: a part's images in, a file of the run's table out."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import pyarrow as pa

from cropscore_ray import schema, storage
from cropscore_ray.bulk.crashes import Attempt
from cropscore_ray.bulk.parts import Group, Row, from_row, images_by_status, summary, with_images
from cropscore_ray.bulk.run_folder import RunFolder
from cropscore_ray.bulk.telemetry import WorkerTelemetry
from cropscore_ray.bulk.workers import Pool
from cropscore_ray.clusters import events
from cropscore_ray.clusters.events import Handle
from cropscore_ray.config.bulk import LocalizeConfig
from cropscore_ray.errors import ImageError
from cropscore_ray.models.bundle import Bundle, load_bundle

# A run's command names the actor, and does without PyTorch.
if TYPE_CHECKING:
    import torch

    from cropscore_ray.bulk.predict import ScoreStage

logger = logging.getLogger(__name__)

CALLS_AT_ONCE = 2
"""One part is scored while that before it is written."""
_PROGRESS_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """What an actor does with a part's images."""

    stage: "Callable[[Bundle, LocalizeConfig, torch.device], ScoreStage]"
    model_uri: str
    config: LocalizeConfig
    class_map: list[int | None]
    """The model's index of each of the manifest's classes, None where it has none."""


def make_stage(
    command: str, bundle: Bundle, config: LocalizeConfig, device: "torch.device"
) -> "ScoreStage":
    """Return what makes the rows of a command's table."""
    from cropscore_ray.bulk.predict import STAGES

    return STAGES[command](bundle, config, device)


class StageActor:
    """One model on one GPU (or on one node's cores)."""

    def __init__(
        self, scoring: Scoring, folder: RunFolder, pool: Pool, queue: Handle, crashes: Handle
    ) -> None:
        import torch

        self.folder = folder
        self.crashes = crashes
        device, gpu_uuid = torch.device("cpu"), None
        # Ray hides no GPU from an actor that wants none.
        if pool.num_gpus and torch.cuda.is_available():
            device = torch.device("cuda")
            gpu_uuid = str(torch.cuda.get_device_properties(device).uuid)
        else:
            # Ray sets one thread a CPU asked for.
            cores = os.cpu_count() or 1
            torch.set_num_threads(min(cores, pool.num_threads or cores))
        self.telemetry = WorkerTelemetry(queue, folder.uri, gpu_uuid)
        bundle = storage.persistently(scoring.model_uri, lambda: load_bundle(scoring.model_uri))
        self.stage = scoring.stage(bundle, scoring.config, device)
        self.class_map = scoring.class_map
        self.scoring = threading.Lock()
        self.reported_s = time.monotonic()
        self.waited_s = 0.0  # for images, since the last report

    def __call__(self, block: pa.Table) -> pa.Table:
        """Score a fetched part and write its file; return its summary."""
        number, table = from_row(block)
        with self.scoring:
            rows = self._score(number, table.to_pylist())
        by_status = images_by_status(rows)
        reached = not schema.UNREACHED & by_status.keys()
        self.folder.write_part(number, rows, reached=reached)
        self.telemetry.did(by_status)
        return summary(rows, by_status)

    def _score(self, number: int, rows: list[Row]) -> pa.Table:
        """Return the part's rows of the run's table."""
        self._report(0, busy=False)
        for row in rows:
            index = row["class_index"]
            row["class_index"] = None if index is None else self.class_map[index]
        attempt: Attempt = events.ask(self.crashes.begin, number)
        made = None if attempt.one_by_one else self._together(rows, attempt)
        if made is None:
            made = list(self._counted(self._one_by_one(number, rows, attempt), len(rows)))
        events.ask(self.crashes.end, number)
        table = schema.rows_to_table(made, self.stage.schema)
        self._report(0, busy=True)
        return table

    def _together(self, rows: list[Row], attempt: Attempt) -> list[Row] | None:
        """Return the rows of all images, or None if they do not fit into memory together."""
        from cropscore_ray.models.inference import is_out_of_memory

        try:
            groups = (self.stage.by_image(*group) for group in self._groups(rows, attempt))
            return list(self._counted(chain.from_iterable(groups), len(rows)))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("out of memory, so image by image: %s", error)
            return None

    def _one_by_one(self, number: int, rows: list[Row], attempt: Attempt) -> Iterator[list[Row]]:
        """Yield each image's rows; note each before it is looked at: the process may die at it."""
        for group, fetched in self._groups(rows, attempt):
            for row, image in zip(group, fetched, strict=True):
                events.ask(self.crashes.at, number, row["image_id"])
                yield from self.stage.by_image([row], [image])
            events.ask(self.crashes.at, number, None)  # while the next group is waited for

    def _groups(self, rows: list[Row], attempt: Attempt) -> Iterator[Group]:
        """Yield rows and their images, but for images at which processes died."""
        since_s = time.monotonic()
        for group, fetched in with_images(rows):
            self.waited_s += time.monotonic() - since_s
            for i, row in enumerate(group):
                if row["image_id"] in attempt.crashed:
                    reason = f"{row['image_uri']}: its process died at it, twice"
                    fetched[i] = ImageError("crashed", reason)
            yield group, fetched
            since_s = time.monotonic()
        self.waited_s += time.monotonic() - since_s

    def _counted(self, images: Iterator[list[Row]], num_images: int) -> Iterator[Row]:
        """Yield the rows of the images, and report now and then how many images they are."""
        reported = 0
        for number, rows in enumerate(images, 1):
            yield from rows
            if number == num_images or time.monotonic() - self.reported_s > _PROGRESS_S:
                self._report(number - reported, busy=True)
                reported = number

    def _report(self, num_images: int, *, busy: bool) -> None:
        """Report images, and the time since the last report."""
        since_s, self.reported_s = time.monotonic() - self.reported_s, time.monotonic()
        idle_s, self.waited_s = self.waited_s if busy else since_s, 0.0
        self.telemetry.worked(num_images, busy_s=since_s - idle_s, idle_s=idle_s)
