"""Training the localizer on scores: one shared regressor, then a last layer for each class.

It knows scores, boxes and classes as arrays; not images, files or Ray.

Shape suffixes: N images; F scores, 140 as a rule; M true boxes (padded); G classes.
"""
# ruff: noqa: N815 (fields that are arrays carry their shape suffix)

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cropscore_ray.config.sections import LocalizerConfig
from cropscore_ray.errors import ConfigError
from cropscore_ray.geometry import IOU_THRESHOLD
from cropscore_ray.grid import mirror_order, square_rectangles
from cropscore_ray.models.boxes import best_iou, mirrored
from cropscore_ray.models.confidence import fit_confidence
from cropscore_ray.models.regressors import (
    NUM_EVIDENCE,
    SHARED,
    Layers,
    Regressors,
    apply_hidden,
    box_evidence,
    normalize_scores,
)
from cropscore_ray.training.localizer import classwise
from cropscore_ray.training.localizer.classwise import Hidden
from cropscore_ray.training.objectives.boxes import box_loss

_MIN_CHOOSING = 2  # fewer images cannot show whether a class gained

EpochProgress = Callable[[str, int, int, Callable[[], str]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredImages:
    """What the localizer learns from: scores, classes and the true boxes of images."""

    scores_NF: Tensor
    classes_N: Tensor
    boxes_NM4: Tensor
    """Unit corners, padded with NO_BOX where an image has fewer than M boxes."""
    regions_F4: NDArray[np.int64] = field(default_factory=square_rectangles)
    """The blocks of the grid whose scores these are; those of 140 squares, if not said."""

    def __len__(self) -> int:
        return len(self.scores_NF)

    def take(self, index_N: Tensor) -> "ScoredImages":
        """Return some of the images."""
        return replace(
            self,
            scores_NF=self.scores_NF[index_N],
            classes_N=self.classes_N[index_N],
            boxes_NM4=self.boxes_NM4[index_N],
        )


def with_mirror_images(data: ScoredImages) -> ScoredImages:
    """Return the images and their left-right mirror images: twice the data from one scoring.

    A mirrored image has mirrored squares, so its scores are the same in another order; the
    scorer has learnt from mirrored crops. Measured on held-back ILSVRC images with 630
    to train on: error 0.379 without, 0.355 with.
    """
    order = torch.from_numpy(mirror_order(data.regions_F4))
    return replace(
        data,
        scores_NF=torch.cat([data.scores_NF, data.scores_NF[:, order]]),
        classes_N=data.classes_N.repeat(2),
        boxes_NM4=torch.cat([data.boxes_NM4, mirrored(data.boxes_NM4)]),
    )


class ScoredShares(NamedTuple):
    """The localizer's images."""

    train: ScoredImages
    """To learn boxes from."""
    choosing: ScoredImages
    """Others, which choose the epoch and each class's step."""
    judging: ScoredImages
    """Others again, which fit the confidence."""


def train_localizer(
    shares: ScoredShares,
    *,
    num_classes: int,
    config: LocalizerConfig,
    seed: int,
    progress: EpochProgress,
) -> tuple[Regressors, dict[str, Any]]:
    """Train the shared regressor, the class-wise ones and the confidence.

    Returns:
        the regressors, and figures on the judging images: class-known error of the shared
        and of the class-wise ones; and how many classes have their own.
    """
    torch.manual_seed(seed)
    shares = shares._replace(train=with_mirror_images(shares.train))
    train, choosing, judging = shares
    members = []
    for i in range(1, config.num_regressors + 1):
        of_several = f" {i} of {config.num_regressors}" if config.num_regressors > 1 else ""
        shown = partial(progress, f"localizer, shared{of_several}")
        members.append(_train_shared(shares, num_classes, config, shown))
    shared = joined(members)
    localizer = _train_classwise(shared, shares, config, progress)
    boxes_N4 = localizer.boxes(judging.scores_NF, judging.classes_N)
    hits_N = best_iou(boxes_N4, judging.boxes_NM4) >= IOU_THRESHOLD
    confidence = fit_confidence(box_evidence(judging.scores_NF, boxes_N4), hits_N)
    shared_N4 = shared.boxes(judging.scores_NF, judging.classes_N)
    shared_hits_N = best_iou(shared_N4, judging.boxes_NM4) >= IOU_THRESHOLD
    metrics = {
        "num_train": len(train) // 2,  # mirrors aside
        "num_choosing": len(choosing),
        "num_judging": len(judging),
        "held_back_error": 1 - float(hits_N.float().mean()),
        "held_back_error_shared": 1 - float(shared_hits_N.float().mean()),
        "num_classwise": len(localizer.heads_G4H) - 1,
    }
    return replace(localizer, confidence=confidence), metrics


def joined(members: list[Regressors]) -> Regressors:
    """Return a regressor that gives the mean of several: their layers side by side."""
    hidden: Layers = []
    for layers in zip(*(member.hidden for member in members), strict=True):
        weights, biases = zip(*layers, strict=True)
        weight = torch.block_diag(*weights) if hidden else torch.cat(weights)  # type: ignore[no-untyped-call]
        hidden.append((weight, torch.cat(biases)))
    heads_K4H = torch.cat([member.heads_G4H for member in members]) / len(members)
    last_4H = torch.cat([*heads_K4H[..., :-1], heads_K4H[..., -1:].sum(0)], 1)
    return replace(members[0], hidden=hidden, heads_G4H=last_4H[None])


def _make_regressor(num_scores: int, first_box_4: Tensor, config: LocalizerConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = num_scores
    for hidden in config.hidden:
        layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(config.dropout)]
        width = hidden
    last = nn.Linear(width, 4)
    with torch.no_grad():
        last.bias.copy_(first_box_4)
    return nn.Sequential(*layers, last)


def _train_shared(
    shares: ScoredShares,
    num_classes: int,
    config: LocalizerConfig,
    progress: Callable[[int, int, Callable[[], str]], None],
) -> Regressors:
    """Return a regressor for all classes, of the epoch whose loss on `choosing` is lowest."""
    train, choosing, _ = shares
    # Start from the mean first box: the regressor then learns only what scores add.
    model = _make_regressor(train.scores_NF.shape[1], train.boxes_NM4[:, 0].mean(0), config)
    features = normalize_scores(train.scores_NF, config.normalization)
    chosen_by = normalize_scores(choosing.scores_NF, config.normalization)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
    best_loss, best = float("inf"), model.state_dict()
    for epoch in range(config.epochs):
        model.train()
        for batch in torch.split(torch.randperm(len(train)), config.batch_size):
            loss = box_loss(model(features[batch]), train.boxes_NM4[batch], config.loss).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
        model.eval()
        with torch.no_grad():
            loss_held_back = float(
                box_loss(model(chosen_by), choosing.boxes_NM4, config.loss).mean()
            )
        if not math.isfinite(loss_held_back):
            raise ConfigError(
                "localizer: the loss is not a number any more",
                hint="choose a lower localizer.learning_rate",
            )
        if loss_held_back < best_loss:
            best_loss, best = loss_held_back, copy.deepcopy(model.state_dict())
        progress(epoch + 1, config.epochs, f"held-back loss {loss_held_back:.4f}".format)
    model.load_state_dict(best)
    *hidden, last = [layer for layer in model if isinstance(layer, nn.Linear)]
    return Regressors(
        hidden=[(layer.weight.detach(), layer.bias.detach()) for layer in hidden],
        heads_G4H=torch.cat([last.weight, last.bias[:, None]], 1).detach()[None],
        slot_of_class=torch.full((num_classes,), SHARED),
        confidence=torch.zeros(3, NUM_EVIDENCE),
        normalization=config.normalization,
    )


def _train_classwise(
    localizer: Regressors, shares: ScoredShares, config: LocalizerConfig, progress: EpochProgress
) -> Regressors:
    """Fine-tune the last layer of every class that has the images for it; keep what gained."""
    slot_of_class = localizer.slot_of_class.clone()
    classes_G = _rich_classes(shares, len(slot_of_class), config)
    if not len(classes_G):
        return localizer
    seen, chosen_by = (_hidden(localizer, data) for data in shares[:2])
    heads_G4H, gained_G = classwise.fine_tune(
        localizer.heads_G4H[0], seen, chosen_by, classes_G, config
    )
    slot_of_class[classes_G[gained_G]] = torch.arange(1, int(gained_G.sum()) + 1)
    num_classes = len(classes_G)
    gained = f"{int(gained_G.sum())} gained"
    progress("localizer, class-wise", num_classes, num_classes, lambda: gained)
    return replace(
        localizer,
        slot_of_class=slot_of_class,
        heads_G4H=torch.cat([localizer.heads_G4H, heads_G4H[gained_G]]),
    )


def _hidden(localizer: Regressors, data: ScoredImages) -> Hidden:
    features_NF = normalize_scores(data.scores_NF, localizer.normalization)
    return Hidden(
        hidden_NH=apply_hidden(localizer.hidden, features_NF),
        classes_N=data.classes_N,
        boxes_NM4=data.boxes_NM4,
    )


def _rich_classes(shares: ScoredShares, num_classes: int, config: LocalizerConfig) -> Tensor:
    """Return the classes that have the images for a last layer of their own."""
    if config.classwise_epochs == 0:
        return torch.empty(0, dtype=torch.int64)
    counts = torch.bincount(shares.train.classes_N, minlength=num_classes) // 2  # mirrors aside
    enough = counts >= config.classwise_min_images
    can_choose = torch.bincount(shares.choosing.classes_N, minlength=num_classes) >= _MIN_CHOOSING
    return (enough & can_choose).nonzero()[:, 0]
