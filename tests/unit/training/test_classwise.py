"""Class-wise fine-tuning: the batched stack against the plain loop over classes."""

import pytest
import torch

from cropscore_ray.bench.localizer import fine_tune_in_a_loop
from cropscore_ray.config.sections import LocalizerConfig
from cropscore_ray.models.boxes import NO_BOX
from cropscore_ray.training.localizer import classwise
from cropscore_ray.training.localizer.classwise import Hidden, fine_tune

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = LocalizerConfig(classwise_epochs=15, classwise_learning_rate=0.01)


def images(num_images: int, num_classes: int, seed: int) -> Hidden:
    """Hidden outputs from which a class's own layer can tell the box, and some second boxes."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.cat(
        [torch.rand(num_images, 12, generator=generator), torch.ones(num_images, 1)], 1
    )
    classes = torch.randint(num_classes, (num_images,), generator=generator)
    layers = 0.3 * torch.randn(num_classes, 4, 13, generator=torch.Generator().manual_seed(0))
    low, side = (layers[classes] @ hidden[..., None])[..., 0].chunk(2, 1)
    low, side = low.clamp(0, 0.5), 0.2 + side.abs().clamp(0, 0.3)
    boxes = torch.full((num_images, 2, 4), NO_BOX)
    boxes[:, 0] = torch.cat([low, low + side], 1)
    boxes[::3, 1] = 1 - boxes[::3, 0].flip(1)
    return Hidden(hidden_NH=hidden, classes_N=classes, boxes_NM4=boxes)


@pytest.mark.parametrize("loss", ["euclidean", "l2", "l1", "giou"])
@pytest.mark.parametrize("rows_at_once", [1, 60, 4096])  # a class, some classes, all in a group
def test_the_stack_equals_a_loop_over_classes(
    loss: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classwise, "_ROWS_AT_ONCE", rows_at_once)
    config = LocalizerConfig(loss=loss, classwise_epochs=15, classwise_learning_rate=0.01)
    train, held = images(150, 8, seed=1), images(80, 8, seed=2)
    shared = 0.1 * torch.randn(4, 13, generator=torch.Generator().manual_seed(3))
    classes = torch.tensor([5, 0, 1, 7, 3])
    heads, gained = fine_tune(shared, train, held, classes, config)
    expected, improved = fine_tune_in_a_loop(shared, train, held, classes, config)
    torch.testing.assert_close(heads, expected, atol=1e-4, rtol=0)
    assert gained.tolist() == improved.tolist()
    assert bool(gained.any())
    assert not torch.allclose(heads[gained], shared.expand_as(heads[gained]), atol=1e-3)


def test_a_class_that_does_not_gain_stays_what_it_was() -> None:
    train, held = images(60, 1, seed=1), images(30, 1, seed=2)
    # Judged by boxes that have nothing to do with what it learns.
    held = Hidden(
        hidden_NH=held.hidden_NH, classes_N=held.classes_N, boxes_NM4=torch.full((30, 1, 4), 5.0)
    )
    shared = torch.zeros(4, 13)
    shared[:, -1] = torch.tensor([0.9, 0.9, 1.0, 1.0])
    heads, gained = fine_tune(shared, train, held, torch.tensor([0]), CONFIG)
    assert gained.tolist() == [False]
    assert torch.equal(heads[0], shared)


def test_a_strong_pull_keeps_a_class_near_the_shared_layer() -> None:
    train, held = images(60, 2, seed=1), images(60, 2, seed=2)
    shared, classes = torch.zeros(4, 13), torch.arange(2)
    moved = [
        float((fine_tune(shared, train, held, classes, config)[0] - shared).abs().max())
        for config in (CONFIG, LocalizerConfig(classwise_pull=100.0, classwise_epochs=15))
    ]
    assert moved[1] < 0.1 * moved[0]
