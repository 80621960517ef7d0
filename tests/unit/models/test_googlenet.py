"""The GoogLeNets: torchvision's to the bit, the published shapes, real weights."""

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import googlenet

from cropscore_ray.config.overrides import with_settings
from cropscore_ray.config.sections import NetworkConfig, TrainConfig
from cropscore_ray.images.crop import crop
from cropscore_ray.images.decode import decode
from cropscore_ray.models.googlenet import make_network
from cropscore_ray.models.inference import InferenceNetwork, best_dtype
from cropscore_ray.models.pretrained import adapt_config, initial_network

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SMALL = NetworkConfig(architecture="googlenet-small", width=0.125)


def num_parameters(network: nn.Module) -> int:
    return sum(one.numel() for one in network.parameters())


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
        assert side // network.stride == maps[1]
        assert network.fc.in_features == maps[0]


def test_logits_are_the_classifier_on_mean_maps(images_2: Tensor) -> None:
    network = make_network(SMALL, 3).eval()
    with torch.inference_mode():
        expected = network.fc(network.features(images_2).mean((2, 3)))
        torch.testing.assert_close(network(images_2), expected)


def test_a_regions_logits_are_the_classifier_on_its_cells(images_2: Tensor) -> None:
    network = make_network(SMALL, 3).eval()
    images = torch.nn.functional.interpolate(images_2, (112, 112))  # maps of 14 x 14, 2 a cell
    shares = torch.zeros(2, 2, 7, 7)
    shares[:, 0] = 1 / 49
    shares[:, 1, 2:4, 1:6] = 1 / 10
    with torch.inference_mode():
        maps = network.features(images)
        regions = [maps.mean((2, 3)), maps[:, :, 4:8, 2:12].mean((2, 3))]
        expected = network.fc(torch.stack(regions, 1)).flatten(0, 1)
        torch.testing.assert_close(network(images, shares), expected)


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


def test_real_weights_classify_real_images(shared_folder: Path) -> None:
    init = f"classifier.init=inception-bn:{shared_folder / 'weights/inception_bn_ilsvrc.npz'}"
    config = adapt_config(with_settings(TrainConfig(recipe="test"), [init]))
    network = InferenceNetwork(
        initial_network(config, 1000), config.preprocess, CPU, best_dtype(CPU), largest_batch=20
    )
    whole, classes = [], []
    for path, class_index in read_examples(shared_folder / "data/ilsvrc-4k", 20):
        pixels = decode(path.read_bytes())
        height, width = pixels.shape[:2]
        whole.append(crop(pixels, [[0, 0, width, height]], config.preprocess.input_px))
        classes.append(class_index)
    guesses_N = network.fc(network.cells(torch.cat(whole)).flatten(1)).argmax(1)
    assert float((guesses_N == torch.tensor(classes)).float().mean()) >= 0.5
