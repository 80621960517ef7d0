"""Training the localizer on scores: one shared regressor, then all classes' at once.

The class-wise regressors are one stack of matrices, trained by batched products: Adam is
elementwise, so each class takes the steps that a loop over classes would take. It knows
scores, boxes and classes as arrays; not images, files or Ray.

Shape suffixes: N images; F = 140 scores; M true boxes (padded); G classes; B a class's
images (padded); I, O a layer's inputs, outputs; E evidence.
"""
# ruff: noqa: N815 (fields that are arrays carry their shape suffix)

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cropscore_ray.config import LocalizerConfig
from cropscore_ray.features import normalize_scores
from cropscore_ray.grid import mirror_order
from cropscore_ray.localizer import NUM_EVIDENCE, SHARED, Localizer, box_evidence

_CLASSES_AT_ONCE = 64  # 64 regressors of 140-256-256-4 with Adam's moments are 105 MB
NO_BOX = 1e3  # so far off that it is never the nearest; infinity would make gradients NaN
_MIN_HELD_BACK = 2  # fewer held-back images cannot tell whether a class gained

Stack = tuple[list[Tensor], list[Tensor]]
"""Weights (G, O, I) and biases (G, O) of each layer."""

Progress = Callable[[str, int, int, Callable[[], str]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredImages:
    """What the localizer learns from: scores, classes and the true boxes of images."""

    scores_NF: Tensor
    classes_N: Tensor
    boxes_NM4: Tensor
    """Unit corners, padded with NO_BOX where an image has fewer than M boxes."""

    def __len__(self) -> int:
        return len(self.scores_NF)

    def take(self, index_N: Tensor) -> "ScoredImages":
        """Return some of the images."""
        return ScoredImages(
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
    left, top, right, bottom = data.boxes_NM4.unbind(-1)
    mirrored = torch.stack([1 - right, top, 1 - left, bottom], -1)
    mirrored = torch.where(data.boxes_NM4 == NO_BOX, data.boxes_NM4, mirrored)
    order = torch.from_numpy(mirror_order())
    return ScoredImages(
        scores_NF=torch.cat([data.scores_NF, data.scores_NF[:, order]]),
        classes_N=data.classes_N.repeat(2),
        boxes_NM4=torch.cat([data.boxes_NM4, mirrored]),
    )


def pad_boxes(boxes: list[NDArray[np.float64]]) -> Tensor:
    """Return lists of unit boxes as one tensor, (N, M, 4), padded with NO_BOX."""
    most = max(len(some) for some in boxes)
    padded = torch.full((len(boxes), most, 4), NO_BOX)
    for i, some in enumerate(boxes):
        padded[i, : len(some)] = torch.from_numpy(np.asarray(some, np.float32))
    return padded


def train_localizer(
    data: ScoredImages,
    *,
    num_classes: int,
    config: LocalizerConfig,
    seed: int,
    progress: Progress,
) -> tuple[Localizer, dict[str, Any]]:
    """Train the shared regressor, the class-wise ones and the confidence.

    Returns:
        the localizer, and what the held-back images say: class-known error of the shared
        and of the class-wise regressors, and how many classes have their own.
    """
    torch.manual_seed(seed)
    order = torch.randperm(len(data))
    num_held = max(1, round(len(data) * config.held_back_fraction))
    train, held = with_mirror_images(data.take(order[num_held:])), data.take(order[:num_held])
    shared = _train_shared(train, held, config, progress)
    slot_of_class, (weights, biases) = _train_classwise(
        shared, train, held, num_classes, config, progress
    )
    localizer = Localizer(
        weights=weights,
        biases=biases,
        slot_of_class=slot_of_class,
        confidence=torch.zeros(3, NUM_EVIDENCE),
        normalization=config.normalization,
    )
    boxes_N4 = localizer.boxes(held.scores_NF, held.classes_N)
    hits_N = best_iou(boxes_N4, held.boxes_NM4) >= 0.5
    confidence = fit_confidence(box_evidence(held.scores_NF, boxes_N4), hits_N)
    alone = replace(localizer, slot_of_class=torch.zeros_like(slot_of_class))
    shared_N4 = alone.boxes(held.scores_NF, held.classes_N)
    shared_hits_N = best_iou(shared_N4, held.boxes_NM4) >= 0.5
    metrics = {
        "num_train": len(data) - num_held,
        "num_held_back": len(held),
        "held_back_error": 1 - float(hits_N.float().mean()),
        "held_back_error_shared": 1 - float(shared_hits_N.float().mean()),
        "num_classwise": int((slot_of_class != SHARED).sum()),
    }
    return replace(localizer, confidence=confidence), metrics


def box_loss(pred_N4: Tensor, boxes_NM4: Tensor, loss: str) -> Tensor:
    """Return each image's distance to the true box that is nearest, shape (N,).

    Squared for l2 (the poster's Euclidean loss), absolute for l1; the nearest box because
    the metric is content with any instance (METHOD row 14).
    """
    difference = pred_N4[..., None, :] - boxes_NM4
    distance = difference.square() if loss == "l2" else difference.abs()
    return distance.mean(-1).amin(-1)


def best_iou(pred_N4: Tensor, boxes_NM4: Tensor) -> Tensor:
    """Return the IoU of each box with the true box it fits best, (N,); 0 for padding."""
    true = torch.where(boxes_NM4 < NO_BOX, boxes_NM4, torch.zeros(()))
    low = torch.maximum(pred_N4[:, None, :2], true[..., :2])
    high = torch.minimum(pred_N4[:, None, 2:], true[..., 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    areas = (true[..., 2:] - true[..., :2]).prod(-1)
    own = (pred_N4[:, 2:] - pred_N4[:, :2]).prod(-1)[:, None]
    return (shared / (areas + own - shared).clamp_min(1e-12)).amax(1)


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
    train: ScoredImages, held: ScoredImages, config: LocalizerConfig, progress: Progress
) -> Stack:
    """Return the regressor of the epoch with the lowest held-back loss, as a stack of one."""
    # Start from the mean first box: the regressor then learns only what scores tell.
    model = _make_regressor(train.scores_NF.shape[1], train.boxes_NM4[:, 0].mean(0), config)
    features = normalize_scores(train.scores_NF, config.normalization)
    held_features = normalize_scores(held.scores_NF, config.normalization)
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
            held_loss = float(box_loss(model(held_features), held.boxes_NM4, config.loss).mean())
        if held_loss < best_loss:
            best_loss, best = held_loss, copy.deepcopy(model.state_dict())
        progress(
            "localizer, shared", epoch + 1, config.epochs, f"held-back loss {held_loss:.4f}".format
        )
    model.load_state_dict(best)
    linears = [layer for layer in model if isinstance(layer, nn.Linear)]
    weights = [layer.weight.detach()[None].clone() for layer in linears]
    biases = [layer.bias.detach()[None].clone() for layer in linears]
    return weights, biases


def _train_classwise(
    shared: Stack,
    train: ScoredImages,
    held: ScoredImages,
    num_classes: int,
    config: LocalizerConfig,
    progress: Progress,
) -> tuple[Tensor, Stack]:
    """Fine-tune every class that has the images for it; keep those that gained.

    Returns:
        the slot of each class, and the stack: the shared regressor, then the classes'.
    """
    slot_of_class = torch.full((num_classes,), SHARED)
    stacks, chosen = [shared], []
    classes = _rich_classes(train, held, num_classes, config)
    for first in range(0, len(classes), _CLASSES_AT_ONCE):
        some = classes[first : first + _CLASSES_AT_ONCE]
        tuned, gained = fine_tune_classes(shared, train, held, some, config)
        stacks.append(_select(tuned, gained))
        chosen += some[gained].tolist()
        done = first + len(some)
        progress(
            "localizer, class-wise", done, len(classes), f"{len(chosen)} classes gained".format
        )
    slot_of_class[chosen] = torch.arange(1, len(chosen) + 1)
    weights = [torch.cat(layers) for layers in zip(*(stack[0] for stack in stacks), strict=True)]
    biases = [torch.cat(layers) for layers in zip(*(stack[1] for stack in stacks), strict=True)]
    return slot_of_class, (weights, biases)


def _rich_classes(
    train: ScoredImages, held: ScoredImages, num_classes: int, config: LocalizerConfig
) -> Tensor:
    if config.classwise_epochs == 0:
        return torch.empty(0, dtype=torch.int64)
    counts = torch.bincount(train.classes_N, minlength=num_classes) // 2  # mirrors aside
    enough = counts >= config.classwise_min_images
    judged = torch.bincount(held.classes_N, minlength=num_classes) >= _MIN_HELD_BACK
    return (enough & judged).nonzero()[:, 0]


def _select(stack: Stack, index: Tensor) -> Stack:
    return [layer[index] for layer in stack[0]], [layer[index] for layer in stack[1]]


def fine_tune_classes(
    shared: Stack,
    train: ScoredImages,
    held: ScoredImages,
    classes_G: Tensor,
    config: LocalizerConfig,
) -> tuple[Stack, Tensor]:
    """Fine-tune a copy of the shared regressor for each class, all in batched steps.

    Full-batch Adam on the class's images with a pull towards the shared weights (L2-SP:
    Li et al. 2018); each class keeps the step with its lowest held-back loss.

    Returns:
        the stack at each class's best step, and which classes improved on the shared one.
    """
    batch, held_batch = _by_class(train, classes_G, config), _by_class(held, classes_G, config)
    start = [
        layer.expand(len(classes_G), *layer.shape[1:]) for layers in shared for layer in layers
    ]
    parameters = [layer.clone().requires_grad_() for layer in start]
    optimizer = torch.optim.Adam(parameters, lr=config.classwise_learning_rate)
    shared_loss_G = _class_losses(parameters, held_batch, config.loss).detach()
    best_loss_G, best = shared_loss_G, [layer.detach().clone() for layer in parameters]
    for _ in range(config.classwise_epochs):
        pull = sum((now - then).square().sum() for now, then in zip(parameters, start, strict=True))
        loss = _class_losses(parameters, batch, config.loss).sum() + config.classwise_pull * pull
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        held_loss_G = _class_losses(parameters, held_batch, config.loss).detach()
        better_G = held_loss_G < best_loss_G
        best_loss_G = torch.where(better_G, held_loss_G, best_loss_G)
        for kept, layer in zip(best, parameters, strict=True):
            kept[better_G] = layer.detach()[better_G]
    num_layers = len(shared[0])
    return (best[:num_layers], best[num_layers:]), best_loss_G < shared_loss_G


@dataclass(frozen=True, kw_only=True, slots=True)
class _ClassBatch:
    features_GBF: Tensor
    boxes_GBM4: Tensor
    mask_GB: Tensor


def _by_class(data: ScoredImages, classes_G: Tensor, config: LocalizerConfig) -> _ClassBatch:
    """Return the images of each class side by side, padded to the largest class."""
    members = [(data.classes_N == one).nonzero()[:, 0] for one in classes_G]
    index_GB = nn.utils.rnn.pad_sequence(members, batch_first=True, padding_value=-1)
    features = normalize_scores(data.scores_NF, config.normalization)
    return _ClassBatch(
        features_GBF=features[index_GB],
        boxes_GBM4=data.boxes_NM4[index_GB],
        mask_GB=(index_GB >= 0).float(),
    )


def _class_losses(parameters: list[Tensor], batch: _ClassBatch, loss: str) -> Tensor:
    """Return the mean loss of each class under its own regressor, (G,)."""
    num_layers = len(parameters) // 2
    x = batch.features_GBF
    for i in range(num_layers):
        x = torch.baddbmm(parameters[num_layers + i][:, None], x, parameters[i].transpose(1, 2))
        x = x if i == num_layers - 1 else torch.relu(x)
    losses_GB = box_loss(x, batch.boxes_GBM4, loss)
    return (losses_GB * batch.mask_GB).sum(1) / batch.mask_GB.sum(1)


def fit_confidence(evidence_NE: Tensor, hits_N: Tensor) -> Tensor:
    """Return the logistic regression of hits on evidence: (3, E) mean, scale and weight.

    A unit Gaussian prior on the weights keeps it finite when all boxes hit or miss.
    """
    mean, scale = evidence_NE.mean(0), evidence_NE.std(0, correction=0)
    mean[0], scale[0] = 0.0, 1.0  # the constant
    scale = torch.where(scale > 1e-6, scale, torch.ones(()))
    inputs_NE, targets_N = (evidence_NE - mean) / scale, hits_N.float()
    weight = torch.zeros(evidence_NE.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(
            inputs_NE @ weight, targets_N, reduction="sum"
        )
        loss = loss + 0.5 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return torch.stack([mean, scale, weight.detach()])
