"""How often the classifiers of a bundle are wrong: each alone and together, on one crop and on ten.

Shape suffixes: G images; M classifiers; T ten crops; C classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cropscore_ray.config.sections import MAX_MEGAPIXELS
from cropscore_ray.errors import ImageError
from cropscore_ray.evaluation.metrics import Rate
from cropscore_ray.images.decode import Pixels
from cropscore_ray.images.decode_ahead import decode_ahead
from cropscore_ray.images.fetch import fetch_ahead, require_answer
from cropscore_ray.models.bundle import Bundle, classifier_part
from cropscore_ray.models.scorer import CropScorer

_CENTRE = 4  # of the ten crops
_TOP = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierErrors:
    """The errors of one classifier, or of their mean, on one crop or on ten."""

    network: str
    num_crops: int
    top1: Rate
    top5: Rate

    def to_json(self) -> dict[str, Any]:
        """Return names and fractions."""
        return {
            "network": self.network,
            "num_crops": self.num_crops,
            "cls_top1": self.top1.fraction,
            "cls_top5": self.top5.fraction,
            "num_images": self.top1.num_images,
        }


def classifier_errors(
    bundle: Bundle, rows: pa.Table, *, progress: Callable[[int, int], None]
) -> list[ClassifierErrors]:
    """Classify images by one centre crop and by ten; an unreadable image is an error.

    Args:
        bundle: whose classifiers.
        rows: of a manifest, with image_uri and, of the model's classes, class_index.
        progress: takes the number of images done, and of all images.

    Returns:
        each classifier on one crop and on ten, then their mean if there are several.
    """
    scorer = CropScorer(bundle)
    names = [classifier_part(member) for member in range(bundle.num_members)]
    if len(names) > 1:
        names.append(f"mean of {len(names)}")
    labels, uris = rows["class_index"].to_pylist(), rows["image_uri"].to_pylist()
    ranks: list[Tensor] = []
    for group, classes_G in _groups(scorer, uris, labels):
        probabilities_MGTC = scorer.member_probabilities(group)
        if bundle.num_members > 1:
            mean_1GTC = probabilities_MGTC.mean(0, keepdim=True)
            probabilities_MGTC = torch.cat([probabilities_MGTC, mean_1GTC])
        views = torch.stack([probabilities_MGTC[:, :, _CENTRE], probabilities_MGTC.mean(2)])
        ranks.append(_ranks(views, torch.tensor(classes_G, device=scorer.device)).cpu())
        progress(sum(rank_2MG.shape[2] for rank_2MG in ranks), len(uris))
    rank_2MN = torch.cat(ranks, 2).numpy() if ranks else np.zeros((2, len(names), 0))
    return [
        ClassifierErrors(
            network=name,
            num_crops=num_crops,
            top1=_rate(rank_2MN[view, i], 1, len(uris)),
            top5=_rate(rank_2MN[view, i], _TOP, len(uris)),
        )
        for i, name in enumerate(names)
        for view, num_crops in enumerate((1, 10))
    ]


def _groups(
    scorer: CropScorer, uris: list[str], labels: list[int]
) -> Iterator[tuple[list[Pixels | Tensor], list[int]]]:
    """Yield the readable images, group by group, with their classes."""
    size, label = scorer.group_images, iter(labels)
    for fetched in fetch_ahead(uris):
        for decoded in decode_ahead(
            fetched, group=size, max_megapixels=MAX_MEGAPIXELS, device=scorer.device
        ):
            good: list[tuple[Pixels | Tensor, int]] = []
            for image, class_index in zip(decoded, label, strict=False):
                if isinstance(image, ImageError):
                    require_answer(image)
                else:
                    good.append((scorer.to_device(image), class_index))
            if good:
                yield [image for image, _ in good], [class_index for _, class_index in good]


def _ranks(probabilities_XGC: Tensor, classes_G: Tensor) -> Tensor:
    """Return how many classes are more probable than the true one, (…, G); all, if that is NaN."""
    index = classes_G.expand(probabilities_XGC.shape[:-1])[..., None]
    own = probabilities_XGC.gather(-1, index)
    return (~(probabilities_XGC <= own)).sum(-1)


def _rate(ranks_N: Any, top: int, num_images: int) -> Rate:
    """Return the error among all images; those that are missing are wrong."""
    right = int((ranks_N < top).sum())
    return Rate(fraction=1 - right / num_images, num_images=num_images)
