"""CropScorer, the engine: pixels of one image in, class scores of its crops out.

It holds the networks of a bundle on one device and runs them in fixed batches. It does
not read files and knows neither tables nor Ray.

Shape suffixes: N crops; K classes asked for; C all classes; D channels; h, w a map's sides.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cropscore_ray import grid, images
from cropscore_ray.bundle import SCORER, Bundle, classifier_part
from cropscore_ray.networks import Network, best_dtype, for_inference

Pixels = NDArray[np.uint8]
Scores = NDArray[np.float32]

# Measured: on two cores the caches favour small batches (136 crops/s at 20, 73 at 70).
CROPS_PER_BATCH = {"cpu": 28, "cuda": 1120}


class CropScorer:
    """The object scorer and the classifiers of a bundle, ready on one device."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = dtype or best_dtype(self.device)
        self.preprocess = bundle.preprocess
        self._bundle = bundle
        self._networks: dict[str, Network] = {}

    def _network(self, part: str) -> Network:
        """Load a part when it is first asked for."""
        if part not in self._networks:
            network = self._bundle.network(part)
            self._networks[part] = for_inference(network, self.device, self.dtype)
        return self._networks[part]

    def cut(self, pixels_HW3: Pixels, boxes_N4: ArrayLike) -> Tensor:
        """Return crops as the networks take them: (N, 3, input_px, input_px)."""
        image_3HW = images.normalize(images.planes(pixels_HW3), self.preprocess)
        return images.crop(image_3HW, boxes_N4, self.preprocess.input_px).to(
            device=self.device, dtype=self.dtype, memory_format=torch.channels_last
        )

    @torch.inference_mode()
    def embed(self, part: str, crops_N3SS: Tensor) -> Tensor:
        """Return the pooled features of crops under one network, (N, D) float32."""
        batch = CROPS_PER_BATCH[self.device.type]
        network = self._network(part)
        means = [
            network.features(some).mean((2, 3)).float() for some in torch.split(crops_N3SS, batch)
        ]
        return torch.cat(means)

    @torch.inference_mode()
    def scores(self, part: str, crops_N3SS: Tensor, classes_K: list[int]) -> Scores:
        """Return logits of the classes asked for, (K, N): only their rows are computed."""
        fc = self._network(part).fc
        embedding_ND = self.embed(part, crops_N3SS)
        logits_KN = fc.weight[classes_K] @ embedding_ND.T + fc.bias[classes_K, None]
        return np.asarray(logits_KN.cpu().numpy(), np.float32)

    def score_grid(self, pixels_HW3: Pixels, classes_K: list[int]) -> Scores:
        """Return the object scorer's logits on the 140 squares, (K, 140), in grid order."""
        height, width = pixels_HW3.shape[:2]
        crops = self.cut(pixels_HW3, grid.square_boxes(width, height))
        return self.scores(SCORER, crops, classes_K)

    def score_squares(self, data: bytes, class_index: int) -> Scores:
        """Return the 140 logits of one class for an encoded image; ImageError if unreadable."""
        scores_KS = self.score_grid(images.decode(data), [class_index])
        return np.asarray(scores_KS[0])

    @torch.inference_mode()
    def classify(self, pixels_HW3: Pixels) -> Scores:
        """Return class probabilities, (C,): the mean over 10 crops and all classifiers.

        Softmax comes before the mean (GoogLeNet paper, section 7).
        """
        height, width = pixels_HW3.shape[:2]
        crops = self.cut(pixels_HW3, images.ten_crop_boxes(width, height, self.preprocess))
        ten = torch.cat([crops, crops.flip(3)])
        total = torch.zeros(len(self._bundle.classes), device=self.device)
        for member in range(self._bundle.num_members):
            part = classifier_part(member)
            logits_NC = self._network(part).fc(self.embed(part, ten))
            total += logits_NC.softmax(1).mean(0)
        return np.asarray((total / self._bundle.num_members).cpu().numpy(), np.float32)

    @torch.inference_mode()
    def class_maps(self, pixels_HW3: Pixels, classes_K: list[int]) -> Scores:
        """Return class activation maps of classifier 0 on the whole image, (K, h, w).

        The classifier's weights of a class times the maps before pooling (Zhou et al. 2016).
        """
        height, width = pixels_HW3.shape[:2]
        network = self._network(classifier_part(0))
        maps_Dhw = network.features(self.cut(pixels_HW3, [[0, 0, width, height]]))[0].float()
        maps_Khw = torch.einsum("kd,dhw->khw", network.fc.weight[classes_K], maps_Dhw)
        return np.asarray(maps_Khw.cpu().numpy(), np.float32)
