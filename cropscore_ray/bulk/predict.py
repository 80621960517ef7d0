"""From the bytes of images to rows of a table: what a worker does, in a plain process.

`ScoreStage` makes rows of schema.SCORES, `LocalizeStage` rows of schema.PREDICTIONS. Both
are called with manifest rows and their fetched bytes; both turn every failure of an image
into one row with a status, and lose none. They know nothing of Ray, files or parts.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import starmap
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cropscore_ray import schema
from cropscore_ray.config.bulk import LocalizeConfig
from cropscore_ray.errors import ImageError
from cropscore_ray.images.decode_ahead import Decoded, decode_ahead
from cropscore_ray.images.fetch import Fetched
from cropscore_ray.models import baselines
from cropscore_ray.models.bundle import Bundle, required_parts
from cropscore_ray.models.localizer import load_localizer
from cropscore_ray.models.scorer import CropScorer, Image, Look, View

Row = dict[str, Any]


class ScoreStage:
    """Scores the 140 squares of images for their own class, the predicted ones, or both."""

    command = "score"
    schema = schema.SCORES

    def __init__(
        self, bundle: Bundle, config: LocalizeConfig, device: torch.device | None = None
    ) -> None:
        """Load nothing yet; without a device, a GPU if there is one."""
        bundle.require(*required_parts(self.command, config))
        self.scorer = CropScorer(bundle, mode=config.mode, device=device)
        self.views: list[View] = [self.scorer.square_scores]
        self.bundle = bundle
        self.config = config

    def __call__(self, rows: list[Row], fetched: list[Fetched]) -> list[Row]:
        """Return the table's rows for these images, in their order."""
        return [row for image in self.by_image(rows, fetched) for row in image]

    def by_image(self, rows: list[Row], fetched: list[Fetched]) -> Iterator[list[Row]]:
        """Yield the table's rows of one image after the other."""
        size = self.scorer.group_images
        decoded = decode_ahead(
            fetched,
            group=size,
            max_megapixels=self.config.max_megapixels,
            device=self.scorer.device,
        )
        groups = (rows[i : i + size] for i in range(0, len(rows), size))
        before: list[tuple[Row, _Seen | ImageError]] = []
        for group, images in zip(groups, decoded, strict=True):
            # A GPU has the next group to work on while the rows of this one are made.
            now = self._see(group, images)
            yield from starmap(self._rows, before)
            before = now
        yield from starmap(self._rows, before)

    def _see(
        self, rows: list[Row], decoded: list[Decoded]
    ) -> list[tuple[Row, "_Seen | ImageError"]]:
        """Look at the images of a group that can be looked at, all together."""
        checked = list(map(self._checked, rows, decoded))
        good = [
            (row, image)
            for row, image in zip(rows, checked, strict=True)
            if not isinstance(image, ImageError)
        ]
        seen = iter(self._look(good) if good else [])
        return [
            (row, image if isinstance(image, ImageError) else next(seen))
            for row, image in zip(rows, checked, strict=True)
        ]

    def _checked(self, row: Row, image: Decoded) -> Decoded:
        """Return the image, or why it gets no boxes."""
        is_in_vain = self.config.classes == "label" and row["class_index"] is None
        if is_in_vain and not isinstance(image, ImageError):
            return ImageError("no_label", "the manifest has no class for this image")
        return image

    def _look(self, good: list[tuple[Row, Image]]) -> list["_Seen"]:
        # An image without a label takes class 0 along, which gets no row.
        labels = [row["class_index"] or 0 for row, _ in good]
        look = self.scorer.look(
            [image for _, image in good],
            None if self.config.classes == "predicted" else labels,
            top_k=0 if self.config.classes == "label" else self.config.top_k,
            views=self.views,
        )
        first, seen = 1 if self.config.classes == "predicted" else 0, []
        for place, (row, image) in enumerate(good):
            left_out = 1 if first == 0 and row["class_index"] is None else 0
            seen.append(
                _Seen(
                    row=row,
                    size_px=(image.shape[1], image.shape[0]),
                    look=look,
                    mine=(place, slice(left_out, None)),
                    first_rank=first + left_out,
                )
            )
        return seen

    def _rows(self, row: Row, image: "_Seen | ImageError") -> list[Row]:
        if isinstance(image, ImageError):
            return [self._failed(row, image)]
        image.look.wait()
        return self._looked_at(image)

    def _failed(self, row: Row, error: ImageError) -> Row:
        return {"image_id": row["image_id"], "status": error.status, "error": str(error)}

    def _looked_at(self, image: "_Seen") -> list[Row]:
        [scores_KS] = image.views
        pairs = zip(image.classes_K.tolist(), scores_KS.numpy(), strict=True)
        return [
            {
                "image_id": image.row["image_id"],
                "class_index": class_index,
                "class_rank": rank,
                "scores": scores_S,
                "status": schema.OK,
            }
            for rank, (class_index, scores_S) in enumerate(pairs, image.first_rank)
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """An image that is being looked at, with the others of its group."""

    row: Row
    size_px: tuple[int, int]
    look: Look
    mine: tuple[int, slice]
    """Its place in the look, and those of the K classes that get a row."""
    first_rank: int
    """The rank of the first of these classes."""

    @property
    def classes_K(self) -> Tensor:  # noqa: N802
        """The classes that get a row."""
        return self.look.classes_GK[self.mine]

    @property
    def views(self) -> list[Tensor]:
        """What was asked for of these classes."""
        return [view[self.mine] for view in self.look.views]


class LocalizeStage(ScoreStage):
    """Turns images into boxes of their own class, the predicted ones, or both."""

    command = "localize"
    schema = schema.PREDICTIONS

    def __init__(
        self, bundle: Bundle, config: LocalizeConfig, device: torch.device | None = None
    ) -> None:
        super().__init__(bundle, config, device)
        self.localizer = load_localizer(bundle, self.scorer)
        self.views = [self.localizer.look]
        if "cam_threshold" in bundle.baselines:
            self.views.append(self.scorer.class_maps)

    def _failed(self, row: Row, error: ImageError) -> Row:
        return {
            **super()._failed(row, error),
            "image_uri": row["image_uri"],
            "width_px": row["width_px"],
            "height_px": row["height_px"],
        }

    def _looked_at(self, image: _Seen) -> list[Row]:
        width, height = image.size_px
        sides = np.array([width, height, width, height], np.float32)
        figures_KF, *maps = image.views
        unit_K4, confidence_K = self.localizer.boxes(figures_KF, image.classes_K)
        probabilities = image.look.probabilities_GK[image.mine].tolist()
        confidences, boxes = confidence_K.tolist(), (unit_K4.numpy() * sides).tolist()
        return [
            {
                "image_id": image.row["image_id"],
                "image_uri": image.row["image_uri"],
                "width_px": width,
                "height_px": height,
                "class_rank": image.first_rank + i,
                "class_index": class_index,
                "class_name": self.bundle.classes[class_index].name,
                "class_score": None if math.isnan(probabilities[i]) else probabilities[i],
                **dict(zip(schema.SIDES, boxes[i], strict=True)),
                "confidence": confidences[i],
                "cam_xyxy": self._cam_box(maps[0][i], sides) if maps else None,
                "status": schema.OK,
            }
            for i, class_index in enumerate(image.classes_K.tolist())
        ]

    def _cam_box(self, map_hw: Tensor, sides: NDArray[np.float32]) -> list[float]:
        unit = baselines.cam_box(map_hw, self.bundle.baselines["cam_threshold"])
        return [float(side) for side in unit * sides]


STAGES = {stage.command: stage for stage in (ScoreStage, LocalizeStage)}
