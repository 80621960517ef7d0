"""What is measured with trained networks, in a worker: a voter's confidence, and the baselines."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cropscore_ray import geometry
from cropscore_ray.config.sections import MAX_MEGAPIXELS
from cropscore_ray.errors import DataError, ImageError
from cropscore_ray.images import fetch
from cropscore_ray.images.decode import Pixels
from cropscore_ray.images.decode_ahead import decode_ahead
from cropscore_ray.models import baselines, voter
from cropscore_ray.models.bundle import Bundle
from cropscore_ray.models.confidence import fit_confidence
from cropscore_ray.models.localizer import VotesLocalizer
from cropscore_ray.models.scorer import CropScorer
from cropscore_ray.training.data.images import LabelledImages
from cropscore_ray.training.data.shares import labelled_images, sized, unit_boxes
from cropscore_ray.training.loop import State, Worker

_CAM_IMAGES = 300  # enough to choose one threshold of a coarse grid

logger = logging.getLogger(__name__)

CountProgress = Callable[[int, int, Callable[[], str]], None]


def fit_voter(
    bundle: Bundle, weights: State, judging: LabelledImages, worker: Worker
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return a voter's tensors with a confidence fitted on the judging images, and its error.

    Raises:
        DataError: none of them can be read.
    """
    scorer = CropScorer(bundle, device=worker.device)
    unfitted = {**weights, "confidence": torch.zeros(3, voter.NUM_EVIDENCE)}
    localizer = VotesLocalizer(scorer, unfitted)
    evidence, hits = [], []
    for i, pixels in _readable(judging.uris, partial(worker.progress, "localizer, confidence")):
        classes_GK = torch.tensor([[judging.classes[i]]], device=scorer.device)
        figures_KF = localizer.look([pixels], classes_GK)[0].cpu()
        box = figures_KF[:, :4].numpy() * geometry.sides_px(pixels.shape)
        evidence.append(figures_KF[0, 4:])
        hits.append(geometry.iou(box, judging.boxes[i]).max() >= geometry.IOU_THRESHOLD)
    if not hits:
        raise DataError(
            f"none of the {len(judging)} images that were held back can be read",
            hint="check the storage's settings and the manifest's image_uri column",
        )
    hits_N = torch.tensor(hits)
    confidence = fit_confidence(torch.stack(evidence), hits_N)
    metrics = {"num_judging": len(hits), "held_back_error": 1 - float(hits_N.float().mean())}
    return {**weights, "confidence": confidence}, metrics


def fit_baselines(bundle: Bundle, rows: pa.Table, worker: Worker) -> dict[str, Any]:
    """Return the best constant box and the best CAM threshold on training images.

    Raises:
        DataError: the sizes of none are known, or none can be read.
    """
    scorer = CropScorer(bundle, device=worker.device)
    rows = sized(rows)
    labelled = labelled_images(rows)
    unit = unit_boxes(rows, labelled)
    chosen = np.arange(0, len(labelled), max(1, len(labelled) // _CAM_IMAGES))
    images = labelled.take(chosen)
    maps, boxes = [], []
    for i, pixels in _readable(images.uris, partial(worker.progress, "localizer, baselines")):
        classes_GK = torch.tensor([[images.classes[i]]], device=scorer.device)
        maps.append(scorer.class_maps([pixels], classes_GK)[0, 0].cpu().numpy())
        boxes.append(unit[chosen[i]])
    if not maps:
        raise DataError(
            f"none of {len(labelled)} training images with known sizes can be read",
            hint="index the set again: it looks at the sizes of images with boxes",
        )
    return {
        "constant_box": baselines.fit_constant_box(unit).tolist(),
        "cam_threshold": baselines.fit_cam_threshold(np.stack(maps), boxes),
    }


def _readable(
    uris: Sequence[str], progress: CountProgress
) -> Iterator[tuple[int, Pixels | Tensor]]:
    """Yield the images that can be read, and where they stand; the next is decoded meanwhile.

    Pillow decodes for a GPU too, as it does for trainings.

    Raises:
        StorageError: the storage does not answer.
    """
    cpu = torch.device("cpu")
    decoded = chain.from_iterable(
        decode_ahead(fetched, group=1, max_megapixels=MAX_MEGAPIXELS, device=cpu)
        for fetched in fetch.fetch_ahead(list(uris))
    )
    for i, [pixels] in enumerate(decoded):
        if isinstance(pixels, ImageError):
            fetch.require_answer(pixels)
            logger.warning("left out: %s (%s)", pixels, pixels.status)
        else:
            yield i, pixels
        progress(i + 1, len(uris), str)
