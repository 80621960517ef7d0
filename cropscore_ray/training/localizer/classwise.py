"""A last layer of its own for each class, all classes at once.

The layers are one stack, trained by batched products: Adam is elementwise, so each class
takes the steps that a loop over classes would take, as in bench/localizer.

Shape suffixes: N images; H outputs of the hidden layers and a constant 1; M true boxes
(padded); G classes; B a class's images (padded).
"""
# ruff: noqa: N815 (fields that are arrays carry their shape suffix)

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cropscore_ray.config.sections import LocalizerConfig
from cropscore_ray.models.boxes import NO_BOX
from cropscore_ray.training.objectives.boxes import box_loss

_ROWS_AT_ONCE = 4096  # of 257 floats: 4 MB, which stay in a core's cache from step to step


@dataclass(frozen=True, kw_only=True, slots=True)
class Hidden:
    """Images as the hidden layers show them to the last one, with classes and true boxes."""

    hidden_NH: Tensor
    classes_N: Tensor
    boxes_NM4: Tensor

    def of_classes(self, classes_G: Tensor) -> "Hidden":
        """Return the images of some classes side by side, (G, B, …), padded to the largest."""
        order = self.classes_N.argsort(stable=True)
        sizes = torch.bincount(self.classes_N, minlength=int(classes_G.max()) + 1)
        by_class = torch.split(order, sizes.tolist())
        members = [by_class[class_index] for class_index in classes_G.tolist()]
        index_GB = nn.utils.rnn.pad_sequence(members, batch_first=True, padding_value=-1)
        is_there = (index_GB >= 0)[..., None, None]
        return Hidden(
            hidden_NH=self.hidden_NH[index_GB],
            classes_N=torch.where(index_GB >= 0, classes_G[:, None], -1),  # -1 for padding
            boxes_NM4=torch.where(is_there, self.boxes_NM4[index_GB], torch.tensor(NO_BOX)),
        )


def fine_tune(
    shared_4H: Tensor, train: Hidden, choosing: Hidden, classes_G: Tensor, config: LocalizerConfig
) -> tuple[Tensor, Tensor]:
    """Fine-tune a copy of the shared last layer for each class, all in batched steps.

    Full-batch Adam on the class's images with a pull towards the shared weights (L2-SP:
    Li et al. 2018); each class keeps the step with its lowest held-back loss.

    Returns:
        the layers, (G, 4, H), and which classes gained by them on their held-back images.
    """
    counts = torch.bincount(train.classes_N, minlength=int(classes_G.max()) + 1)[classes_G]
    by_size = counts.argsort(stable=True)  # classes of alike size need little padding
    heads_G4H = shared_4H.new_empty(len(classes_G), *shared_4H.shape)
    gained_G = torch.empty(len(classes_G), dtype=torch.bool, device=shared_4H.device)
    for group in _groups(by_size, counts):
        classes = classes_G[group]
        heads_G4H[group], gained_G[group] = _fine_tune_stack(
            shared_4H.expand(len(classes), -1, -1),
            train.of_classes(classes),
            choosing.of_classes(classes),
            config,
        )
    return heads_G4H, gained_G


def _groups(by_size: Tensor, counts: Tensor) -> list[Tensor]:
    """Cut the classes, smallest first, where a group's padded rows reach the limit."""
    sizes = counts[by_size].tolist()
    cuts, first = [], 0
    for at in range(1, len(sizes)):
        if (at + 1 - first) * sizes[at] > _ROWS_AT_ONCE:
            cuts.append(at)
            first = at
    return list(by_size.tensor_split(cuts))


def _fine_tune_stack(
    start_G4H: Tensor, train: Hidden, choosing: Hidden, config: LocalizerConfig
) -> tuple[Tensor, Tensor]:
    heads_G4H = start_G4H.clone().requires_grad_()
    optimizer = torch.optim.Adam([heads_G4H], lr=config.classwise_learning_rate)
    with torch.no_grad():
        shared_loss_G = _losses(heads_G4H, choosing, config.loss)
    best_loss_G, best_G4H = shared_loss_G, start_G4H.clone()
    for _ in range(config.classwise_epochs):
        pull = (heads_G4H - start_G4H).square().sum()
        loss = _losses(heads_G4H, train, config.loss).sum() + config.classwise_pull * pull
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            loss_G = _losses(heads_G4H, choosing, config.loss)
            better_G = loss_G < best_loss_G
            best_loss_G = torch.where(better_G, loss_G, best_loss_G)
            best_G4H = torch.where(better_G[:, None, None], heads_G4H, best_G4H)
    return best_G4H.detach(), best_loss_G < shared_loss_G


def _losses(heads_G4H: Tensor, batch: Hidden, loss: str) -> Tensor:
    """Return the mean loss of each class under its own layer, (G,)."""
    pred_GB4 = batch.hidden_NH @ heads_G4H.transpose(1, 2)
    is_there_GB = batch.classes_N >= 0
    losses_GB = box_loss(pred_GB4, batch.boxes_NM4, loss) * is_there_GB
    return losses_GB.sum(1) / is_there_GB.sum(1)
