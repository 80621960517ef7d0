"""From the bytes of images to rows of a table: what an actor does, in a plain process.

`ScoreStage` makes rows of schema.SCORES, `LocalizeStage` rows of schema.PREDICTIONS. Both
are called with manifest rows and their fetched bytes; both turn every failure of an image
into one row with a status, and lose none. They know nothing of Ray, files or parts.
"""
# ruff: noqa: N815 (fields that are arrays carry their shape suffix)

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cropscore_ray import schema
from cropscore_ray.config.bulk import LocalizeConfig
from cropscore_ray.errors import ImageError
from cropscore_ray.images.decode import Pixels
from cropscore_ray.images.decode_ahead import Decoded, decode_ahead
from cropscore_ray.images.fetch import Fetched
from cropscore_ray.models import baselines
from cropscore_ray.models.bundle import LOCALIZER, Bundle, required_parts
from cropscore_ray.models.localizer import Localizer, from_tensors
from cropscore_ray.models.scorer import CropScorer, Look

Row = dict[str, Any]


class ScoreStage:
    """Scores the 140 squares of images for their own class, the predicted ones, or both."""

    command = "score"
    schema = schema.SCORES
    with_maps = False

    def __init__(
        self, bundle: Bundle, config: LocalizeConfig, device: torch.device | None = None
    ) -> None:
        """Load nothing yet; without a device, a GPU if there is one."""
        bundle.require(*required_parts(self.command, config))
        self.scorer = CropScorer(bundle, mode=config.mode, device=device)
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
        before: list[_Seen] = []
        for some, pixels in zip(groups, decoded, strict=True):
            # A GPU has the next group to work on while the rows of this one are made.
            now = self._see(some, pixels)
            yield from map(self._rows, before)
            before = now
        yield from map(self._rows, before)

    def _see(self, rows: list[Row], decoded: list[Decoded]) -> list["_Seen"]:
        """Look at the images of a group that can be looked at, all together."""
        good: list[tuple[Row, Pixels | Tensor]] = []
        seen: list[_Seen] = []
        for row, pixels in zip(rows, decoded, strict=True):
            failure = self._failure(row, pixels)
            if failure is not None or isinstance(pixels, ImageError):
                seen.append(_Seen(row=row, failure=failure))
                continue
            height, width = pixels.shape[:2]
            seen.append(_Seen(row=row, size_px=(width, height), place=len(good)))
            good.append((row, pixels))
        look = self._look(good) if good else None
        return [replace(one, look=look) for one in seen]

    def _failure(self, row: Row, pixels: Decoded) -> ImageError | None:
        if isinstance(pixels, ImageError):
            return pixels
        if self.config.classes == "label" and row["class_index"] is None:
            return ImageError("no_label", "the manifest has no class for this image")
        return None

    def _look(self, good: list[tuple[Row, Pixels | Tensor]]) -> Look:
        # An image without a label takes class 0 along, which gets no row.
        labels = [row["class_index"] or 0 for row, _ in good]
        return self.scorer.look(
            [pixels for _, pixels in good],
            None if self.config.classes == "predicted" else labels,
            top_k=0 if self.config.classes == "label" else self.config.top_k,
            with_maps=self.with_maps,
        )

    def _rows(self, one: "_Seen") -> list[Row]:
        if one.failure is not None:
            return [self._failed(one.row, one.failure)]
        assert one.look is not None
        one.look.wait()
        first = 1 if self.config.classes == "predicted" else 0
        kept = slice(1 if first == 0 and one.row["class_index"] is None else 0, None)
        num_classes = one.look.classes_GK.shape[1]
        chosen = _Chosen(
            ranks=list(range(first, first + num_classes))[kept],
            classes_K=one.look.classes_GK[one.place, kept],
            scores_KS=_of(one.look.scores_GKS, one.place, kept),
            boxes_K4=_of(one.look.boxes_GK4, one.place, kept),
            evidence_KE=_of(one.look.evidence_GKE, one.place, kept),
            probabilities=_of(one.look.probabilities_GK, one.place, kept),
            maps_Khw=_of(one.look.maps_GKhw, one.place, kept),
        )
        return self._scored(one, chosen)

    def _failed(self, row: Row, failure: ImageError) -> Row:
        return {"image_id": row["image_id"], "status": failure.status, "error": str(failure)}

    def _scored(self, one: "_Seen", chosen: "_Chosen") -> list[Row]:
        assert chosen.scores_KS is not None
        columns = zip(
            chosen.ranks, chosen.classes_K.tolist(), chosen.scores_KS.numpy(), strict=True
        )
        return [
            {
                "image_id": one.row["image_id"],
                "class_index": class_index,
                "class_rank": rank,
                "scores": scores_S,
                "status": schema.OK,
            }
            for rank, class_index, scores_S in columns
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """One image on its way from pixels to rows."""

    row: Row
    failure: ImageError | None = None
    size_px: tuple[int, int] = (0, 0)
    look: Look | None = None
    """Of its group."""
    place: int = 0
    """Of the image in the look."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chosen:
    """What the networks say of one image, for the K classes that get a row."""

    ranks: list[int]
    classes_K: Tensor
    scores_KS: Tensor | None
    boxes_K4: Tensor | None
    evidence_KE: Tensor | None
    probabilities: Tensor | None
    maps_Khw: Tensor | None


class LocalizeStage(ScoreStage):
    """Turns images into boxes of their own class, the predicted ones, or both."""

    command = "localize"
    schema = schema.PREDICTIONS

    def __init__(
        self, bundle: Bundle, config: LocalizeConfig, device: torch.device | None = None
    ) -> None:
        super().__init__(bundle, config, device)
        self.localizer: Localizer | None = None
        if bundle.config.mode != "votes":
            normalization = bundle.config.localizer.normalization
            self.localizer = from_tensors(bundle.tensors(LOCALIZER), normalization)
        self.cam_threshold = bundle.baselines.get("cam_threshold")
        self.with_maps = self.cam_threshold is not None

    def _failed(self, row: Row, failure: ImageError) -> Row:
        return {
            **super()._failed(row, failure),
            "image_uri": row["image_uri"],
            "width_px": row["width_px"],
            "height_px": row["height_px"],
        }

    def _scored(self, one: _Seen, chosen: _Chosen) -> list[Row]:
        width, height = one.size_px
        sides = np.array([width, height, width, height], np.float32)
        unit_K4, confidences = self._boxes(chosen)
        boxes = (unit_K4.numpy() * sides).tolist()
        rows = []
        for i, class_index in enumerate(chosen.classes_K.tolist()):
            rows.append(
                {
                    "image_id": one.row["image_id"],
                    "image_uri": one.row["image_uri"],
                    "width_px": width,
                    "height_px": height,
                    "class_rank": chosen.ranks[i],
                    "class_index": class_index,
                    "class_name": self.bundle.classes[class_index].name,
                    "class_score": _number(chosen.probabilities, i),
                    **dict(zip(schema.SIDES, boxes[i], strict=True)),
                    "confidence": confidences[i],
                    "cam_xyxy": self._cam_box(chosen, i, sides),
                    "status": schema.OK,
                }
            )
        return rows

    def _boxes(self, chosen: _Chosen) -> tuple[Tensor, list[float]]:
        """Return unit boxes, (K, 4), and their confidences: from scores, or from votes."""
        if self.localizer is None:
            assert chosen.boxes_K4 is not None
            assert chosen.evidence_KE is not None
            voter = self.scorer.voter
            return chosen.boxes_K4, voter.confidences(chosen.evidence_KE).tolist()
        assert chosen.scores_KS is not None
        unit_K4 = self.localizer.boxes(chosen.scores_KS, chosen.classes_K)
        return unit_K4, self.localizer.confidences(chosen.scores_KS, unit_K4).tolist()

    def _cam_box(self, chosen: _Chosen, i: int, sides: NDArray[np.float32]) -> list[float] | None:
        if self.cam_threshold is None or chosen.maps_Khw is None:
            return None
        unit = baselines.cam_box(chosen.maps_Khw[i], self.cam_threshold)
        return [float(side) for side in unit * sides]


def _of(values: Tensor | None, place: int, kept: slice) -> Tensor | None:
    """Return an image's part of a look, for the classes that get a row."""
    return None if values is None else values[place, kept]


def _number(values_K: Tensor | None, i: int) -> float | None:
    return None if values_K is None else float(values_K[i])


STAGES = {stage.command: stage for stage in (ScoreStage, LocalizeStage)}
