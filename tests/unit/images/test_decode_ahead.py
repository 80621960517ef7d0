"""Images decoded a group ahead: in order, each failure in its place, and no more in memory."""

import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from cropscore_ray.errors import ImageError
from cropscore_ray.images import decode
from cropscore_ray.images.decode_ahead import decode_ahead, suits_gpu

CPU = torch.device("cpu")


def picture(number: int, kind: str = "PNG", mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4 + number, 3), (number, 0, 0)).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def test_groups_come_in_order_with_failures_in_their_places() -> None:
    gone = ImageError("missing", "no file")
    fetched = [picture(0), gone, picture(2), b"", picture(4)]
    groups = list(decode_ahead(fetched, group=2, max_megapixels=1, device=CPU))
    assert [len(group) for group in groups] == [2, 2, 1]
    flat = [one for group in groups for one in group]
    assert flat[1] is gone
    assert isinstance(flat[3], ImageError)
    assert flat[3].status == "empty"
    for i in (0, 2, 4):
        assert isinstance(flat[i], np.ndarray)
        assert flat[i].shape == (3, 4 + i, 3)


def test_no_images_are_no_groups() -> None:
    assert list(decode_ahead([], group=4, max_megapixels=1, device=CPU)) == []


def test_only_the_next_group_is_decoded_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    fourth = threading.Event()
    whole = decode.decode

    def watched(data: bytes, *, max_megapixels: float) -> decode.Pixels:
        begun.append(len(begun))
        if len(begun) == 4:
            fourth.set()
        return whole(data, max_megapixels=max_megapixels)

    monkeypatch.setattr(decode, "decode", watched)
    groups = decode_ahead([picture(0)] * 10, group=2, max_megapixels=1, device=CPU)
    next(groups)
    assert fourth.wait(10)  # while the first group is in use, the second is decoded
    assert len(begun) == 4
    assert sum(len(group) for group in groups) == 8


@pytest.mark.parametrize(
    ("data", "suits"),
    [
        (picture(1, "JPEG"), True),
        (picture(1, "JPEG") + b"\x00\x00", True),
        (picture(1, "JPEG")[:-2], False),
        (picture(1, "JPEG", progressive=True), False),
        (picture(1, "JPEG", mode="L"), False),
        (picture(1, "JPEG", mode="CMYK"), False),
        (picture(1, "PNG"), False),
        (b"", False),
        (b"\xff\xd8 damaged \xff\xd9", False),
        (ImageError("missing", "no file"), False),
    ],
)
def test_a_gpu_gets_only_whole_baseline_rgb_jpegs(data: bytes | ImageError, suits: bool) -> None:
    assert suits_gpu(data, max_megapixels=1) is suits


def test_a_gpu_gets_no_huge_image() -> None:
    assert not suits_gpu(picture(1, "JPEG"), max_megapixels=1e-6)
