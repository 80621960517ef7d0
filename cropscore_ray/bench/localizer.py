"""All classes' last layers in one stack against a loop over classes."""

from functools import partial

import torch

from cropscore_ray.bench.measuring import Run
from cropscore_ray.config.sections import LocalizerConfig
from cropscore_ray.models.boxes import NO_BOX
from cropscore_ray.training.localizer.classwise import Hidden, fine_tune, fine_tune_in_a_loop

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
    held_back = _images(max(2, round(num_images * config.held_back_fraction)), _SEED + 1, device)
    generator = torch.Generator().manual_seed(_SEED)
    shared_4H = 0.02 * torch.randn(4, train.hidden_NH.shape[1], generator=generator).to(device)
    arguments = (shared_4H, train, held_back, torch.arange(NUM_CLASSES, device=device), config)
    stacked, looped = fine_tune(*arguments)[0], fine_tune_in_a_loop(*arguments)[0]

    def run(way: partial[tuple[torch.Tensor, torch.Tensor]]) -> int:
        way()[1].cpu()  # and so wait for the device
        return NUM_CLASSES

    ways = {"loop": fine_tune_in_a_loop, "stacked": fine_tune}
    return (
        {name: partial(run, partial(way, *arguments)) for name, way in ways.items()},
        float((stacked - looped).abs().max()),
    )


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
