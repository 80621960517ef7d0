"""The bulk run on Ray against the engine's bare loop, and what it costs beside the networks."""

import io
import mmap
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cropscore_ray import schema, storage
from cropscore_ray.bench.measuring import Measured
from cropscore_ray.bench.scorer import photos
from cropscore_ray.bulk import part_sizes, pipeline, run_folder
from cropscore_ray.bulk.parts import BulkRun
from cropscore_ray.bulk.predict import Row, ScoreStage
from cropscore_ray.bulk.run_folder import RunFolder
from cropscore_ray.bulk.score_actor import Scoring
from cropscore_ray.config.bulk import LocalizeConfig
from cropscore_ray.datasets.drawn import CLASS_NAMES, draw_image
from cropscore_ray.datasets.manifest import Manifest, open_manifest, write_manifest
from cropscore_ray.images import fetch
from cropscore_ray.images.archives import Member
from cropscore_ray.images.fetch import Fetched
from cropscore_ray.models.bundle import Bundle, load_bundle
from cropscore_ray.schema import ImageClass

SHARD_IMAGES = 1000
_SIDE_PX = 64
_SEED = 14
_HEADER = tarfile.BLOCKSIZE
_LOOK_S = 0.2


class Returns(ScoreStage):
    """A stage that reads no image, so that all else of a run is what takes the time."""

    def __init__(
        self, bundle: Bundle, config: LocalizeConfig, device: torch.device | None = None
    ) -> None:
        pass

    def by_image(self, rows: list[Row], fetched: list[Fetched]) -> Iterator[list[Row]]:
        """Yield a row for each image that could be fetched."""
        scores = np.zeros(140, np.float32)
        for row, data in zip(rows, fetched, strict=True):
            assert isinstance(data, bytes), data
            yield [
                {
                    "image_id": row["image_id"],
                    "class_index": 0,
                    "class_rank": 0,
                    "scores": scores,
                    "status": schema.OK,
                }
            ]


def photo_manifest(folder: Path, number: int) -> str:
    """Write images of ImageNet's usual size as files, and their manifest; return its URI."""
    uris = []
    for i, data in enumerate(photos(number)):
        path = folder / f"photo-{i}.jpg"
        path.write_bytes(data)
        uris.append(str(path))
    return _write_manifest(str(folder / "photos"), uris)


def shard_manifest(folder: Path, number: int) -> str:
    """Write images of 64 pixels into archives, and their manifest; return its URI."""
    first, members = _shard()
    uris: list[str] = []
    for shard in range(-(-number // SHARD_IMAGES)):
        path = folder / f"shard-{shard:05d}.tar"
        if not path.exists():
            path.write_bytes(first)
        uris += [Member(str(path), *where).uri for where in members]
    return _write_manifest(str(folder / f"shards-{number}"), uris[:number])


def _shard() -> tuple[bytes, list[tuple[int, int, str]]]:
    """Return an archive, and the offset, size and name of each of its images."""
    archive, members = io.BytesIO(), []
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(SHARD_IMAGES):
            image, _ = draw_image(np.random.default_rng((_SEED, i)), i % len(CLASS_NAMES))
            stream = io.BytesIO()
            image.resize((_SIDE_PX, _SIDE_PX)).save(stream, "JPEG")
            entry = tarfile.TarInfo(f"{i:04d}.jpg")
            entry.size = len(stream.getvalue())
            members.append((tar.offset + _HEADER, entry.size, entry.name))
            tar.addfile(entry, io.BytesIO(stream.getvalue()))
    return archive.getvalue(), members


def _write_manifest(uri: str, image_uris: list[str]) -> str:
    number = len(image_uris)
    columns: dict[str, Any] = {
        "image_id": np.arange(number),
        "image_uri": image_uris,
        "class_index": np.zeros(number, np.int32),
    }
    arrays = [
        pa.array(columns.get(column.name, [None] * number), column.type)
        for column in schema.MANIFEST
    ]
    table = pa.Table.from_arrays(arrays, schema=schema.MANIFEST)
    write_manifest(uri, Manifest(table=table, classes=[ImageClass(id="a", name="a")]))
    return uri


@dataclass(frozen=True, kw_only=True)
class Way:
    """A run of a manifest's images into a folder: on Ray, or in a bare loop."""

    manifest_uri: str
    model_uri: str
    config: LocalizeConfig
    stage: type[ScoreStage] = ScoreStage

    def _folder(self, out: str) -> RunFolder:
        return run_folder.open_run(out, table="scores", identity={}, facts={})

    def on_ray(self, out: str) -> float:
        """Do it, or what is left of it, on Ray; return the seconds that it took."""
        folder = self._folder(out)
        folder.update({"complete": False})
        scoring = Scoring(
            stage=self.stage, model_uri=self.model_uri, config=self.config, class_map=[0]
        )
        began_s = time.perf_counter()
        pipeline.run_parts(
            BulkRun(
                command="bench",
                manifest=open_manifest(self.manifest_uri),
                part_images=self.config.part_images,
                folder=folder,
            ),
            partial(pipeline.scored, scoring),
            pipeline.SCORED,
        )
        return time.perf_counter() - began_s

    def bare(self, out: str) -> None:
        """Do it in this process, a part after the other: fetched, scored, written."""
        folder = self._folder(out)
        stage = self.stage(load_bundle(self.model_uri), self.config)
        parts = open_manifest(self.manifest_uri).batches(part_sizes.sizes(self.config.part_images))
        for number, part in enumerate(parts):
            images = part.to_pylist()
            rows = stage(images, fetch.fetch_images(image["image_uri"] for image in images))
            storage.write_table(folder.part_uri(number), schema.rows_to_table(rows, stage.schema))


def rate(out: str, part_images: int) -> float:
    """Return the images a second of a run, from its first written part to its last.

    So what happens once, before the first part is there, is not in it.
    """
    times = sorted(path.stat().st_mtime_ns for path in Path(out, "scores").iterdir())
    seconds = (times[-1] - times[0]) / 1e9
    return (len(times) - 1) * part_images / seconds


def take_parts_away(out: str, fraction: float) -> None:
    """Delete some of a run's parts, spread over all of them."""
    files = sorted(Path(out, "scores").iterdir())
    for file in files[:: max(1, round(1 / fraction))]:
        file.unlink()


@dataclass
class Memory:
    """The most memory that this process and the largest actor had, in bytes."""

    driver: int = 0
    actor: int = 0


@contextmanager
def watched() -> Iterator[Memory]:
    """Look at the memory of this process and of the actors while the block runs."""
    memory, ended = Memory(), threading.Event()

    def watch() -> None:
        while not ended.wait(_LOOK_S):
            memory.driver = max(memory.driver, _resident(Path("/proc/self")))
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):  # it has just ended
                    if b"StageActor" in (process / "cmdline").read_bytes():
                        memory.actor = max(memory.actor, _resident(process))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield memory
    finally:
        ended.set()
        watcher.join()


def _resident(process: Path) -> int:
    return int((process / "statm").read_text().split()[1]) * mmap.PAGESIZE


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much work is measured."""

    photos: dict[str, tuple[int, int]] = field(
        default_factory=lambda: {"exact": (24, 4), "pyramid": (96, 16)}
    )
    """By mode: images, and images a part."""
    shards: tuple[int, ...] = (1_000, 10_000, 100_000)
    """Images of the runs without networks; the largest of them is also resumed."""

    @property
    def num_steps(self) -> int:
        """Runs a round."""
        return 2 * len(self.photos) + len(self.shards) + 1


SIZE = Size()


def run_round(
    folder: Path, model_uri: str, size: Size, step: Callable[[], None]
) -> dict[str, float]:
    """Measure everything once; return values by name. `step` is called `size.num_steps` times."""
    values: dict[str, float] = {}
    for mode, (number, part_images) in size.photos.items():
        config = LocalizeConfig(mode=mode, classes="label", part_images=part_images)
        way = Way(manifest_uri=photo_manifest(folder, number), model_uri=model_uri, config=config)
        on_ray, bare = str(folder / "on-ray"), str(folder / "bare")
        seconds = way.on_ray(on_ray)
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:
            step()
            alone.submit(way.bare, bare).result()
            step()
        values[f"pipeline, {mode}"] = rate(on_ray, part_images)
        values[f"bare, {mode}"] = rate(bare, part_images)
        values[f"start, {mode}"] = seconds - number / values[f"pipeline, {mode}"]
        _forget(on_ray, bare)
    for number in size.shards:
        config = LocalizeConfig(classes="label")
        manifest_uri, out = shard_manifest(folder, number), str(folder / "returns")
        way = Way(manifest_uri=manifest_uri, model_uri=model_uri, config=config, stage=Returns)
        with watched() as memory:
            seconds = way.on_ray(out)
        step()
        values[f"whole run, {number:,} images"] = seconds
        values[f"average, {number:,} images"] = 1e6 * seconds / number
        values[f"memory of the driver, {number:,} images"] = memory.driver / 2**20
        values[f"memory of an actor, {number:,} images"] = memory.actor / 2**20
        if number == size.shards[-1]:
            take_parts_away(out, 0.01)
            values["resume, 99 % done"] = way.on_ray(out)
            step()
        _forget(out)
    for fewer, more in pairwise(size.shards):
        # What an image more costs: the start is in both runs, and drops out.
        seconds = values[f"whole run, {more:,} images"] - values[f"whole run, {fewer:,} images"]
        values[f"marginal, {fewer:,} to {more:,} images"] = 1e6 * seconds / (more - fewer)
    return values


def _forget(*folders: str) -> None:
    for folder in folders:
        shutil.rmtree(folder)


def unit(name: str) -> str:
    """Return the unit of a row by its name."""
    units = {"pipeline": "images/s", "bare": "images/s"}
    units |= {"average": "us an image", "marginal": "us an image"}
    return units.get(name.split(",")[0], "MiB" if name.startswith("memory") else "s")


def measured(rounds: list[dict[str, float]]) -> list[Measured]:
    """Return the rows of a table of rounds."""
    return [
        Measured(name=name, unit=unit(name), values=[values[name] for values in rounds])
        for name in rounds[0]
    ]
