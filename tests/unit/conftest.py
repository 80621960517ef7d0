"""Fixtures of the unit tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute on one thread: on busy cores, threads of tiny networks wait for one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def draw_labelled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Draw images of some classes, and return them as a training reads them."""
    from cropscore_ray.datasets.drawn import draw_image
    from cropscore_ray.training.data.images import LabelledImages

    def draw(num_images: int, num_classes: int, seed: int) -> LabelledImages:
        folder: Path = tmp_path_factory.mktemp("drawn")
        uris, boxes = [], []
        for i in range(num_images):
            image, found = draw_image(np.random.default_rng((seed, i)), i % num_classes)
            image.save(folder / f"{i}.png")
            uris.append(str(folder / f"{i}.png"))
            boxes.append(np.array(found, np.float64))
        return LabelledImages(uris=uris, classes=np.arange(num_images) % num_classes, boxes=boxes)

    return draw
