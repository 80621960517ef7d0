"""The drawn image set: exact boxes, the same bytes from the same seed, a hard constant box."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from cropscore_ray.datasets.drawn import (
    CLASS_NAMES,
    CSV_COLUMNS,
    SIDE_RANGE_PX,
    Box,
    draw_clutter,
    draw_image,
    draw_image_set,
    paint,
)
from cropscore_ray.geometry import iou

SQUARE = np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
COLOURS = ((255, 255, 255), (100, 100, 100))


def tight_box(mask_HW: np.ndarray) -> Box:
    ys, xs = np.nonzero(mask_HW)
    return (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def mask_of(box: Box, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def draw_many(num_images: int) -> list[tuple[Image.Image, list[Box]]]:
    return [draw_image(np.random.default_rng([7, i]), i % 8) for i in range(num_images)]


def all_light(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.ones(x.shape, bool)


def left_is_light(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x < 0


def test_a_painted_square_fills_its_place_to_the_pixel() -> None:
    canvas = Image.new("RGB", (20, 16))
    box = paint(canvas, (3, 5, 9, 12), SQUARE, all_light, COLOURS)
    painted = np.asarray(canvas).sum(axis=2) > 0
    assert box == (3, 5, 9, 12)
    assert painted.sum() == 6 * 7
    assert painted[5:12, 3:9].all()


def test_a_texture_decides_between_light_and_dark() -> None:
    canvas = Image.new("RGB", (8, 8))
    paint(canvas, (0, 0, 8, 8), SQUARE, left_is_light, COLOURS)
    pixels = np.asarray(canvas)[..., 0].astype(int)
    assert pixels[:, :4].min() > pixels[:, 4:].max()


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.sampled_from(range(len(CLASS_NAMES))))
def test_boxes_are_tight_around_the_pixels_that_differ_from_the_clutter(
    seed: int, class_index: int
) -> None:
    clutter = draw_clutter(np.random.default_rng(seed))
    image, boxes = draw_image(np.random.default_rng(seed), class_index)
    drawn = np.asarray(ImageChops.difference(image, clutter)).any(axis=2)
    masks = [mask_of(box, drawn.shape) for box in boxes]
    assert [tight_box(drawn & mask) for mask in masks] == boxes
    assert not (drawn & ~np.any(masks, axis=0)).any()


def test_images_have_free_sides_and_boxes_inside_them() -> None:
    images = draw_many(100)
    sides = np.array([image.size for image, _ in images])
    assert sides.min() >= SIDE_RANGE_PX[0]
    assert sides.max() <= SIDE_RANGE_PX[1]
    assert (sides[:, 0] / sides[:, 1]).std() > 0.2
    for image, boxes in images:
        for left, top, right, bottom in boxes:
            assert 0 <= left < right <= image.width
            assert 0 <= top < bottom <= image.height


def test_about_one_image_in_ten_has_two_objects_that_do_not_overlap() -> None:
    images = draw_many(300)
    counts = [len(boxes) for _, boxes in images]
    assert set(counts) == {1, 2}
    assert 10 <= counts.count(2) <= 50
    for _, boxes in images:
        assert iou(boxes, boxes).sum() == pytest.approx(len(boxes))


def test_no_constant_box_gets_four_images_in_ten() -> None:
    steps = np.arange(0, 1.01, 0.1)
    sides = np.array([(a, b) for a in steps for b in steps if b > a + 0.25])
    constant = np.array([(x[0], y[0], x[1], y[1]) for x in sides for y in sides])
    hits = np.zeros(len(constant))
    images = draw_many(300)
    for image, boxes in images:
        scaled = np.array(boxes) / (*image.size, *image.size)
        hits += iou(constant, scaled).max(axis=1) >= 0.5
    assert hits.max() / len(images) < 0.4


def test_every_class_looks_different_from_the_same_randomness() -> None:
    drawn = [draw_image(np.random.default_rng(3), i)[0].tobytes() for i in range(8)]
    assert len(set(drawn)) == len(CLASS_NAMES) == 8


def test_each_shape_and_each_texture_belongs_to_two_classes() -> None:
    words = [word for name in CLASS_NAMES for word in name.split("-")]
    assert {words.count(word) for word in words} == {2}


def read_rows(labels_uri: str) -> list[dict[str, str]]:
    with open(labels_uri, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_csv_tells_of_every_image_and_box(tmp_path: Path) -> None:
    labels_uri = draw_image_set(str(tmp_path), num_train=24, num_val=8, seed=1)
    rows = read_rows(labels_uri)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jpg")}
    assert tuple(rows[0]) == CSV_COLUMNS
    assert {row["image"] for row in rows} == files
    assert len(files) == 32
    for row in rows:
        with Image.open(tmp_path / row["image"]) as image:
            assert image.format == "JPEG"
            assert image.size == (int(row["width"]), int(row["height"]))
        assert row["image"].startswith(f"images/{row['split']}/{row['label']}/")


def test_classes_take_turns_in_each_split(tmp_path: Path) -> None:
    rows = read_rows(draw_image_set(str(tmp_path), num_train=16, num_val=8, seed=1))
    for split, count in (("train", 2), ("val", 1)):
        images = {(row["image"], row["label"]) for row in rows if row["split"] == split}
        labels = [label for _, label in images]
        assert {labels.count(name) for name in CLASS_NAMES} == {count}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        draw_image_set(str(tmp_path / name), num_train=4, num_val=2, seed=seed)
    first = bytes_of(tmp_path / "a")
    assert first == bytes_of(tmp_path / "b")
    assert len(first) == 7
    assert first != bytes_of(tmp_path / "c")


def test_a_longer_set_begins_with_the_shorter_and_splits_differ(tmp_path: Path) -> None:
    draw_image_set(str(tmp_path / "short"), num_train=2, num_val=2, seed=1)
    draw_image_set(str(tmp_path / "long"), num_train=4, num_val=2, seed=1)
    short, long = bytes_of(tmp_path / "short"), bytes_of(tmp_path / "long")
    images = {name for name in short if name.endswith(".jpg")}
    assert len({short[name] for name in images}) == len(images) == 4
    assert all(long[name] == short[name] for name in images)


def test_progress_counts_to_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    draw_image_set(
        str(tmp_path), num_train=2, num_val=1, seed=1, progress=lambda *call: calls.append(call)
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_an_empty_set_is_a_csv_of_its_header(tmp_path: Path) -> None:
    assert read_rows(draw_image_set(str(tmp_path), num_train=0, num_val=0, seed=1)) == []
