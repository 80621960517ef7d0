"""The GoogLeNets: torchvision's to the bit, folding that changes nothing, real weights."""

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import googlenet

from cropscore_ray.config import NetworkConfig, PreprocessConfig, TrainConfig, with_settings
from cropscore_ray.images import crop, decode, normalize, planes
from cropscore_ray.networks import Network, best_dtype, for_inference, make_network
from cropscore_ray.weights import adapt_config, initial_network

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SMALL = NetworkConfig(architecture="googlenet-small", width=0.125)


def num_parameters(network: nn.Module) -> int:
    return sum(one.numel() for one in network.parameters())


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


@pytest.fixture(scope="module")
def images_2() -> Tensor:
    return torch.randn(2, 3, 96, 80, generator=torch.Generator().manual_seed(1))


def test_googlenet_equals_torchvisions_bit_for_bit(images_2: Tensor) -> None:
    theirs = googlenet(weights=None, num_classes=7, aux_logits=False, init_weights=False).eval()
    ours = make_network(NetworkConfig(), 7).eval()
    ours.load_state_dict(theirs.state_dict())
    with torch.inference_mode():
        assert torch.equal(ours(images_2), theirs(images_2))


def test_in_training_googlenet_drops_like_torchvisions(images_2: Tensor) -> None:
    theirs = googlenet(weights=None, num_classes=7, aux_logits=False, init_weights=False)
    ours = make_network(NetworkConfig(), 7)
    ours.load_state_dict(theirs.state_dict())
    outputs = []
    for network in (ours, theirs):
        torch.manual_seed(5)
        outputs.append(network(images_2))
    torch.testing.assert_close(*outputs)


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


def test_the_classifier_stays_in_float32_to_the_bit() -> None:
    network = make_network(SMALL, 5)
    folded = for_inference(network, CPU, torch.bfloat16)
    assert torch.equal(folded.fc.weight, network.fc.weight)
    assert torch.equal(folded.fc.bias, network.fc.bias)
    assert folded.features(torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_inception_bn_has_the_published_shapes(images_2: Tensor) -> None:
    network = make_network(NetworkConfig(architecture="inception-bn"), 1000).eval()
    assert num_parameters(network) == 11_650_888
    with torch.inference_mode():
        assert network.features(images_2).shape == (2, 1024, 3, 2)
        assert network(images_2).shape == (2, 1000)


@pytest.mark.parametrize(
    ("config", "side", "maps"),
    [
        (NetworkConfig(), 224, (1024, 7, 7)),
        (NetworkConfig(architecture="googlenet-small", width=0.25), 64, (208, 8, 8)),
        (SMALL, 32, (104, 4, 4)),
    ],
)
def test_a_networks_stride(config: NetworkConfig, side: int, maps: tuple[int, int, int]) -> None:
    network = make_network(config, 3).eval()
    with torch.inference_mode():
        features = network.features(torch.zeros(1, 3, side, side))
        assert features.shape == (1, *maps)
        assert network.fc.in_features == maps[0]


def test_logits_are_the_classifier_on_mean_maps(images_2: Tensor) -> None:
    network = make_network(SMALL, 3).eval()
    with torch.inference_mode():
        expected = network.fc(network.features(images_2).mean((2, 3)))
        torch.testing.assert_close(network(images_2), expected)


def test_first_weights_follow_the_global_seed() -> None:
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(make_network(SMALL, 3).conv1.conv.weight)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def read_examples(folder: Path, num_images: int) -> list[tuple[Path, int]]:
    """Return real validation images, evenly drawn, with the place of their wnid."""
    with (folder / "LOC_synset_mapping.txt").open() as file:
        order = {line.split()[0]: i for i, line in enumerate(file)}
    with (folder / "LOC_val_solution.csv").open() as file:
        rows = list(csv.DictReader(file))
    val = folder / "ILSVRC/Data/CLS-LOC/val"
    chosen = rows[:: len(rows) // num_images][:num_images]
    return [
        (val / f"{row['ImageId']}.JPEG", order[row["PredictionString"].split()[0]])
        for row in chosen
    ]


def whole_image(path: Path, config: PreprocessConfig) -> Tensor:
    pixels = decode(path.read_bytes())
    height, width = pixels.shape[:2]
    return crop(normalize(planes(pixels), config), [[0, 0, width, height]], config.input_px)


def test_real_weights_classify_real_images(shared_folder: Path) -> None:
    init = f"classifier.init=inception-bn:{shared_folder / 'weights/inception_bn_ilsvrc.npz'}"
    config = adapt_config(with_settings(TrainConfig(recipe="test"), [init]))
    dtype = best_dtype(CPU)
    network = for_inference(initial_network(config, 1000).eval(), CPU, dtype)
    examples = read_examples(shared_folder / "data/ilsvrc-4k", 20)
    images_N3HW = torch.cat([whole_image(path, config.preprocess) for path, _ in examples])
    truth_N = torch.tensor([class_index for _, class_index in examples])
    with torch.inference_mode():
        batch = images_N3HW.to(dtype, memory_format=torch.channels_last)
        guesses_N = network.fc(network.features(batch).float().mean((2, 3))).argmax(1)
    assert float((guesses_N == truth_N).float().mean()) >= 0.5
