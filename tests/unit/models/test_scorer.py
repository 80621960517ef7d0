"""The engine against the plainest way to the same numbers."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hardware import needs_bf16
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor

from cropscore_ray import grid
from cropscore_ray.config.overrides import with_settings
from cropscore_ray.config.sections import PreprocessConfig, TrainConfig
from cropscore_ray.datasets.drawn import draw_image
from cropscore_ray.images.crop import crop, ten_crop_boxes
from cropscore_ray.images.decode import Pixels, decode
from cropscore_ray.jobs import recipes
from cropscore_ray.models.bundle import SCORER, Bundle, classifier_part, save_part
from cropscore_ray.models.googlenet import Network, make_network
from cropscore_ray.models.pretrained import adapt_config, initial_network
from cropscore_ray.models.scorer import CropScorer, Scores
from cropscore_ray.schema import ImageClass

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_CLASSES = 5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    config = with_settings(recipes.smoke(), ["preprocess.input_px=56", "preprocess.frame_px=64"])
    classes = [ImageClass(id=f"n{i}", name=f"class {i}") for i in range(NUM_CLASSES)]
    uri = str(tmp_path_factory.mktemp("bundle"))
    bundle = Bundle(uri=uri, config=config, classes=classes, parts={}, baselines={})
    torch.manual_seed(1)
    for part in (classifier_part(0), classifier_part(1), SCORER):
        network = make_network(config.network, NUM_CLASSES)
        bundle = save_part(bundle, part, dict(network.state_dict()), metrics={})
    return bundle


@pytest.fixture(scope="module")
def exact(bundle: Bundle) -> CropScorer:
    return CropScorer(bundle, mode="exact", dtype=torch.float32)


@pytest.fixture(scope="module")
def pyramid(bundle: Bundle) -> CropScorer:
    return CropScorer(bundle, mode="pyramid", dtype=torch.float32)


def drawn(number: int) -> Pixels:
    return np.asarray(draw_image(np.random.default_rng((8, number)), number)[0])


def normal(crop_SS3: np.ndarray, preprocess: PreprocessConfig) -> Tensor:
    """One crop as the papers have it: (x / 255 - mean) / std, colour first."""
    unit = torch.from_numpy(np.array(crop_SS3)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (preprocess.mean, preprocess.std))
    return (unit - mean) / std


@torch.inference_mode()
def naive_logits(
    network: Network, pixels: Pixels, boxes: np.ndarray, preprocess: PreprocessConfig
) -> Tensor:
    """Crop by crop with Pillow, one at a time through the network as it was trained."""
    image, side = Image.fromarray(pixels), preprocess.input_px
    logits = []
    for box in boxes.tolist():
        cut = image.resize((side, side), Image.Resampling.BILINEAR, box=tuple(box))
        logits.append(network(normal(np.asarray(cut), preprocess)[None])[0])
    return torch.stack(logits)


def squares(pixels: Pixels) -> np.ndarray:
    height, width = pixels.shape[:2]
    return grid.square_boxes(width, height)


def relative(found: Scores, expected: Scores) -> float:
    """The largest difference, as a share of the spread of the scores."""
    return float(np.abs(found - expected).max() / np.ptp(expected))


def test_exact_scores_are_the_naive_ones(bundle: Bundle, exact: CropScorer) -> None:
    network = bundle.network(SCORER)
    for number in range(3):
        pixels = drawn(number)
        expected = naive_logits(network, pixels, squares(pixels), bundle.preprocess)[:, 2]
        assert relative(exact.score_image(pixels, 2), expected.numpy()) < 1e-3


def test_ten_crops_are_the_naive_ones(bundle: Bundle, exact: CropScorer) -> None:
    pixels = drawn(1)
    height, width = pixels.shape[:2]
    boxes = ten_crop_boxes(bundle.preprocess) * [width, height, width, height]
    members = []
    for member in range(2):
        network = bundle.network(classifier_part(member))
        plain = naive_logits(network, pixels, boxes, bundle.preprocess)
        crops = crop(pixels, boxes, bundle.preprocess.input_px).numpy()
        mirrored = torch.stack([normal(one[:, ::-1], bundle.preprocess) for one in crops])
        with torch.inference_mode():
            ten = torch.cat([plain, network(mirrored)])
        members.append(ten.softmax(1).mean(0))
    torch.testing.assert_close(
        exact.classify([pixels])[0], torch.stack(members).mean(0), rtol=1e-3, atol=1e-5
    )


@torch.inference_mode()
def slow_region_score(
    bundle: Bundle, pixels: Pixels, rectangle: np.ndarray, class_index: int
) -> float:
    """Resize the whole image for one region, and average the class's map inside it."""
    rows, columns, top, left = rectangle.tolist()
    longest = max(rows, columns)
    zoom = 1 if longest == 7 else 2 if longest >= 3 else 4
    network = bundle.network(SCORER)
    side = 7 * network.stride * zoom
    whole = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
    maps = network.features(normal(np.asarray(whole), bundle.preprocess)[None])[0]
    class_map = torch.einsum("d,dhw->hw", network.fc.weight[class_index], maps)
    inside = class_map[top * zoom : (top + rows) * zoom, left * zoom : (left + columns) * zoom]
    return float(inside.mean() + network.fc.bias[class_index])


def test_pyramid_scores_are_box_means_of_class_maps(bundle: Bundle, pyramid: CropScorer) -> None:
    pixels = drawn(2)
    found = pyramid.score_image(pixels, 3)
    for i in range(0, grid.NUM_SQUARES, 9):
        expected = slow_region_score(bundle, pixels, grid.square_rectangles()[i], 3)
        assert found[i] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_the_pyramid_scores_any_rectangle(bundle: Bundle, pyramid: CropScorer) -> None:
    pixels, rectangles = drawn(2), grid.rectangle_cells()
    scores = pyramid.score(pyramid.embed_regions([pixels], rectangles), torch.tensor([[3]]))
    assert scores.shape == (1, 1, 784)
    for i in (0, 100, 333, 500, 700, 783):
        expected = slow_region_score(bundle, pixels, rectangles[i], 3)
        assert float(scores[0, 0, i]) == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("mode", ["exact", "pyramid"])
def test_a_look_is_each_images_own(bundle: Bundle, mode: str) -> None:
    scorer = CropScorer(bundle, mode=mode, dtype=torch.float32)
    pixels = [drawn(i) for i in range(3)]
    look = scorer.look(pixels, [4, 0, 2], top_k=2, views=[scorer.square_scores, scorer.class_maps])
    look.wait()
    assert look.classes_GK.shape == (3, 3)
    assert look.classes_GK[:, 0].tolist() == [4, 0, 2]
    scores_GKS, maps_GKhw = look.views
    for g, one in enumerate(pixels):
        probabilities = scorer.classify([one])[0]
        classes = look.classes_GK[g]
        assert classes[1:].tolist() == probabilities.topk(2).indices.tolist()
        torch.testing.assert_close(look.probabilities_GK[g], probabilities[classes])
        maps = scorer.class_maps([one], classes[None])[0]
        torch.testing.assert_close(maps_GKhw[g], maps, rtol=1e-3, atol=1e-4)
        for k, class_index in enumerate(classes.tolist()):
            expected = scorer.score_image(one, class_index)
            assert relative(scores_GKS[g, k].numpy(), expected) < 1e-3


@pytest.mark.parametrize("mode", ["exact", "pyramid"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
def test_an_images_numbers_are_the_same_bits_whatever_its_group(
    bundle: Bundle, mode: str, dtype: torch.dtype
) -> None:
    scorer = CropScorer(bundle, mode=mode, dtype=dtype)
    pixels = [drawn(i) for i in range(5)]

    def look(some: list[Pixels]) -> list[Tensor]:
        seen = scorer.look(
            some, [2] * len(some), top_k=3, views=[scorer.square_scores, scorer.class_maps]
        )
        return [seen.classes_GK, seen.probabilities_GK, *seen.views]

    together = look(pixels)
    for g, one in enumerate(pixels):
        for all_G, alone_1 in zip(together, look([one]), strict=True):
            assert torch.equal(all_G[g], alone_1[0])


def test_a_look_scores_only_what_is_asked_for(exact: CropScorer) -> None:
    given = exact.look([drawn(0)], [1])
    assert given.classes_GK.tolist() == [[1]]
    assert bool(given.probabilities_GK.isnan().all())
    assert given.views == []
    predicted = exact.look([drawn(0)], top_k=100)
    assert sorted(predicted.classes_GK[0].tolist()) == list(range(NUM_CLASSES))


def real_images(folder: Path, number: int) -> list[Pixels]:
    files = sorted((folder / "data/ilsvrc-4k/ILSVRC/Data/CLS-LOC/val").iterdir())
    return [decode(one.read_bytes()) for one in files[:: len(files) // number][:number]]


@pytest.fixture(scope="module")
def real_bundle(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    init = f"classifier.init=inception-bn:{shared_folder / 'weights/inception_bn_ilsvrc.npz'}"
    config = adapt_config(with_settings(TrainConfig(recipe="test"), [init]))
    classes = [ImageClass(id=str(i), name=str(i)) for i in range(1000)]
    uri = str(tmp_path_factory.mktemp("real"))
    bundle = Bundle(uri=uri, config=config, classes=classes, parts={}, baselines={})
    weights = dict(initial_network(config, 1000).state_dict())
    for part in (classifier_part(0), SCORER):
        bundle = save_part(bundle, part, weights, metrics={})
    return bundle


@pytest.mark.slow
def test_exact_scores_of_real_images_are_the_naive_ones(
    real_bundle: Bundle, shared_folder: Path
) -> None:
    scorer = CropScorer(real_bundle, mode="exact", dtype=torch.float32)
    network = real_bundle.network(SCORER)
    for pixels in real_images(shared_folder, 4):
        best = int(scorer.classify([pixels])[0].argmax())
        expected = naive_logits(network, pixels, squares(pixels), real_bundle.preprocess)
        assert relative(scorer.score_image(pixels, best), expected[:, best].numpy()) < 1e-3


@needs_bf16
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "pyramid"])
def test_bfloat16_ranks_real_crops_as_float32_does(
    real_bundle: Bundle, shared_folder: Path, mode: str
) -> None:
    narrow = CropScorer(real_bundle, mode=mode, dtype=torch.bfloat16)
    wide = CropScorer(real_bundle, mode=mode, dtype=torch.float32)
    correlations = []
    for pixels in real_images(shared_folder, 20):
        best = int(wide.classify([pixels])[0].argmax())
        pair = (scorer.score_image(pixels, best) for scorer in (narrow, wide))
        correlations.append(spearmanr(*pair).statistic)
    assert np.median(correlations) >= 0.999


def encoded(pixels: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_score_squares_takes_the_models_own_mode(bundle: Bundle, exact: CropScorer) -> None:
    pixels = drawn(1)
    own = CropScorer(bundle, dtype=torch.float32)
    assert own.mode == "exact"
    np.testing.assert_allclose(
        own.score_squares(encoded(pixels), 1), exact.score_image(pixels, 1), rtol=1e-5
    )
