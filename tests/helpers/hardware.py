"""What some tests need of the machine."""

import pytest
import torch

from cropscore_ray.models.inference import best_dtype

needs_bf16 = pytest.mark.skipif(
    best_dtype(torch.device("cpu")) != torch.bfloat16,
    reason="needs a processor that multiplies bfloat16",
)
