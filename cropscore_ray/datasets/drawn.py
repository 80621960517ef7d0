"""An image set drawn from a seed: textured shapes on clutter, with their true boxes.

A class is a shape and a texture, and each shape and each texture belongs to two
classes, so that a piece of an object tells less than the whole. Textures scale with
the object. Distractors wear the classes' textures on outlines of no class. This
module knows nothing of manifests: it leaves files and a CSV for the csv reader.
"""

import colorsys
import csv
import io
from collections.abc import Callable, Iterable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cropscore_ray import storage
from cropscore_ray.schema import SIDES

# A cycle through four shapes and four textures; stripes and rings, which look alike
# in a small piece, never share a shape.
_TEXTURE_AND_SHAPE = (
    ("striped", "disc"),
    ("dotted", "disc"),
    ("dotted", "box"),
    ("ringed", "box"),
    ("ringed", "triangle"),
    ("checkered", "triangle"),
    ("checkered", "star"),
    ("striped", "star"),
)
CLASS_NAMES = tuple(f"{texture}-{shape}" for texture, shape in _TEXTURE_AND_SHAPE)
CSV_COLUMNS = ("image", "label", "width", "height", *SIDES, "split")

SIDE_RANGE_PX = (96, 192)
OBJECT_FRACTION = (0.2, 0.9)  # of the image's sides, each side drawn freely
TWIN_FRACTION = (0.2, 0.5)  # the same where two objects must find room
DISTRACTOR_FRACTION = (0.08, 0.18)
TWIN_SHARE = 0.1
JPEG_QUALITY = 90

Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]
Texture = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.bool_]]


def draw_image(rng: Generator, class_index: int) -> tuple[Image.Image, list[Box]]:
    """Draw an image with one or two objects of a class, given by its position in CLASS_NAMES.

    Returns:
        The RGB image and its box_xyxy in whole pixels, half-open: exactly the extent of
        the drawn pixels. Objects do not overlap one another.
    """
    texture, shape = _TEXTURE_AND_SHAPE[class_index]
    canvas = draw_clutter(rng)
    boxes = [
        paint(canvas, place, _outline(rng, shape), _texture(rng, texture), _vivid(rng))
        for place in _object_places(rng, canvas.size)
    ]
    return canvas, boxes


def draw_image_set(
    folder_uri: str,
    *,
    num_train: int,
    num_val: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Draw an image set into a folder: images/{train,val}/CLASS/NUMBER.jpg and labels.csv.

    Classes take turns. An image depends on the seed, its split and its number alone, so
    a longer set begins with the shorter one, and the same seed gives the same bytes. Files of
    the same names are replaced. After each image `progress` is called with the number drawn so
    far and the total.

    Returns:
        The URI of labels.csv: CSV_COLUMNS, one row per box, `image` relative to the folder.
        It is written last, so that it names no file that is not there.
    """
    rows: list[tuple[str | int, ...]] = []
    splits = ["train"] * num_train + ["val"] * num_val
    for done, split in enumerate(splits):
        number = done if split == "train" else done - num_train
        label = CLASS_NAMES[number % len(CLASS_NAMES)]
        rng = np.random.default_rng([seed, int(split == "val"), number])
        image, boxes = draw_image(rng, number % len(CLASS_NAMES))
        name = f"images/{split}/{label}/{number:06d}.jpg"
        storage.write_bytes(storage.join(folder_uri, name), _jpeg(image))
        rows += [(name, label, *image.size, *box, split) for box in boxes]
        if progress:
            progress(done + 1, len(splits))
    labels_uri = storage.join(folder_uri, "labels.csv")
    storage.write_bytes(labels_uri, _csv(rows))
    return labels_uri


def draw_clutter(rng: Generator) -> Image.Image:
    """Draw a background without any object: clouds, grain, lines, blobs, distractors."""
    width, height = (int(side) for side in rng.integers(*SIDE_RANGE_PX, size=2, endpoint=True))
    tint_C = rng.uniform(70, 190) + rng.uniform(-35, 35, 3)
    clouds_HWC = tint_C + rng.uniform(-45, 45, (*rng.integers(2, 7, 2), 3))
    clouds = Image.fromarray(clouds_HWC.clip(0, 255).astype(np.uint8))
    canvas = clouds.resize((width, height), Image.Resampling.BICUBIC)
    _draw_strokes(rng, canvas)
    grain = rng.standard_normal((height, width, 1), np.float32) * rng.uniform(2, 14)
    canvas = Image.fromarray((np.asarray(canvas) + grain).clip(0, 255).astype(np.uint8))
    for _ in range(rng.integers(2, 6)):
        place = _place(rng, canvas.size, DISTRACTOR_FRACTION)
        texture = _texture(rng, str(rng.choice(list(_TEXTURES))))
        paint(canvas, place, _outline(rng, "splinter"), texture, _vivid(rng))
    return canvas


def paint(
    canvas: Image.Image,
    place: Box,
    outline_V2: NDArray[np.float64],
    texture: Texture,
    colours: tuple[Colour, Colour],
) -> Box:
    """Paint a textured polygon onto an RGB image, in place.

    Args:
        canvas: the image.
        place: the box that the polygon is to fill, inside the image.
        outline_V2: the polygon's corners in the unit square.
        texture: says which pixels are light, from their x and y, -1 to 1 across the place.
        colours: light and dark.

    Returns:
        The tight half-open box of the pixels that were painted.
    """
    left, top, right, bottom = place
    width, height = right - left, bottom - top
    mask = Image.new("L", (width, height))
    corners = outline_V2 * (width - 1, height - 1)  # the far corner is the last pixel inside
    ImageDraw.Draw(mask).polygon([(x, y) for x, y in corners.tolist()], fill=255)
    x_HW, y_HW = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    light, dark = np.array(colours, np.float64)
    pixels_HWC = np.where(texture(x_HW, y_HW)[..., None], light, dark)
    pixels_HWC *= (0.9 - 0.1 * (x_HW + y_HW) / 2)[..., None]  # lit from the upper left
    canvas.paste(Image.fromarray(pixels_HWC.astype(np.uint8)), (left, top), mask)
    box = mask.getbbox()
    assert box is not None, "a place has at least one pixel"
    return (left + box[0], top + box[1], left + box[2], top + box[3])


def _object_places(rng: Generator, size: tuple[int, int]) -> list[Box]:
    if rng.random() >= TWIN_SHARE:
        return [_place(rng, size, OBJECT_FRACTION)]
    first = _place(rng, size, TWIN_FRACTION)
    for _ in range(20):
        second = _place(rng, size, TWIN_FRACTION)
        if _are_apart(first, second):
            return [first, second]
    return [first]


def _are_apart(a: Box, b: Box) -> bool:
    return a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


def _place(rng: Generator, size: tuple[int, int], fraction: tuple[float, float]) -> Box:
    width, height = (round(side * rng.uniform(*fraction)) for side in size)
    left, top = rng.integers(size[0] - width + 1), rng.integers(size[1] - height + 1)
    return (int(left), int(top), int(left) + width, int(top) + height)


def _outline(rng: Generator, shape: str) -> NDArray[np.float64]:
    """Return the corners (V, 2) of a turned shape, stretched to fill the unit square."""
    num_corners, inner_radius, turn = {
        "disc": (48, 1.0, 0.0),
        "box": (4, 1.0, np.pi / 4 + rng.uniform(-0.25, 0.25)),
        "triangle": (3, 1.0, rng.uniform(0, 2 * np.pi)),
        "star": (10, 0.45, rng.uniform(0, 2 * np.pi)),
        "splinter": (7, 1.0, rng.uniform(0, 2 * np.pi)),
    }[shape]
    radii = np.where(np.arange(num_corners) % 2, inner_radius, 1.0)
    if shape == "splinter":  # ragged, so that it is like none of the classes
        radii = rng.uniform(0.25, 1.0, num_corners)
    angles = turn + np.arange(num_corners) * 2 * np.pi / num_corners
    corners = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    corners -= corners.min(axis=0)
    return np.asarray(corners / corners.max(axis=0))


_TEXTURES: dict[str, Texture] = {
    "striped": lambda x, y: np.asarray(x % 1 < 0.5),
    "checkered": lambda x, y: np.asarray((x % 1 < 0.5) ^ (y % 1 < 0.5)),
    "dotted": lambda x, y: np.asarray((x % 1 - 0.5) ** 2 + (y % 1 - 0.5) ** 2 < 0.32**2),
    "ringed": lambda x, y: np.asarray(np.hypot(x, y) % 1 < 0.5),
}


def _texture(rng: Generator, name: str) -> Texture:
    """Return a texture at a random turn, with 2.5 to 4 periods across the object."""
    pattern, turn = _TEXTURES[name], rng.uniform(0, np.pi)
    half_periods = rng.uniform(1.25, 2.0)
    phase_x, phase_y = (0.0, 0.0) if name == "ringed" else rng.uniform(0, 1, 2)
    cos, sin = np.cos(turn) * half_periods, np.sin(turn) * half_periods
    return lambda x, y: pattern(x * cos + y * sin + phase_x, y * cos - x * sin + phase_y)


def _vivid(rng: Generator) -> tuple[Colour, Colour]:
    hue = rng.random()
    light = (hue, rng.uniform(0.2, 0.9), rng.uniform(0.85, 1.0))
    dark = (hue + rng.uniform(0.2, 0.8), rng.uniform(0.5, 1.0), rng.uniform(0.1, 0.5))
    return _rgb(light), _rgb(dark)


def _rgb(hsv: tuple[float, float, float]) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(*hsv)
    return (round(255 * red), round(255 * green), round(255 * blue))


def _draw_strokes(rng: Generator, canvas: Image.Image) -> None:
    """Draw muted blobs and lines."""
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(3, 9)):
        draw.ellipse(_place(rng, canvas.size, (0.05, 0.4)), fill=_muted(rng))
    for _ in range(rng.integers(4, 12)):
        ends = rng.uniform(-0.1, 1.1, (2, 2)) * canvas.size
        draw.line([(x, y) for x, y in ends.tolist()], _muted(rng), int(rng.integers(1, 5)))


def _muted(rng: Generator) -> Colour:
    return _rgb((rng.random(), rng.uniform(0.0, 0.4), rng.uniform(0.2, 0.85)))


def _jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def _csv(rows: Iterable[tuple[str | int, ...]]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows(rows)
    return stream.getvalue().encode()
