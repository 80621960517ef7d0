"""Pillow's crops on a GPU: all boxes of an image in one launch, bit for bit.

Pillow resamples 8-bit images in two passes of integer arithmetic, first along rows, then
along columns, and rounds to 8 bits after each (src/libImaging/Resample.c). The kernel
does the same for every output pixel. Importing this module needs Triton.

Shape suffixes: N crops; U different intervals of a side; S the crop's side; T taps.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

_BITS = 22  # PRECISION_BITS of Resample.c: 32 less 8 of the pixel and 2 to spare
_BLOCK = 1024


def crop(pixels_HW3: Tensor, boxes_N4: NDArray[np.float32], size: int) -> Tensor:
    """Return the boxes of an image as crops, uint8 (N, size, size, 3); see images.crop."""
    height, width, _ = pixels_HW3.shape
    device = pixels_HW3.device
    columns, column_of_N = np.unique(boxes_N4[:, [0, 2]], axis=0, return_inverse=True)
    rows, row_of_N = np.unique(boxes_N4[:, [1, 3]], axis=0, return_inverse=True)
    x_tables = resample_weights(torch.from_numpy(columns).to(device), width, size)
    y_tables = resample_weights(torch.from_numpy(rows).to(device), height, size)
    crops_NSS3 = torch.empty(len(boxes_N4), size, size, 3, dtype=torch.uint8, device=device)
    _crop_kernel[(triton.cdiv(size * size, _BLOCK), len(boxes_N4))](
        pixels_HW3.contiguous(),
        crops_NSS3,
        torch.from_numpy(column_of_N.astype(np.int32).ravel()).to(device),
        torch.from_numpy(row_of_N.astype(np.int32).ravel()).to(device),
        *x_tables,
        *y_tables,
        *(width, height, size),
        *(x_tables[2].shape[2], y_tables[2].shape[2]),
        BITS=_BITS,
        BLOCK=_BLOCK,
    )
    return crops_NSS3


def resample_weights(intervals_U2: Tensor, length: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return Pillow's weights of resampling intervals of a line of pixels to `size` pixels.

    precompute_coeffs and normalize_coeffs_8bpc of Resample.c: a triangle as wide as the
    step between output pixels when it shrinks, one pixel when it enlarges; near an
    interval's ends it reads the pixels beside it.

    Args:
        intervals_U2: start and stop, in pixels, float32.
        length: of the line, in pixels.
        size: number of output pixels.

    Returns:
        first pixel of each output pixel, (U, S); number of taps that an interval needs,
        (U,); weights as multiples of 2**-22, (U, S, T), zero past an output pixel's own
        last one. All int32.
    """
    # In the order and precision of the C code, whose length is a difference of float32.
    start_U = intervals_U2[:, 0].double()
    step_U = (intervals_U2[:, 1] - intervals_U2[:, 0]).double() / size
    support_U = step_U.clamp_min(1.0)
    taps_U = support_U.ceil().long() * 2 + 1
    at_S = torch.arange(size, device=intervals_U2.device) + 0.5
    center_US = start_U[:, None] + at_S * step_U[:, None]
    # Numbers below zero are cut off towards it, as C does; the clamp makes that the floor.
    first_US = (center_US - support_U[:, None] + 0.5).clamp_min(0).long()
    last_US = (center_US + support_U[:, None] + 0.5).long().clamp_max(length)
    tap_T = torch.arange(int(taps_U.max()), device=intervals_U2.device)
    pixel_UST = first_US[..., None] + tap_T
    narrowing_U = 1 / support_U
    distance_UST = (pixel_UST - center_US[..., None] + 0.5).abs() * narrowing_U[:, None, None]
    weight_UST = (1 - distance_UST).clamp_min(0) * (pixel_UST < last_US[..., None])
    weight_UST /= weight_UST.cumsum(2)[..., -1:]
    fixed_UST = (weight_UST * (1 << _BITS) + 0.5).to(torch.int32)
    return first_US.to(torch.int32), taps_U.to(torch.int32), fixed_UST.contiguous()


@triton.jit
def _rounded(sums, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(sums >> BITS, 0), 255)


@triton.jit
def _crop_kernel(  # type: ignore[no-untyped-def]
    pixels,
    crops,
    column_of,
    row_of,
    x_first,
    x_taps,
    x_weights,
    y_first,
    y_taps,
    y_weights,
    width,
    height,
    size,
    x_stride,
    y_stride,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute BLOCK pixels of one crop."""
    number = tl.program_id(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size * size
    column = tl.load(column_of + number)
    row = tl.load(row_of + number)
    x = column * size + at % size
    y = row * size + at // size
    left = tl.load(x_first + x, mask=inside, other=0)
    top = tl.load(y_first + y, mask=inside, other=0)
    half = tl.full([BLOCK], 1 << (BITS - 1), tl.int32)
    red, green, blue = half, half, half
    for j in range(tl.load(y_taps + row)):
        weight = tl.load(y_weights + y * y_stride + j, mask=inside, other=0)
        line = tl.minimum(top + j, height - 1) * width  # its weight is 0 past the border
        r, g, b = half, half, half
        for i in range(tl.load(x_taps + column)):
            share = tl.load(x_weights + x * x_stride + i, mask=inside, other=0)
            pixel = pixels + (line + tl.minimum(left + i, width - 1)).to(tl.int64) * 3
            r += tl.load(pixel, mask=inside, other=0).to(tl.int32) * share
            g += tl.load(pixel + 1, mask=inside, other=0).to(tl.int32) * share
            b += tl.load(pixel + 2, mask=inside, other=0).to(tl.int32) * share
        red += _rounded(r, BITS) * weight
        green += _rounded(g, BITS) * weight
        blue += _rounded(b, BITS) * weight
    out = crops + (number.to(tl.int64) * size * size + at) * 3
    tl.store(out, _rounded(red, BITS).to(tl.uint8), mask=inside)
    tl.store(out + 1, _rounded(green, BITS).to(tl.uint8), mask=inside)
    tl.store(out + 2, _rounded(blue, BITS).to(tl.uint8), mask=inside)
