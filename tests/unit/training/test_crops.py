"""Training crops: where they lie, what they ask for, and that chance follows the seed."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F  # noqa: N812

from cropscore_ray import grid
from cropscore_ray.config.sections import ClassifierConfig, PreprocessConfig, ScorerConfig
from cropscore_ray.errors import DataError, ImageError, StorageError
from cropscore_ray.images import fetch
from cropscore_ray.training.data.crops import (
    CropDataset,
    classifier_sampler,
    relit,
    scorer_sampler,
    square_overlaps,
)
from cropscore_ray.training.data.images import LabelledImages, Request, at_least_one_pixel
from cropscore_ray.training.data.regions import PyramidDataset, covering_cells, sample_region
from cropscore_ray.training.objectives.crops import Calibration, crop_losses, fit_calibration

PREPROCESS = PreprocessConfig(input_px=32, frame_px=36)
NO_BOXES = np.zeros((0, 4))


@st.composite
def unit_boxes(draw: st.DrawFn) -> np.ndarray:
    sides = [sorted(draw(st.tuples(*[st.integers(0, 40)] * 2))) for _ in range(2)]
    (left, right), (top, bottom) = [(low, max(high, low + 1)) for low, high in sides]
    return np.array([[left, top, right, bottom]]) / 41.0


def assert_inside(crop: np.ndarray) -> None:
    assert crop.min() >= 0
    assert crop.max() <= 1 + 1e-12
    assert (crop[2:] > crop[:2]).all()


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), least=st.floats(0.01, 1.0))
def test_classifier_crops_stay_inside_and_are_large_enough(seed: int, least: float) -> None:
    sample = classifier_sampler(ClassifierConfig(min_area_fraction=least))
    crop, overlap = sample(np.random.default_rng(seed), NO_BOXES)
    assert_inside(crop)
    width, height = crop[2:] - crop[:2]
    # A crop that is wider than the image loses what stands out: at most 1 - sqrt(3 / 4).
    assert width * height >= least * math.sqrt(3 / 4) - 1e-9
    assert math.isnan(overlap)


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), boxes=unit_boxes(), share=st.sampled_from((0.0, 0.5, 1.0)))
def test_scorer_crops_stay_inside(seed: int, boxes: np.ndarray, share: float) -> None:
    sample = scorer_sampler(ScorerConfig(grid_fraction=share))
    crop, overlap = sample(np.random.default_rng(seed), boxes)
    assert_inside(crop)
    if share == 1:
        [chosen] = np.flatnonzero((grid.unit_squares() == crop).all(axis=1))
        assert overlap == square_overlaps(boxes)[chosen]
    if share == 0:
        assert math.isnan(overlap)


def test_without_chance_a_box_crop_is_the_box_and_its_margin() -> None:
    config = ScorerConfig(grid_fraction=0, jitter_fraction=0, context_fraction=0.25)
    box = np.array([[0.25, 0.5, 0.5, 0.9]])
    crop, _ = scorer_sampler(config)(np.random.default_rng(0), box)
    np.testing.assert_allclose(crop, [0.1875, 0.4, 0.5625, 1.0])


def test_squares_of_all_overlaps_are_drawn() -> None:
    rng = np.random.default_rng(0)
    sample = scorer_sampler(ScorerConfig(grid_fraction=1))
    box = np.array([[1, 1, 4, 4]]) / 7
    overlaps = [sample(rng, box)[1] for _ in range(400)]
    counts, _ = np.histogram(overlaps, bins=4, range=(0, 1))
    assert counts.min() > 40  # uniform draws of squares give the upper quarter 10


def slow_overlap(square: tuple[int, int, int, int], box: tuple[int, int, int, int]) -> float:
    """Count cells one by one."""

    def cells(one: tuple[int, int, int, int]) -> set[tuple[int, int]]:
        return {(x, y) for x in range(one[0], one[2]) for y in range(one[1], one[3])}

    shared = len(cells(square) & cells(box))
    return math.sqrt(shared / len(cells(box)) * shared / len(cells(square)))


def test_square_overlaps_equal_counted_cells() -> None:
    boxes = [(1, 2, 4, 3), (5, 0, 7, 6)]
    slow = []
    for k, row, column in grid.square_cells().tolist():
        square = (column, row, column + k, row + k)
        slow.append(max(slow_overlap(square, box) for box in boxes))
    np.testing.assert_allclose(square_overlaps(np.array(boxes) / 7), slow, atol=1e-12)


def test_a_square_that_is_the_box_overlaps_fully() -> None:
    overlaps = square_overlaps(np.array([[2, 3, 4, 5]]) / 7)
    assert np.isclose(overlaps, 1).sum() == 1
    assert overlaps.max() <= 1 + 1e-12
    assert (overlaps == 0).any()


@pytest.fixture
def dataset(tmp_path: Path) -> CropDataset:
    """Five images of one grey each; the third and fourth cannot be read."""
    uris = []
    for i in range(5):
        path = tmp_path / f"{i}.png"
        if i < 2 or i == 4:
            Image.new("RGB", (20, 10), (50 * i, 50 * i, 50 * i)).save(path)
        if i == 2:
            path.write_bytes(b"no image")
        uris.append(str(path))
    labelled = LabelledImages(uris=uris, classes=np.arange(5), boxes=[NO_BOXES] * 5)
    return CropDataset(labelled, classifier_sampler(ClassifierConfig()), PREPROCESS, seed=3)


def grey_of(crop: Tensor) -> int:
    return round(float(crop[..., 0].float().mean()))


def test_an_item_is_a_crop_with_its_class(dataset: CropDataset) -> None:
    item = dataset[Request(1, 0)]
    assert item["crop"].shape == (32, 32, 3)
    assert item["crop"].dtype == torch.uint8
    assert grey_of(item["crop"]) == 50
    assert (item["class_index"], item["num_failed"]) == (1, 0)
    assert math.isnan(item["overlap"])


def test_an_unreadable_image_is_replaced_by_the_next_and_counted(dataset: CropDataset) -> None:
    for index, failed in ((2, 2), (3, 1)):
        item = dataset[Request(index, 0)]
        assert (item["class_index"], item["num_failed"]) == (4, failed)
        assert grey_of(item["crop"]) == 200


@pytest.mark.parametrize("status", ["unreachable", "throttled"])
def test_a_storage_that_fails_replaces_no_image(
    dataset: CropDataset, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    def fetch_image(uri: str) -> bytes:
        raise ImageError(status, f"{uri}: no answer")

    monkeypatch.setattr(fetch, "fetch_image", fetch_image)
    with pytest.raises(StorageError, match=rf"an image is {status}: .*0\.png: no answer"):
        dataset[Request(0, 0)]


def test_images_that_can_none_be_read_end_the_training(dataset: CropDataset) -> None:
    dataset.data.uris[:] = [f"{uri}.gone" for uri in dataset.data.uris]
    with pytest.raises(DataError, match="100 training images in a row"):
        dataset[Request(0, 0)]


def test_an_item_follows_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    labelled = LabelledImages(
        uris=[str(tmp_path / "noise.png")] * 6,
        classes=np.zeros(6, np.int64),
        boxes=[np.array([[5.0, 5, 25, 35]])] * 6,
    )
    sampler = scorer_sampler(ScorerConfig())

    def item(seed: int, epoch: int, index: int) -> Tensor:
        dataset = CropDataset(labelled, sampler, PREPROCESS, seed)
        for earlier in range(epoch):  # what was drawn before must not matter
            dataset[Request(0, earlier)]
        crop: Tensor = dataset[Request(index, epoch)]["crop"]
        return crop

    assert torch.equal(item(1, 2, 3), item(1, 2, 3))
    others = [item(1, 2, 4), item(1, 1, 3), item(2, 2, 3)]
    assert not any(torch.equal(item(1, 2, 3), other) for other in others)


def test_a_box_thinner_than_a_pixel_is_widened_into_the_image() -> None:
    assert at_least_one_pixel(np.array([9.8, 2.0, 10.0, 2.2]), 10, 5).tolist() == [9, 2, 10, 3]
    assert at_least_one_pixel(np.array([0, 0, 1.0, 1]), 1, 1).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("box", "cells"),
    [
        ([0, 0, 1, 1], [7, 7, 0, 0]),
        ([1 / 7, 2 / 7, 3 / 7, 3 / 7], [1, 2, 2, 1]),  # whole cells stay what they are
        ([0.15, 0.3, 0.4, 0.4], [1, 2, 2, 1]),
        ([0.99, 0.99, 1, 1], [1, 1, 6, 6]),
        ([0.5, 0.5, 0.5, 0.5], [1, 1, 3, 3]),
    ],
)
def test_covering_cells_hold_the_box(box: list[float], cells: list[int]) -> None:
    assert covering_cells(np.array(box)).tolist() == cells


@settings(max_examples=50)
@given(
    seed=st.integers(0, 10_000),
    boxes=unit_boxes(),
    level=st.integers(0, 2),
    share=st.sampled_from((0.0, 0.5, 1.0)),
)
def test_a_region_is_a_square_with_its_overlap_or_the_objects_cells(
    seed: int, boxes: np.ndarray, level: int, share: float
) -> None:
    config = ScorerConfig(grid_fraction=share)
    cells, overlap = sample_region(np.random.default_rng(seed), boxes, level, config)
    assert math.isnan(overlap) or share > 0
    assert share == 0 or grid.level_of(cells[None]).tolist() == [level]
    if math.isnan(overlap):
        assert share < 1
        assert cells.tolist() == covering_cells(boxes[0]).tolist()
    else:
        [chosen] = np.flatnonzero((grid.square_rectangles() == cells).all(axis=1))
        assert overlap == pytest.approx(square_overlaps(boxes)[chosen])


@pytest.fixture
def pyramid(tmp_path: Path) -> PyramidDataset:
    """One image whose left half is white, with a box around that half."""
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:, :20] = 255
    Image.fromarray(pixels).save(tmp_path / "half.png")
    labelled = LabelledImages(
        uris=[str(tmp_path / "half.png")],
        classes=np.array([3]),
        boxes=[np.array([[0.0, 0, 20, 40]])],
    )
    config = ScorerConfig(grid_fraction=1.0, level_shares=(0.0, 0.5, 0.5))
    return PyramidDataset(labelled, config, PREPROCESS, seed=1, stride=8)


@pytest.mark.parametrize(("level", "side"), [(0, 56), (1, 112), (2, 224)])
def test_a_pyramids_item_is_a_whole_image_with_regions(
    pyramid: PyramidDataset, level: int, side: int
) -> None:
    item = pyramid[Request(0, 0, level)]
    assert item["crop"].shape == (side, side, 3)
    assert item["regions"].shape == (8, 7, 7)
    torch.testing.assert_close(item["regions"].sum((1, 2)), torch.ones(8))
    assert item["class_index"].tolist() == [3] * 8
    assert item["overlap"].shape == (8,)


def test_a_mirrored_image_has_mirrored_regions(pyramid: PyramidDataset) -> None:
    sides = set()
    for epoch in range(12):
        item = pyramid[Request(0, epoch, 1)]
        is_mirrored = int(item["crop"][0, 0, 0]) == 0
        sides.add(is_mirrored)
        white = torch.linspace(0, 7, 8)[:-1] + 0.5  # cells' centres; the object ends at 3.5
        inside = (white > 3.5 if is_mirrored else white < 3.5).float()
        inside[3] = 0.5
        purity = (item["regions"].sum(1) * inside).sum(1)
        # Regions without any white have no overlap, and the others have some.
        assert torch.equal(purity > 0, item["overlap"] > 0)
    assert sides == {True, False}


def test_all_images_of_a_step_are_at_one_level(pyramid: PyramidDataset) -> None:
    levels = [pyramid.request(0, 0, step).level for step in range(200)]
    assert [pyramid.request(5, 0, step).level for step in range(200)] == levels
    assert [pyramid.request(0, 1, step).level for step in range(200)] != levels
    assert set(levels) == {1, 2}
    assert 60 < levels.count(1) < 140


def test_light_changes_by_hand() -> None:
    crop = torch.tensor([[[[100, 100, 100], [200, 0, 0]]]], dtype=torch.uint8)  # grey 100, 59.8
    changed = {
        factors: relit(crop, torch.tensor([factors]))[0, 0].tolist()
        for factors in [(1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.5)]
    }
    assert changed[1.0, 1.0, 1.0] == crop[0, 0].tolist()
    assert changed[2.0, 1.0, 1.0] == [[200, 200, 200], [255, 0, 0]]
    assert changed[1.0, 0.0, 1.0] == [pytest.approx([79.9] * 3)] * 2
    assert changed[1.0, 1.0, 0.5] == [[100] * 3, pytest.approx([129.9, 29.9, 29.9])]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_light_changes_as_torchvision_would_in_any_order(order: tuple[int, ...]) -> None:
    crops = torch.randint(90, 140, (5, 8, 6, 3), dtype=torch.uint8)
    light_N3 = torch.empty(5, 3).uniform_(0.7, 1.3)
    changes = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation]
    for crop, factors, found in zip(crops, light_N3, relit(crops, light_N3), strict=True):
        expected = crop.permute(2, 0, 1) / 255
        for at in order:
            expected = changes[at](expected, float(factors[at]))
        torch.testing.assert_close(
            found.permute(2, 0, 1) / 255, expected, rtol=0, atol=1e-3
        )  # its weights of grey have four digits


def test_each_crop_has_light_of_its_own(dataset: CropDataset) -> None:
    lit = CropDataset(dataset.data, dataset.sampler, PREPROCESS, dataset.seed, photometric=0.4)
    requests = [Request(image, epoch) for image in (0, 1, 4) for epoch in range(50)]
    assert "light" not in dataset[requests[0]]
    assert torch.equal(lit[requests[0]]["crop"], dataset[requests[0]]["crop"])
    light_N3 = np.stack([lit[one]["light"] for one in requests])
    assert len(np.unique(light_N3)) == light_N3.size
    assert 0.6 <= light_N3.min() < 0.65
    assert 1.35 < light_N3.max() <= 1.4


def log1pexp(x: float) -> float:
    return math.log1p(math.exp(x))


def test_crop_losses_by_hand() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    batch = {
        "class_index": torch.tensor([0, 1]),
        "overlap": torch.tensor([math.nan, 0.25], dtype=torch.float64),
    }
    class_loss = log1pexp(-1)  # softmax of (1, 0) gives class 0 1 / (1 + 1/e)
    # The square's own logit 2 becomes 0.5 * 2 - 2 = -1; its target is 0.25.
    overlap_loss = 0.25 * log1pexp(1) + 0.75 * log1pexp(-1)
    losses = crop_losses(logits, batch, 0.0, Calibration(scale=0.5, shift=-2.0))
    assert losses.tolist() == pytest.approx([class_loss, overlap_loss / 0.5], rel=1e-5)


def test_label_smoothing_asks_a_little_of_every_class() -> None:
    logits = torch.tensor([[1.0, 0.0]])
    batch = {"class_index": torch.tensor([0]), "overlap": torch.tensor([math.nan])}
    expected = 0.9 * log1pexp(-1) + 0.1 * log1pexp(1)  # 0.2 over two classes
    loss = crop_losses(logits, batch, 0.2, Calibration())
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_a_squares_loss_moves_its_own_logit_only() -> None:
    logits = torch.tensor([[3.0, 1.0, -2.0]], requires_grad=True)
    batch = {"class_index": torch.tensor([1]), "overlap": torch.tensor([0.1])}
    crop_losses(logits, batch, 0.1, Calibration()).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == [0, pytest.approx(1 / (1 + math.exp(-1)) - 0.1), 0]


def test_a_calibration_finds_a_known_logistic() -> None:
    logits = torch.linspace(-5, 15, 200)
    found = fit_calibration(logits, torch.sigmoid(0.4 * logits - 2))
    assert found.scale == pytest.approx(0.4, abs=1e-3)
    assert found.shift == pytest.approx(-2, abs=1e-2)


def test_no_squares_leave_the_logits_as_they_are() -> None:
    assert fit_calibration(torch.tensor([]), torch.tensor([])) == Calibration(scale=1, shift=0)


def test_a_network_that_knows_nothing_still_gets_a_positive_scale() -> None:
    logits = torch.linspace(-1, 1, 50)
    assert fit_calibration(logits, torch.sigmoid(-logits)).scale > 0
    assert fit_calibration(torch.zeros(3), torch.tensor([0.2, 0.3, 0.4])).scale > 0
