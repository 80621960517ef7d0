"""The GPU's crops are Pillow's, bit for bit.

Without a GPU, Triton's interpreter runs the kernel. It is slow, so it sees small images; the
weights, where bits get lost, are tried on images of usual size. The interpreter is chosen
when Triton is imported, so the kernel runs in a process of its own.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from cropscore_ray import grid
from cropscore_ray.images.crop import crop

pytest.importorskip("triton")

PROGRAM = """
import numpy as np, torch
from cropscore_ray import grid
from cropscore_ray.images import crop_kernel
from cropscore_ray.images.crop import crop

device = "cuda" if torch.cuda.is_available() else "cpu"
for height, width, size in [(1, 1, 8), (2, 90, 16), (61, 83, 33)]:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    boxes = [*grid.square_boxes(width, height)[::17], [0, 0, width, height]]
    boxes.append([width / 3, height / 3, width / 1.7, height / 2.1])
    boxes = np.array(boxes, np.float32)
    found = crop_kernel.crop(torch.from_numpy(pixels).to(device), boxes, size).cpu()
    assert torch.equal(found, crop(pixels, boxes, size)), (height, width)
    print("equal")
"""


def test_the_kernels_crops_are_pillows() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["equal"] * 3


def matrix(intervals: np.ndarray, length: int, size: int) -> np.ndarray:
    """The weights as matrices, (U, size, length)."""
    from cropscore_ray.images.crop_kernel import resample_weights

    first, taps, weights = resample_weights(torch.from_numpy(intervals), length, size)
    assert weights.shape[2] == taps.max()
    rows = np.zeros((len(intervals), size, length), np.int64)
    for tap in range(weights.shape[2]):
        at = np.minimum(first.numpy() + tap, length - 1)
        np.add.at(rows, (*np.indices(at.shape), at), weights[..., tap].numpy())
    return rows


def rounded(sums: np.ndarray) -> np.ndarray:
    return np.clip((sums + (1 << 21)) >> 22, 0, 255)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(227, 227, 224), (375, 500, 224), (333, 500, 64), (1, 1, 8), (2, 300, 16), (700, 900, 40)],
)
def test_the_weights_are_pillows_to_the_bit(height: int, width: int, size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    boxes = grid.square_boxes(width, height)[::13].astype(np.float32)
    rows = matrix(boxes[:, [1, 3]], height, size)
    columns = matrix(boxes[:, [0, 2]], width, size)
    for box, row, column in zip(boxes, rows, columns, strict=True):
        # float64 holds these integers exactly, and multiplies them faster.
        lines = np.tensordot(column.astype(float), pixels.astype(float), (1, 1)).astype(np.int64)
        found = np.tensordot(row.astype(float), rounded(lines).astype(float), (1, 1))
        expected = crop(pixels, [box], size)[0].numpy()
        np.testing.assert_array_equal(rounded(found.astype(np.int64)), expected)


def test_halving_two_pixels_gives_each_half_the_weight() -> None:
    both = 1 << 21
    assert matrix(np.array([[0, 2]], np.float32), 2, 1).tolist() == [[[both, both]]]


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cropscore_ray.images.crop_kernel import _crop_kernel as kernel

signature = dict.fromkeys(kernel.arg_names, "*i32")
signature |= {"pixels": "*u8", "crops": "*u8", "BITS": "constexpr", "BLOCK": "constexpr"}
signature |= dict.fromkeys(("width", "height", "size", "x_stride", "y_stride"), "i32")
source = ASTSource(fn=kernel, signature=signature, constexprs={"BITS": 22, "BLOCK": 1024})
print(len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]))
"""


def test_the_kernel_compiles_for_a_gpu_that_is_not_here() -> None:
    command = [sys.executable, "-W", "ignore", "-c", COMPILE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 1000
