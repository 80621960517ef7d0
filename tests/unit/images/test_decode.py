"""Decoding whatever lies in a bucket, and crops that are Pillow's."""

import contextlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from cropscore_ray.config.sections import PreprocessConfig
from cropscore_ray.errors import ImageError
from cropscore_ray.images.crop import Crops, crop, normalize, ten_crop_boxes
from cropscore_ray.images.decode import decode

SHARP = np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8)  # the hardest to resample
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pillow_crop(pixels: np.ndarray, box: tuple[float, ...], size: int) -> np.ndarray:
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


@st.composite
def boxes(draw: st.DrawFn) -> tuple[float, float, float, float]:
    sides = []
    for length in (83, 61):
        start = draw(st.floats(0, length - 1))
        sides.append((start, draw(st.floats(start + 0.5, length))))
    return (sides[0][0], sides[1][0], sides[0][1], sides[1][1])


@settings(max_examples=50)
@given(box=boxes(), size=st.sampled_from((1, 8, 32, 61, 224)))
def test_a_crop_is_pillows(box: tuple[float, float, float, float], size: int) -> None:
    cut = crop(SHARP, [box], size)
    assert (cut.dtype, cut.shape) == (torch.uint8, (1, size, size, 3))
    np.testing.assert_array_equal(cut[0].numpy(), pillow_crop(SHARP, box, size))


def test_a_tensors_crops_are_an_arrays() -> None:
    some = [[0, 0, 83, 61], [5.5, 7, 20, 9]]
    assert torch.equal(crop(torch.from_numpy(SHARP.copy()), some, 24), crop(SHARP, some, 24))


def test_a_crop_at_its_own_size_is_the_pixels() -> None:
    cut = crop(SHARP, [[10, 20, 42, 52]], 32)[0].numpy()
    np.testing.assert_array_equal(cut, SHARP[20:52, 10:42])


def test_an_image_of_one_pixel_fills_its_crops() -> None:
    pixel = np.array([[[10, 200, 30]]], np.uint8)
    cut = crop(pixel, [[0, 0, 1, 1], [0, 0, 1 / 7, 1 / 7]], 32)
    assert torch.equal(cut, torch.tensor([10, 200, 30], dtype=torch.uint8).expand(2, 32, 32, 3))


def test_crops_do_not_depend_on_their_neighbours() -> None:
    some = np.array([[0, 0, 83, 61], [5.5, 0, 20, 61], [5.5, 7, 20, 9]])
    together = crop(SHARP, some, 24)
    for box, one in zip(some, together, strict=True):
        assert torch.equal(crop(SHARP, [box], 24)[0], one)


def test_halving_two_pixels_gives_their_mean() -> None:
    pixels = np.array([[[0, 0, 0], [100, 50, 200]]] * 2, np.uint8)
    assert crop(pixels, [[0, 0, 2, 2]], 1).flatten().tolist() == [50, 25, 100]


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "YCbCr"])
@pytest.mark.parametrize("size", [(7, 5), (1, 1)])
def test_every_mode_becomes_rgb(mode: str, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (204, 204, 204))  # a colour of the usual palette
    wide = Image.fromarray(np.full(size[::-1], 204 * 257, np.uint16))
    image = wide if mode == "I;16" else image.convert(mode, dither=Image.Dither.NONE)
    kind = {"CMYK": "TIFF", "YCbCr": "JPEG"}.get(mode, "PNG")
    pixels = decode(encoded(image, kind))
    assert pixels.shape == (size[1], size[0], 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - (255 if mode == "1" else 204)).max() <= 2


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    ramp = np.array([[0, 257, 25700, 65535]], np.uint16)
    assert decode(encoded(Image.fromarray(ramp)))[0, :, 0].tolist() == [0, 1, 100, 255]


def test_transparent_pixels_are_black() -> None:
    image = Image.new("RGBA", (2, 1), (200, 100, 50, 255))
    image.putpixel((1, 0), (200, 100, 50, 0))
    assert decode(encoded(image))[0].tolist() == [[200, 100, 50], [0, 0, 0]]


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data)[0, 0].tolist() == [255, 0, 0]


def test_exif_rotation_is_left_alone() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)).shape == (4, 8, 3)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def status_of(data: bytes, **options: float) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, **options)
    assert str(caught.value)
    return caught.value.status


@pytest.mark.parametrize("kind", FORMATS)
def test_half_a_file_is_undecodable(kind: str) -> None:
    assert status_of(half(encoded(Image.fromarray(SHARP), kind))) == "undecodable"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "undecodable"),
        (b"\x00" * 4096, "undecodable"),
        (b"\xff\xd8\xff", "undecodable"),
        (b"GIF89a", "undecodable"),
    ],
)
def test_what_is_no_image_has_a_status(data: bytes, status: str) -> None:
    assert status_of(data) == status


def test_a_huge_image_is_refused_before_it_is_decoded() -> None:
    data = encoded(Image.new("1", (20_000, 20_000)))
    assert status_of(data) == "too_large"
    assert status_of(encoded(Image.new("L", (101, 100))), max_megapixels=0.01) == "too_large"
    assert decode(encoded(Image.new("L", (100, 100))), max_megapixels=0.01).shape == (100, 100, 3)


@settings(max_examples=50)
@given(data=st.data())
def test_damaged_bytes_give_pixels_or_a_status(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(FORMATS))
    broken = bytearray(encoded(Image.fromarray(SHARP[:9, :7]), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(broken), 300) - 1))
        broken[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        assert decode(bytes(broken), max_megapixels=1).shape[2] == 3


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow does not read AVIF")
def test_an_avif_that_names_no_picture_is_undecodable() -> None:
    data = encoded(Image.fromarray(SHARP), "AVIF")
    at = data.index(b"pitm") + len(b"pitm") + 4  # the primary item's number
    assert status_of(data[:at] + b"\x00\x09" + data[at + 2 :]) == "undecodable"


def test_ten_crop_boxes_are_the_corners_and_the_centre() -> None:
    config = PreprocessConfig(input_px=32, frame_px=64)
    assert ten_crop_boxes(config).tolist() == [
        [0, 0, 0.5, 0.5],
        [0.5, 0, 1, 0.5],
        [0, 0.5, 0.5, 1],
        [0.5, 0.5, 1, 1],
        [0.25, 0.25, 0.75, 0.75],
    ]


def test_ten_crop_boxes_of_an_equal_frame_are_the_whole_image() -> None:
    config = PreprocessConfig(input_px=64, frame_px=64)
    assert ten_crop_boxes(config).tolist() == [[0, 0, 1, 1]] * 5


def test_crops_of_several_images_are_cut_slice_by_slice() -> None:
    other = SHARP[:40, :50]
    boxes = [np.array([[5.5, 7, 20, 9]]), np.array([[1.0, 2, 30, 40]])]
    crops = Crops(images=[SHARP, other], boxes=boxes, side=16, with_mirrors=True)
    first, second = crop(SHARP, boxes[0], 16), crop(other, boxes[1], 16)
    expected = torch.cat([first, first.flip(2), second, second.flip(2)])
    assert len(crops) == 4
    for start in range(4):
        for stop in range(start + 1, 6):
            assert torch.equal(crops[start:stop], expected[start:stop])


def test_normalize_subtracts_the_mean_and_divides_by_the_deviation() -> None:
    config = PreprocessConfig(mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    crops = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3).repeat(2, 1, 2, 1)
    crops[1] = 51
    normal = normalize(crops, config, torch.float32)
    assert normal.shape == (2, 3, 1, 2)
    assert normal.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(normal[0, :, 0, 0], torch.tensor([0.0, -0.6, 0.0]))
    torch.testing.assert_close(normal[1, :, 0, 1], torch.tensor([0.2, -0.6, -3.2]))
    assert normalize(crops, config, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "HEIF or video"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\xff\x0a\x00\x00", "JPEG XL"),
        (b"%PDF-1.7", "PDF"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    ],
)
def test_a_format_that_is_not_read_has_a_name(head: bytes, name: str) -> None:
    with pytest.raises(ImageError, match=f"{name} is not read") as caught:
        decode(head + bytes(100))
    assert caught.value.status == "unsupported"
