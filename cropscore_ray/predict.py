"""From the bytes of images to rows of a table: what an actor does, in a plain process.

`ScoreStage` makes rows of schema.SCORES, `LocalizeStage` rows of schema.PREDICTIONS. Both
are called with manifest rows and their fetched bytes; both turn every failure of an image
into one row with a status, and lose none. They know nothing of Ray, files or parts.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cropscore_ray import baselines, images, schema
from cropscore_ray.bundle import LOCALIZER, SCORER, Bundle, classifier_part
from cropscore_ray.config import LocalizeConfig
from cropscore_ray.errors import ImageError
from cropscore_ray.localizer import from_tensors
from cropscore_ray.scoring import CropScorer

Row = dict[str, Any]


class ScoreStage:
    """Scores the 140 squares of images for their own class, the predicted ones, or both."""

    schema = schema.SCORES

    def __init__(self, bundle: Bundle, config: LocalizeConfig) -> None:
        bundle.require(*self.required_parts(config))
        self.scorer = CropScorer(bundle)
        self.bundle = bundle
        self.config = config

    @staticmethod
    def required_parts(config: LocalizeConfig) -> list[str]:
        """Return the parts of a bundle without which this cannot work."""
        return [SCORER] if config.classes == "label" else [SCORER, classifier_part(0)]

    def __call__(self, rows: list[Row], fetched: list[bytes | ImageError]) -> list[Row]:
        """Return the table's rows for these images, in their order."""
        return [row for image in self.by_image(rows, fetched) for row in image]

    def by_image(self, rows: list[Row], fetched: list[bytes | ImageError]) -> Iterator[list[Row]]:
        """Yield the table's rows of one image after the other."""
        for row, pixels in zip(rows, self._decode_ahead(fetched), strict=True):
            yield list(self._image_rows(row, pixels))

    def _decode_ahead(
        self, fetched: list[bytes | ImageError]
    ) -> Iterator[NDArray[np.uint8] | ImageError]:
        """Decode the next image while one is scored; no more, since pixels are large."""
        with ThreadPoolExecutor(1) as pool:
            following = [pool.submit(self._decode, one) for one in fetched[:1]]
            for one in fetched[1:]:
                current = following.pop()
                pixels = current.result()
                following.append(pool.submit(self._decode, one))
                yield pixels
            for last in following:
                yield last.result()

    def _decode(self, data: bytes | ImageError) -> NDArray[np.uint8] | ImageError:
        if isinstance(data, ImageError):
            return data
        try:
            return images.decode(data, max_megapixels=self.config.max_megapixels)
        except ImageError as error:
            return error

    def _image_rows(self, row: Row, pixels: NDArray[np.uint8] | ImageError) -> Iterator[Row]:
        if isinstance(pixels, ImageError):
            yield self._failed(row, pixels.status, str(pixels))
            return
        probabilities, ranks, classes = self._choose_classes(row, pixels)
        if not classes:
            yield self._failed(row, "no_label", "the manifest has no class for this image")
            return
        yield from self._scored(row, pixels, probabilities, ranks, classes)

    def _failed(self, row: Row, status: str, error: str) -> Row:
        return {"image_id": row["image_id"], "status": status, "error": error}

    def _choose_classes(
        self, row: Row, pixels: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32] | None, list[int], list[int]]:
        """Return all class probabilities, and the ranks and indices of the classes to score."""
        ranks, classes, probabilities = [], [], None
        if self.config.classes != "predicted" and row["class_index"] is not None:
            ranks, classes = [0], [int(row["class_index"])]
        if self.config.classes != "label":
            probabilities = self.scorer.classify(pixels)
            best = np.argsort(-probabilities, kind="stable")[: self.config.top_k]
            ranks += range(1, len(best) + 1)
            classes += best.tolist()
        return probabilities, ranks, classes

    def _scored(
        self,
        row: Row,
        pixels: NDArray[np.uint8],
        probabilities: NDArray[np.float32] | None,
        ranks: list[int],
        classes: list[int],
    ) -> Iterator[Row]:
        del probabilities  # the scores table has no place for them
        scores_KS = self.scorer.score_grid(pixels, classes)
        for rank, class_index, scores_S in zip(ranks, classes, scores_KS, strict=True):
            yield {
                "image_id": row["image_id"],
                "class_index": class_index,
                "class_rank": rank,
                "scores": scores_S,
                "status": schema.OK,
            }


class LocalizeStage(ScoreStage):
    """Turns images into boxes of their own class, the predicted ones, or both."""

    schema = schema.PREDICTIONS

    def __init__(self, bundle: Bundle, config: LocalizeConfig) -> None:
        super().__init__(bundle, config)
        normalization = bundle.config.localizer.normalization
        self.localizer = from_tensors(bundle.tensors(LOCALIZER), normalization)
        self.cam_threshold = bundle.baselines.get("cam_threshold")

    @staticmethod
    def required_parts(config: LocalizeConfig) -> list[str]:
        """Return all parts: the class activation map, a baseline, is classifier 0's."""
        return [classifier_part(0), SCORER, LOCALIZER]

    def _failed(self, row: Row, status: str, error: str) -> Row:
        return {
            **super()._failed(row, status, error),
            "image_uri": row["image_uri"],
            "width_px": row["width_px"],
            "height_px": row["height_px"],
        }

    def _scored(
        self,
        row: Row,
        pixels: NDArray[np.uint8],
        probabilities: NDArray[np.float32] | None,
        ranks: list[int],
        classes: list[int],
    ) -> Iterator[Row]:
        height, width = pixels.shape[:2]
        sides = np.array([width, height, width, height], np.float32)
        scores_KS = torch.from_numpy(self.scorer.score_grid(pixels, classes))
        unit_K4 = self.localizer.boxes(scores_KS, torch.tensor(classes))
        confidences = self.localizer.confidences(scores_KS, unit_K4).tolist()
        cams = self._cam_boxes(pixels, classes)
        boxes = (unit_K4.numpy() * sides).tolist()
        for i, (rank, class_index) in enumerate(zip(ranks, classes, strict=True)):
            xmin, ymin, xmax, ymax = boxes[i]
            yield {
                "image_id": row["image_id"],
                "image_uri": row["image_uri"],
                "width_px": width,
                "height_px": height,
                "class_rank": rank,
                "class_index": class_index,
                "class_name": self.bundle.classes[class_index].name,
                "class_score": None if probabilities is None else float(probabilities[class_index]),
                "xmin": xmin,
                "ymin": ymin,
                "xmax": xmax,
                "ymax": ymax,
                "confidence": confidences[i],
                "cam_xyxy": None if cams is None else (cams[i] * sides).tolist(),
                "status": schema.OK,
            }

    def _cam_boxes(
        self, pixels: NDArray[np.uint8], classes: list[int]
    ) -> list[NDArray[np.float64]] | None:
        if self.cam_threshold is None:
            return None
        maps = self.scorer.class_maps(pixels, classes)
        return [baselines.cam_box(one, self.cam_threshold) for one in maps]


STAGES = {"score": ScoreStage, "localize": LocalizeStage}
