"""cropscore in a Python program: a model, a run, errors and pictures, in a plain process.

    import cropscore_ray as cropscore

    model = cropscore.load("bundle")
    predictions = model.localize(["cat.jpg", "dog.jpg"])
    cropscore.draw("cat.jpg", predictions.slice(0, 1)).show()

What computes here is what the commands run on a cluster's workers. Nothing here starts Ray.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cropscore_ray import schema, storage
from cropscore_ray.bulk.run_folder import read_record
from cropscore_ray.config.bulk import LocalizeConfig
from cropscore_ray.datasets.manifest import read_manifest
from cropscore_ray.errors import ConfigError, DataError
from cropscore_ray.evaluation import metrics
from cropscore_ray.evaluation.metrics import Evaluation
from cropscore_ray.images.decode import decode
from cropscore_ray.images.fetch import Fetched, fetch_images
from cropscore_ray.jobs import evaluate as evaluate_job
from cropscore_ray.models.bundle import Bundle, load_bundle

if TYPE_CHECKING:
    from cropscore_ray.bulk.predict import ScoreStage

ImageSource: TypeAlias = str | Path | bytes | NDArray[np.uint8]
"""A path or URI, the bytes of an image file, or pixels: uint8, (H, W, 3) RGB or (H, W) grey."""

_GROUP = 64
"""Images whose bytes are in memory together."""
_COLOUR = (255, 59, 48)


def load(uri: str, *, device: str | None = None) -> "Model":
    """Load a model bundle.

    Args:
        uri: the bundle's folder, on a disk or in an object store.
        device: cpu, cuda, cuda:1, …; None takes a GPU if there is one.

    Raises:
        ModelError: there is no bundle, or it is damaged, or a part of it is not trained yet.
    """
    return Model(load_bundle(uri), device)


class Model:
    """A trained model; networks are loaded when they are first needed."""

    def __init__(self, bundle: Bundle, device: str | None = None) -> None:
        """Take a bundle and where it computes; `load` reads both."""
        self.bundle = bundle
        self._device = device
        self._stage = cache(self._make_stage)

    @property
    def classes(self) -> list[schema.ImageClass]:
        """The classes that the model knows; a prediction's class_index is a place in it."""
        return self.bundle.classes

    def localize(
        self,
        images: Sequence[ImageSource],
        *,
        labels: Sequence[str | None] | None = None,
        classes: str | None = None,
        top_k: int = 5,
        progress: Callable[[int, int], None] | None = None,
    ) -> pa.Table:
        """Return a box for every image and class: a table of schema.PREDICTIONS.

        An image that cannot be read has one row, whose status and error say why. image_id is
        the place among `images`.

        Args:
            images: paths, URIs, the bytes of image files, or arrays of pixels.
            labels: of each image the id of its class, or None.
            classes: predicted, label or both, as the option of `cropscore localize`; None: both
                if there are labels, else predicted.
            top_k: predicted classes an image.
            progress: told how many images are done, and how many there are.

        Raises:
            ConfigError: a label is no class of the model, or there are not as many as images.
        """
        config = LocalizeConfig(classes=classes or ("both" if labels else "predicted"), top_k=top_k)
        return self._table("localize", config, images, labels, progress)

    def score(
        self,
        images: Sequence[ImageSource],
        *,
        labels: Sequence[str | None] | None = None,
        classes: str | None = None,
        top_k: int = 5,
        progress: Callable[[int, int], None] | None = None,
    ) -> pa.Table:
        """Return the 140 scores of every image and class, a table of schema.SCORES.

        Arguments and errors are those of `localize`.
        """
        config = LocalizeConfig(classes=classes or ("both" if labels else "predicted"), top_k=top_k)
        return self._table("score", config, images, labels, progress)

    def _make_stage(self, command: str, config: LocalizeConfig) -> "ScoreStage":
        import torch

        from cropscore_ray.bulk.predict import STAGES

        device = None if self._device is None else torch.device(self._device)
        return STAGES[command](self.bundle, config, device)

    def _table(
        self,
        command: str,
        config: LocalizeConfig,
        images: Sequence[ImageSource],
        labels: Sequence[str | None] | None,
        progress: Callable[[int, int], None] | None,
    ) -> pa.Table:
        if isinstance(images, str | bytes | Path | np.ndarray):
            raise ConfigError("images is a single image", hint="give a list: [image]")
        stage, rows = self._stage(command, config), list[dict[str, Any]]()
        class_indexes = self._class_indexes(labels, len(images))
        for start in range(0, len(images), _GROUP):
            group = images[start : start + _GROUP]
            asked = [
                {
                    "image_id": start + i,
                    "image_uri": _name(image, start + i),
                    "width_px": None,
                    "height_px": None,
                    "class_index": class_indexes[start + i],
                }
                for i, image in enumerate(group)
            ]
            rows += stage(asked, _encoded(group))
            if progress:
                progress(start + len(group), len(images))
        return schema.rows_to_table(rows, schema.with_classes(stage.schema, self.classes))

    def _class_indexes(
        self, labels: Sequence[str | None] | None, num_images: int
    ) -> list[int | None]:
        if labels is None:
            return [None] * num_images
        if len(labels) != num_images:
            raise ConfigError(f"there are {len(labels)} labels for {num_images} images")
        known = {image_class.id: index for index, image_class in enumerate(self.classes)}
        for label in labels:
            if label is not None and label not in known:
                raise ConfigError(
                    f"{label!r} is no class of the model {self.bundle.uri}",
                    hint="labels are ids of classes: see Model.classes",
                )
        return [None if label is None else known[label] for label in labels]


def _name(image: ImageSource, place: int) -> str:
    return str(image) if isinstance(image, str | Path) else f"images[{place}]"


def _encoded(images: Sequence[ImageSource]) -> list[Fetched]:
    """Return images as the bytes of files, which are read side by side."""
    read = iter(fetch_images(str(image) for image in images if isinstance(image, str | Path)))
    files: list[Fetched] = []
    for image in images:
        if isinstance(image, str | Path):
            files.append(next(read))
        else:
            files.append(image if isinstance(image, bytes) else _as_file(image))
    return files


def _as_file(pixels: NDArray[np.uint8]) -> bytes:
    """Return pixels as a file without loss, so that they go the way of every image."""
    array = np.asarray(pixels)
    if array.dtype != np.uint8 or not (
        array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    ):
        raise ConfigError(
            f"an image is an array of {array.dtype}, {array.shape}",
            hint="pixels are uint8, (height, width, 3) in RGB or (height, width) in grey",
        )
    file = io.BytesIO()
    Image.fromarray(array).save(file, "BMP")
    return file.getvalue()


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run folder to read: what `cropscore localize` or `cropscore score` wrote."""

    uri: str
    record: dict[str, Any]
    """run.json: what was computed, with which model, from which images, and the counts."""

    @property
    def complete(self) -> bool:
        """Whether every image has its rows."""
        return bool(self.record["complete"])

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """Return the rows that are written, all columns or some; StorageError if none are."""
        name = "scores" if self.record["command"] == "score" else "predictions"
        return storage.read_table(storage.join(self.uri, name), columns)

    def evaluate(self, data: str | None = None, *, split: str | None = None) -> Evaluation:
        """Return the errors of the run's boxes; without `data`, against its own manifest."""
        return evaluate(self.uri, data or str(self.record["manifest_uri"]), split=split)


def read_run(uri: str) -> Run:
    """Return the run in a folder, finished or not; DataError if there is none."""
    uri = storage.absolute_uri(uri)
    record = read_record(uri)
    if record is None:
        raise DataError(f"{uri} has no run.json", hint="a run is what `cropscore localize` writes")
    return Run(uri=uri, record=record)


def evaluate(predictions: str | pa.Table, data: str, *, split: str | None = None) -> Evaluation:
    """Return the errors of predictions, as `cropscore evaluate` prints them.

    Args:
        predictions: a run folder, a table of predictions on a disk or in a store, or one in memory.
        data: the manifest.
        split: of the manifest; None: the one that the predictions are for.

    Raises:
        DataError: one of them is not what it should be.
    """
    if isinstance(predictions, str):
        return evaluate_job.run(predictions, data, split=split)
    return metrics.evaluate(predictions, read_manifest(data), split=split)


def draw(image: ImageSource, predictions: pa.Table) -> Image.Image:
    """Return an image with boxes on it, the surest one strongest.

    Args:
        image: a path or URI, the bytes of an image file, or an array of pixels.
        predictions: the image's rows of a predictions table; those without a box are passed over.

    Raises:
        ImageError: the image cannot be read.
    """
    [data] = _encoded([image])
    if not isinstance(data, bytes):
        raise data
    canvas = Image.fromarray(decode(data)).convert("RGBA")
    boxed = [row for row in predictions.to_pylist() if row["xmin"] is not None]
    boxed.sort(key=lambda row: row["confidence"])
    for place, row in enumerate(boxed, 1):
        layer = Image.new("RGBA", canvas.size)
        _draw_box(layer, row, is_surest=place == len(boxed))
        canvas = Image.alpha_composite(canvas, layer)
    return canvas.convert("RGB")


def _draw_box(layer: Image.Image, row: dict[str, Any], *, is_surest: bool) -> None:
    """Draw one row's box and its words: the class and how sure the box is."""
    pen, scale = ImageDraw.Draw(layer), max(1, round(max(layer.size) / 300))
    colour = (*_COLOUR, 255 if is_surest else 150)
    box = [row["xmin"], row["ymin"], row["xmax"] - 1, row["ymax"] - 1]
    pen.rectangle(box, outline=colour, width=2 * scale if is_surest else scale)
    text, font = f"{row['class_name']} {row['confidence']:.0%}", ImageFont.load_default(11 * scale)
    at = (row["xmin"] + 3 * scale, row["ymin"] + 3 * scale)
    pen.rectangle(pen.textbbox(at, text, font=font), fill=(0, 0, 0, 150))
    pen.text(at, text, font=font, fill=(255, 255, 255, 255))
