"""What a network learns from crops: their class, or how far they overlap the object.

Shape suffixes: N crops, or regions of images; C classes.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cropscore_ray.images.crop import normalize
from cropscore_ray.models.confidence import minimized
from cropscore_ray.models.googlenet import Inception, Network
from cropscore_ray.models.inference import best_dtype
from cropscore_ray.training.data.batches import Batch, single_images
from cropscore_ray.training.data.crops import relit
from cropscore_ray.training.data.images import ImageDataset

_SMALLEST_SCALE = 0.02  # a network that knows nothing yet must still learn from squares
_CALIBRATION_CROPS, _CALIBRATION_IMAGES = 400, 100  # as many at least, where there are


class CropObjective:
    """The loss of a classifier or of a scorer, and what it needs to know before the first step."""

    def __init__(
        self,
        dataset: ImageDataset,
        *,
        label_smoothing: float,
        aux_weight: float = 0.0,
        learns_overlap: bool = False,
    ) -> None:
        self.dataset = dataset
        self.label_smoothing = label_smoothing
        self.aux_weight = aux_weight
        self.learns_overlap = learns_overlap
        self.calibration = Calibration()

    def trained(self, network: Network) -> nn.Module:
        """Return what is trained: the network, or it and auxiliary heads."""
        return WithAuxHeads(network, network.fc.out_features) if self.aux_weight else network

    def prepare(self, network: Network, device: torch.device) -> None:
        """Measure how the untrained scorer's logits of grid squares read as overlaps."""
        if not self.learns_overlap:
            return
        network.eval()
        logits, overlaps = [torch.empty(0)], [torch.empty(0)]
        num_images = max(_CALIBRATION_IMAGES, _CALIBRATION_CROPS // self.dataset.crops_an_image)
        with torch.no_grad():
            for batch in single_images(self.dataset, num_images, device):
                logits_NC = self._call(network, batch).float()
                is_square = ~batch["overlap"].isnan()
                own_logit = logits_NC.gather(1, batch["class_index"][:, None])[:, 0]
                logits.append(own_logit[is_square].cpu())
                overlaps.append(batch["overlap"][is_square].cpu().float())
        self.calibration = fit_calibration(torch.cat(logits), torch.cat(overlaps))

    def state(self) -> Any:
        """Return what `prepare` measured."""
        return self.calibration.scale, self.calibration.shift

    def load(self, state: Any) -> None:
        """Take what `prepare` measured at another time."""
        self.calibration = Calibration(scale=state[0], shift=state[1])

    def __call__(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return a pass's mean loss, and how many class crops are judged right, of how many."""
        given = self._call(module, batch)
        logits_NC, *aux = [logits.float() for logits in (given if self.aux_weight else [given])]
        losses = partial(
            crop_losses,
            batch=batch,
            label_smoothing=self.label_smoothing,
            calibration=self.calibration,
        )
        loss = losses(logits_NC).mean()
        helped = loss + self.aux_weight * sum(losses(logits).mean() for logits in aux)
        is_class_crop = batch["overlap"].isnan()
        right = (logits_NC.argmax(1) == batch["class_index"]) & is_class_crop
        return helped, right.sum(), is_class_crop.sum()

    def _call(self, module: nn.Module, batch: Batch) -> Any:
        """Return what the network gives for normalized crops, and regions if any.

        Their light changes here, on the network's device: a loader's core would take up to half
        as long for it as for all else that it does to a crop.
        """
        crops_NSS3 = relit(batch["crop"], batch["light"]) if "light" in batch else batch["crop"]
        crops_N3SS = normalize(crops_NSS3, self.dataset.preprocess, torch.float32)
        device = crops_N3SS.device
        dtype = best_dtype(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return module(crops_N3SS, *([batch["regions"]] if "regions" in batch else []))


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """How a logit reads as an overlap: sigmoid(scale * logit + shift)."""

    scale: float = 1.0
    shift: float = 0.0


def fit_calibration(logits_N: Tensor, overlaps_N: Tensor) -> Calibration:
    """Return the logistic fit of overlaps in [0, 1] on logits of the image's class.

    An image-level network says 10 where half an object is in sight. Held fixed while the
    scorer trains, the fit keeps the overlap loss from spending its first epochs on pushing
    all logits down, which undoes what the network knows (measured: one epoch at rate 0.002
    took the class accuracy from above 0.6 to 0.23).
    """
    if not len(logits_N):
        return Calibration()

    def loss(weight: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(weight[0] * logits_N + weight[1], overlaps_N)

    scale, shift = minimized(loss, torch.tensor([0.1, 0.0])).tolist()
    return Calibration(scale=max(scale, _SMALLEST_SCALE), shift=shift)


def crop_losses(
    logits_NC: Tensor, batch: dict[str, Tensor], label_smoothing: float, calibration: Calibration
) -> Tensor:
    """Return the loss of each crop, (N,): cross-entropy of class crops, overlap of squares.

    A batch's class_index and overlap are (N,), of crops or of regions of images.

    The overlap is learnt by binary cross-entropy on the class's own logit, the very number
    that becomes the feature; divided by the calibration's scale, so that a wrong overlap
    moves a logit as hard as a wrong class does.
    """
    is_square = ~batch["overlap"].isnan()
    class_loss = F.cross_entropy(
        logits_NC, batch["class_index"], reduction="none", label_smoothing=label_smoothing
    )
    own_logit = logits_NC.gather(1, batch["class_index"][:, None])[:, 0]
    overlap_loss = F.binary_cross_entropy_with_logits(
        calibration.scale * own_logit + calibration.shift,
        batch["overlap"].nan_to_num(0.0).float(),
        reduction="none",
    )
    return torch.where(is_square, overlap_loss / calibration.scale, class_loss)


class WithAuxHeads(nn.Module):
    """A network whose call gives its logits and, in training, those of its auxiliary heads.

    These send a gradient into the middle of a deep network (Szegedy et al. 2014, section 5), and
    are thrown away afterwards: a bundle never holds them.
    """

    def __init__(self, network: Network, num_classes: int) -> None:
        # Imported where it is used: it takes seconds of every process that starts.
        from torchvision.models.googlenet import InceptionAux

        super().__init__()
        self.network = network
        self.heads = nn.ModuleDict()
        self._maps: dict[str, Tensor] = {}
        for name in network.aux_blocks:
            block = network.get_submodule(name)
            assert isinstance(block, Inception)
            self.heads[name] = InceptionAux(block.out_channels, num_classes)
            block.register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, block: nn.Module, inputs: object, maps: Tensor) -> None:
        del block, inputs
        if self.training:
            self._maps[name] = maps

    def forward(self, x_N3HW: Tensor) -> list[Tensor]:
        """Return logits, (N, C) each: the network's own and then each head's."""
        logits = [self.network(x_N3HW)]
        logits += [head(self._maps.pop(name)) for name, head in self.heads.items() if self._maps]
        return logits
