"""CropScorer, the engine: pixels of images in, class scores of their crops out.

It holds the networks of a bundle on one device and looks at a group of images at a time.
Exact mode scores 140 separate crops of an image; pyramid mode takes the means of the same
squares from three maps of the whole image. It does not read files and knows neither boxes nor
tables nor Ray.

On a CPU an image's numbers are the same bits whatever its group: products are an image's
own, since a library may add up in another order for another size.

Shape suffixes: G images; N crops; T ten crops; S squares or other regions; K classes asked
for; C all classes; D channels; L levels; J = 7 cells a side; h, w a map's sides.
"""
# ruff: noqa: N815 (fields that are arrays carry their shape suffix)

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cropscore_ray import grid
from cropscore_ray.geometry import sides_px
from cropscore_ray.images.crop import Crops, ten_crop_boxes
from cropscore_ray.images.decode import Pixels, decode
from cropscore_ray.models.bundle import SCORER, Bundle, classifier_part
from cropscore_ray.models.heads import class_weights
from cropscore_ray.models.inference import InferenceNetwork, best_dtype

Scores = NDArray[np.float32]

# Images that are looked at together: 8 x 140 crops fill a large GPU, as do 32 x 22.
_GPU_GROUP = {"exact": 8, "pyramid": 32, "votes": 64}
_CPU_GROUP = 4
_TEN = 10


Image = Pixels | Tensor

View = Callable[[list[Image], Tensor], Tensor]
"""From images and classes, (G, K), to what networks give for each class of each, (G, K, …)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What networks give for a group of images, in the host's memory; `wait` before use."""

    classes_GK: Tensor
    """The given class first, if there was a given one, then the most probable, in that order."""
    probabilities_GK: Tensor
    """Of these classes; NaN if none were predicted."""
    views: list[Tensor]
    """What was asked for of these classes, (G, K, …) each."""
    wait: Callable[[], None]
    """Returns when a GPU has filled the tensors."""


class CropScorer:
    """The object scorer and the classifiers of a bundle, ready on one device."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        mode: str | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Load nothing yet; `mode` is one of config.MODES, or None for what the bundle learnt."""
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = dtype or best_dtype(self.device)
        self.mode = mode or bundle.config.mode
        self.preprocess = bundle.preprocess
        # In pyramid mode an image is one pass a level, and each core of a CPU wants one.
        self.group_images = (
            _GPU_GROUP[self.mode]
            if self.device.type == "cuda"
            else max(_CPU_GROUP, torch.get_num_threads())
        )
        self._bundle = bundle
        self._networks: dict[str, InferenceNetwork] = {}

    def network(self, part: str) -> InferenceNetwork:
        """Return a part of the bundle, loaded when it is first asked for."""
        if part not in self._networks:
            each = grid.NUM_SQUARES if part == SCORER else _TEN
            self._networks[part] = InferenceNetwork(
                self._bundle.network(part),
                self.preprocess,
                self.device,
                self.dtype,
                largest_batch=each if self.device.type == "cpu" else each * self.group_images,
            )
        return self._networks[part]

    def look(
        self,
        images_G: list[Image],
        labels_G: list[int] | None = None,
        *,
        top_k: int = 0,
        views: Sequence[View] = (),
    ) -> Look:
        """Look at images for a given class, for the predicted ones, or for both.

        Nothing here waits for a GPU: its next group can be queued before a look is read.

        Args:
            images_G: decoded images.
            labels_G: a class of each image; None: only predicted ones.
            top_k: number of most probable classes; 0 runs no classifier.
            views: what is wanted of each class.
        """
        on_device = [self.to_device(image) for image in images_G]
        classes = []
        if labels_G is not None:
            classes.append(torch.tensor(labels_G, device=self.device)[:, None])
        if top_k:
            probabilities_GC = self.classify(on_device)
            classes.append(probabilities_GC.topk(min(top_k, probabilities_GC.shape[1])).indices)
        classes_GK = torch.cat(classes, 1)
        probabilities_GK = (
            probabilities_GC.gather(1, classes_GK)
            if top_k
            else torch.full(classes_GK.shape, math.nan, device=self.device)
        )
        return Look(
            classes_GK=_to_host(classes_GK),
            probabilities_GK=_to_host(probabilities_GK),
            views=[_to_host(view(on_device, classes_GK)) for view in views],
            wait=self._mark(),
        )

    def _mark(self) -> Callable[[], None]:
        """Return what waits until all that is queued now is done, and no longer."""
        if self.device.type == "cpu":
            return lambda: None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event.synchronize

    def to_device(self, pixels_HW3: Image) -> Image:
        """Return an image where the networks are; a group must not be half here, half there."""
        if self.device.type == "cpu" or isinstance(pixels_HW3, Tensor):
            return pixels_HW3
        return torch.from_numpy(pixels_HW3.copy()).to(self.device, non_blocking=True)

    def square_scores(self, images_G: list[Image], classes_GK: Tensor) -> Tensor:
        """Return the scores of the 140 squares of images for their classes, (G, K, 140)."""
        return self.score(self.embed(images_G), classes_GK)

    def embed(self, images_G: list[Image]) -> Tensor:
        """Return the scorer's embedding of the 140 squares of images, (G, 140, D)."""
        if self.mode != "exact":
            return self.embed_regions(images_G, grid.square_rectangles())
        crops = _crops(images_G, grid.unit_squares(), self.preprocess.input_px)
        return self.network(SCORER).cells(crops).view(len(images_G), grid.NUM_SQUARES, -1)

    def embed_regions(self, images_G: list[Image], rectangles_S4: NDArray[np.int64]) -> Tensor:
        """Return the pyramid's embedding of any blocks of the grid, (G, S, D).

        `grid.rectangle_cells()` has all 784; they cost no more than the 140 squares.
        """
        network = self.network(SCORER)
        levels = []
        for level in grid.LEVELS:
            side = grid.CELLS * network.network.stride * level
            levels.append(network.cells(whole_images(images_G, side), grid.CELLS))
        cells_GLDJJ = torch.stack(levels, 1)
        shares_SLJJ = torch.from_numpy(grid.pyramid_means(rectangles_S4)).to(self.device)
        return torch.stack(
            [torch.einsum("slij,ldij->sd", shares_SLJJ, cells_LDJJ) for cells_LDJJ in cells_GLDJJ]
        )

    @torch.inference_mode()
    def score(self, embedding_GSD: Tensor, classes_GK: Tensor) -> Tensor:
        """Return scores of the classes asked for alone, (G, K, S).

        They are the classes' logits, or the overlaps that the scorer's head predicts, 0 to 1.
        """
        pairs = zip(embedding_GSD, classes_GK, strict=True)
        return torch.stack([self._scores_of(*pair) for pair in pairs])

    def _scores_of(self, embedding_SD: Tensor, classes_K: Tensor) -> Tensor:
        network = self.network(SCORER).network
        if network.overlap is None:
            fc = network.fc
            return fc.weight[classes_K] @ embedding_SD.T + fc.bias[classes_K, None]
        embedding_KSD = embedding_SD.expand(len(classes_K), -1, -1)
        logits_KS: Tensor = network.overlap(embedding_KSD, self._class_weights[classes_K])
        return logits_KS.sigmoid()

    @cached_property
    def _class_weights(self) -> Tensor:
        return class_weights(self.network(SCORER).fc)

    def score_squares(self, data: bytes, class_index: int) -> Scores:
        """Return the 140 scores of one class for an encoded image; ImageError if unreadable."""
        return self.score_image(decode(data), class_index)

    def score_image(self, pixels_HW3: Image, class_index: int) -> Scores:
        """Return the 140 scores of one class for one image, in grid order."""
        scores_GKS = self.square_scores([pixels_HW3], torch.tensor([[class_index]]))
        return np.asarray(scores_GKS[0, 0].cpu().numpy(), np.float32)

    @torch.inference_mode()
    def classify(self, images_G: list[Image]) -> Tensor:
        """Return class probabilities, (G, C): the mean over 10 crops and all classifiers.

        Softmax comes before the mean (GoogLeNet paper, section 7).
        """
        return self.member_probabilities(images_G).mean(2).mean(0)

    @torch.inference_mode()
    def member_probabilities(self, images_G: list[Image]) -> Tensor:
        """Return each classifier's class probabilities on each crop, (classifiers, G, T, C).

        The crops are those of `images.ten_crop_boxes`, then their mirrors.
        """
        side = self.preprocess.input_px
        five = ten_crop_boxes(self.preprocess)
        ten = _crops(images_G, five, side, with_mirrors=True)
        members = []
        for member in range(self._bundle.num_members):
            network = self.network(classifier_part(member))
            embedding_GTD = network.cells(ten).view(len(images_G), _TEN, -1)
            logits_GTC = torch.stack([network.fc(embedding_TD) for embedding_TD in embedding_GTD])
            members.append(logits_GTC.softmax(2))
        return torch.stack(members)

    @torch.inference_mode()
    def class_maps(self, images_G: list[Image], classes_GK: Tensor) -> Tensor:
        """Return class activation maps of classifier 0 on whole images, (G, K, h, w).

        The classifier's weights of a class times the maps before pooling (Zhou et al. 2016).
        """
        network = self.network(classifier_part(0))
        crops = whole_images(images_G, self.preprocess.input_px)
        maps_GDhw = network.cells(crops, None)
        pairs = zip(network.fc.weight[classes_GK], maps_GDhw, strict=True)
        return torch.stack([torch.einsum("kd,dhw->khw", *pair) for pair in pairs])


def whole_images(images_G: list[Image], side: int, *, with_mirrors: bool = False) -> Crops:
    """Return whole images as squares of a side; behind each its mirror image, if asked for."""
    return _crops(images_G, ((0.0, 0.0, 1.0, 1.0),), side, with_mirrors=with_mirrors)


def _to_host(values: Tensor) -> Tensor:
    """Return a copy in pinned memory, which need not be there before `Look.wait` returns."""
    return values.to("cpu", non_blocking=True)


def _crops(
    images_G: list[Image], unit_boxes_N4: ArrayLike, side: int, *, with_mirrors: bool = False
) -> Crops:
    """Return the same boxes, as fractions of the sides, of several images."""
    boxes = [np.asarray(unit_boxes_N4) * sides_px(image.shape) for image in images_G]
    return Crops(images=images_G, boxes=boxes, side=side, with_mirrors=with_mirrors)
