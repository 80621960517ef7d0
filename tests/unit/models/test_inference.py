"""Networks made fast: the same numbers, in batches that fit."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from hardware import needs_bf16
from torch import Tensor, nn

from cropscore_ray.config.sections import NetworkConfig, PreprocessConfig
from cropscore_ray.images.crop import Crops, normalize
from cropscore_ray.models.fused import MergedBlock, for_inference, max_pool
from cropscore_ray.models.googlenet import Network, make_network
from cropscore_ray.models.inference import InferenceNetwork, activation_bytes, padded

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SMALL = NetworkConfig(architecture="googlenet-small", width=0.125)
PREPROCESS = PreprocessConfig(input_px=56, frame_px=64)


def with_lived_in_batch_norm(network: Network) -> Network:
    """Give every batch norm statistics and weights that are not those of its birth."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.2),
            ):
                assert values is not None
                values.uniform_(low, high, generator=generator)
    return network.eval()


def random_crops(number: int, side: int = 56) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (number, side, side, 3), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def images_2() -> Tensor:
    return torch.randn(2, 3, 96, 80, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def small() -> InferenceNetwork:
    torch.manual_seed(0)
    network = with_lived_in_batch_norm(make_network(SMALL, 5))
    return InferenceNetwork(network, PREPROCESS, CPU, torch.float32, largest_batch=12)


@pytest.mark.parametrize("architecture", ["googlenet", "googlenet-small", "inception-bn"])
def test_folding_changes_nothing_and_leaves_the_network_alone(
    architecture: str, images_2: Tensor
) -> None:
    config = NetworkConfig(architecture=architecture, width=0.25)
    network = with_lived_in_batch_norm(make_network(config, 5))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folded = for_inference(network, CPU, torch.float32)
    with torch.inference_mode():
        expected = network(images_2)
        difference = (folded(images_2) - expected).abs().max() / expected.abs().max()
    assert float(difference) < 1e-4
    assert not any(isinstance(one, nn.BatchNorm2d) for one in folded.modules())
    assert not any(one.requires_grad for one in folded.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@needs_bf16
def test_the_classifier_stays_in_float32_to_the_bit() -> None:
    network = make_network(SMALL, 5)
    folded = for_inference(network, CPU, torch.bfloat16)
    assert torch.equal(folded.fc.weight, network.fc.weight)
    assert torch.equal(folded.fc.bias, network.fc.bias)
    assert folded.features(torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("architecture", "before", "after"), [("googlenet", 57, 57 - 18), ("inception-bn", 73, 73 - 30)]
)
def test_siblings_are_one_convolution(architecture: str, before: int, after: int) -> None:
    network = make_network(NetworkConfig(architecture=architecture), 5)
    merged = for_inference(network, CPU, torch.float32)
    counts = [sum(isinstance(m, nn.Conv2d) for m in n.modules()) for n in (network, merged)]
    assert counts == [before, after]
    assert any(isinstance(one, MergedBlock) for one in merged.modules())


def test_the_largest_activation_of_googlenet_is_its_first() -> None:
    network = for_inference(make_network(NetworkConfig(), 5), CPU, torch.bfloat16)
    largest, total = activation_bytes(network, 224, torch.bfloat16)
    assert largest == 64 * 112 * 112 * 2
    assert largest < total < 20 * largest


@pytest.mark.parametrize(("dtype", "batch"), [(torch.bfloat16, 7), (torch.float32, 3)])
def test_a_cpus_batch_fits_its_caches(dtype: torch.dtype, batch: int) -> None:
    network = make_network(NetworkConfig(), 5)
    engine = InferenceNetwork(network, PreprocessConfig(), CPU, dtype, largest_batch=140)
    assert engine.batch == batch


def test_cells_are_means_of_the_maps(small: InferenceNetwork) -> None:
    crops = random_crops(3, side=112)
    with torch.inference_mode():
        maps = small.network.features(normalize(crops, PREPROCESS, torch.float32))
    assert maps.shape[2:] == (14, 14)
    torch.testing.assert_close(small.cells(crops, None), maps)
    torch.testing.assert_close(small.cells(crops)[..., 0, 0], maps.mean((2, 3)))
    cells = small.cells(crops, 7)
    assert cells.shape == (3, maps.shape[1], 7, 7)
    torch.testing.assert_close(cells[:, :, 3, 6], maps[:, :, 6:8, 12:14].mean((2, 3)))


@pytest.mark.parametrize("batch", [1, 5, 7, 12])
def test_the_batch_changes_nothing(small: InferenceNetwork, batch: int) -> None:
    expected = small.cells(random_crops(7))
    small.batch = batch
    torch.testing.assert_close(small.cells(random_crops(7)), expected)


def test_larger_crops_come_in_smaller_batches(
    small: InferenceNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_batches(small, monkeypatch)
    small.cells(random_crops(7, side=112))  # 12 ordinary crops cost as much as 3 of these
    small.cells(random_crops(2, side=224))
    assert seen == [3, 3, 1, 1, 1]


@pytest.mark.parametrize(
    ("number", "cores", "passes"), [(140, 2, [12] * 11 + [8]), (5, 2, [3, 2]), (24, 2, [12, 12])]
)
def test_all_cores_are_done_at_once(
    small: InferenceNetwork,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    cores: int,
    passes: list[int],
) -> None:
    monkeypatch.setattr(small, "_num_cores", cores)
    seen = watch_batches(small, monkeypatch)
    small.cells(random_crops(number))
    assert seen == passes


def watch_batches(
    engine: InferenceNetwork, monkeypatch: pytest.MonkeyPatch, limit: int = 1000
) -> list[int]:
    """Note the batches; run out of memory above a limit, as the CPU's allocator does."""
    seen: list[int] = []
    features = engine.network.features

    def limited(x: Tensor) -> Tensor:
        if len(x) > limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to …")
        seen.append(len(x))
        return features(x)

    monkeypatch.setattr(engine.network, "features", limited)
    return seen


def test_out_of_memory_halves_the_batch_and_says_so(
    small: InferenceNetwork, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = small.cells(random_crops(8))
    seen = watch_batches(small, monkeypatch, limit=4)
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(small.cells(random_crops(8)), expected)
    assert seen == [4, 4]
    assert "passes of 6 crops now" in caplog.text


@pytest.mark.parametrize(("limit", "message"), [(0, "allocate memory"), (None, "something else")])
def test_what_halving_cannot_mend_is_raised(
    small: InferenceNetwork, monkeypatch: pytest.MonkeyPatch, limit: int | None, message: str
) -> None:
    def broken(x: Tensor) -> Any:
        raise RuntimeError("something else")

    if limit is None:
        monkeypatch.setattr(small.network, "features", broken)
    else:
        watch_batches(small, monkeypatch, limit=limit)
    with pytest.raises(RuntimeError, match=message):
        small.cells(random_crops(8))


@pytest.mark.parametrize("with_inner", [False, True])
def test_a_gpus_compiler_sees_one_graph(
    small: InferenceNetwork, monkeypatch: pytest.MonkeyPatch, with_inner: bool
) -> None:
    # What a GPU runs in place of the CPU's own pooling.
    monkeypatch.setattr("cropscore_ray.models.fused.max_pool", nn.functional.max_pool2d)
    small.network.pool = nn.functional.max_pool2d
    compiled = torch.compile(small._cells, backend="aot_eager", fullgraph=True, dynamic=False)
    crops = random_crops(2)
    with torch.inference_mode():
        found = compiled(crops, small._lines(56), 7, with_inner)
    torch.testing.assert_close(found, small.cells(crops, 7, with_inner=with_inner))


def test_the_engine_says_what_it_chose(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        InferenceNetwork(make_network(SMALL, 5), PREPROCESS, CPU, torch.float32, largest_batch=12)
    assert caplog.messages == ["SmallGoogLeNet: passes of 12 crops, float32 on each of 1 cores"]


def test_padding_fills_a_batch_and_leaves_the_crops() -> None:
    crops = random_crops(3)
    filled = padded(crops, 5)
    assert filled.shape == (5, 56, 56, 3)
    assert torch.equal(filled[:3], crops)
    assert not filled[3:].any()
    assert padded(crops, 3) is crops


@pytest.mark.parametrize(("side", "stride", "padding"), [(3, 2, 0), (2, 2, 0), (3, 1, 1)])
@pytest.mark.parametrize("ceil_mode", [True, False])
@pytest.mark.parametrize("size", [(7, 8), (13, 3), (112, 15)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_max_pool_is_torchs_to_the_bit(
    side: int, stride: int, padding: int, ceil_mode: bool, size: tuple[int, int], dtype: torch.dtype
) -> None:
    x = torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(2)).to(dtype)
    expected = nn.functional.max_pool2d(x, side, stride, padding, ceil_mode=ceil_mode)
    assert torch.equal(max_pool(x, side, stride, padding, ceil_mode=ceil_mode), expected)


def test_an_images_cells_are_the_same_bits_whatever_its_neighbours(
    small: InferenceNetwork,
) -> None:
    generator = np.random.default_rng(3)
    some = [generator.integers(0, 256, (40, 50, 3), np.uint8) for _ in range(3)]
    boxes = np.array([[i, i, 30 + i, 20 + i] for i in range(13)], float)  # more than a pass holds

    def cells(images: list[np.ndarray]) -> Tensor:
        return small.cells(Crops(images=list(images), boxes=[boxes] * len(images), side=56))

    together = cells(some).view(3, 13, -1)
    for one, found in zip(some, together, strict=True):
        assert torch.equal(cells([one]).flatten(1), found)
