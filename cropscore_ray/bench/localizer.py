"""All classes' last layers in one stack against a loop over classes."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from cropscore_ray.bench.measuring import Run
from cropscore_ray.config.sections import LocalizerConfig
from cropscore_ray.models.boxes import NO_BOX
from cropscore_ray.training.localizer.classwise import Hidden, fine_tune
from cropscore_ray.training.objectives.boxes import box_loss

NUM_CLASSES = 1000
_SEED = 14
_TRUE_BOXES = 3  # places for so many an image; most images have a single true box


def contestants(
    num_images: int, config: LocalizerConfig, device: torch.device
) -> tuple[dict[str, Run], float]:
    """Return the two ways for 1,000 classes of so many training images, and how they differ.

    Returns:
        the runs, each of which trains every class; and the largest difference between
        their weights.
    """
    train = _images(num_images, _SEED, device)
    choosing = _images(max(2, round(num_images * config.held_back_fraction)), _SEED + 1, device)
    generator = torch.Generator().manual_seed(_SEED)
    shared_4H = 0.02 * torch.randn(4, train.hidden_NH.shape[1], generator=generator).to(device)
    arguments = (shared_4H, train, choosing, torch.arange(NUM_CLASSES, device=device), config)
    stacked, looped = fine_tune(*arguments)[0], fine_tune_in_a_loop(*arguments)[0]

    def run(way: Callable[..., tuple[Tensor, Tensor]]) -> int:
        way(*arguments)[1].cpu()  # and so wait for the device
        return NUM_CLASSES

    ways = {"loop": fine_tune_in_a_loop, "stacked": fine_tune}
    runs: dict[str, Run] = {name: partial(run, way) for name, way in ways.items()}
    return runs, float((stacked - looped).abs().max())


def fine_tune_in_a_loop(
    shared_4H: Tensor, train: Hidden, choosing: Hidden, classes_G: Tensor, config: LocalizerConfig
) -> tuple[Tensor, Tensor]:
    """Do what `fine_tune` does class by class: the reference, and the slow way."""
    heads, gained = [], []
    for class_index in classes_G.tolist():
        own = [(data, data.classes_N == class_index) for data in (train, choosing)]
        mine, others = ((data.hidden_NH[is_own], data.boxes_NM4[is_own]) for data, is_own in own)
        last = nn.Linear(shared_4H.shape[1], 4, bias=False)
        last.weight = nn.Parameter(shared_4H.clone())
        optimizer = torch.optim.Adam(last.parameters(), lr=config.classwise_learning_rate)
        with torch.no_grad():
            before = best_loss = float(box_loss(last(others[0]), others[1], config.loss).mean())
        best = shared_4H
        for _ in range(config.classwise_epochs):
            loss = box_loss(last(mine[0]), mine[1], config.loss).mean()
            loss = loss + config.classwise_pull * (last.weight - shared_4H).square().sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                loss_chosen_by = float(box_loss(last(others[0]), others[1], config.loss).mean())
            if loss_chosen_by < best_loss:
                best_loss, best = loss_chosen_by, last.weight.detach().clone()
        heads.append(best)
        gained.append(best_loss < before)
    return torch.stack(heads), torch.tensor(gained)


def _images(num_a_class: int, seed: int, device: torch.device) -> Hidden:
    """Return images of 256 hidden outputs, half of them 0 as after ReLU, and their boxes."""
    generator = torch.Generator().manual_seed(seed)
    num_images = NUM_CLASSES * num_a_class
    hidden_NH = torch.randn(num_images, 257, generator=generator).relu()
    hidden_NH[:, -1] = 1.0
    boxes_NM4 = torch.full((num_images, _TRUE_BOXES, 4), NO_BOX)
    low_N2, sides_N2 = torch.rand(2, num_images, 2, generator=generator) / 2
    boxes_NM4[:, 0] = torch.cat([low_N2, low_N2 + sides_N2], 1)
    return Hidden(
        hidden_NH=hidden_NH.to(device),
        classes_N=torch.arange(num_images, device=device) % NUM_CLASSES,
        boxes_NM4=boxes_NM4.to(device),
    )
