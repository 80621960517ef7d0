"""The overlap head: what it learns from, what it learns, and that scoring reads it as trained."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from models import random_model
from tasks import NETWORK, NUM_CLASSES, Keeper, assert_same, weights

from cropscore_ray import grid
from cropscore_ray.config.overrides import with_settings
from cropscore_ray.config.sections import PreprocessConfig, ScorerConfig, SgdConfig
from cropscore_ray.datasets.drawn import draw_image
from cropscore_ray.errors import ConfigError
from cropscore_ray.jobs import recipes
from cropscore_ray.models.bundle import SCORER, Bundle, classifier_part, save_part
from cropscore_ray.models.googlenet import make_network
from cropscore_ray.models.heads import OverlapHead, class_weights
from cropscore_ray.models.inference import InferenceNetwork
from cropscore_ray.models.scorer import CropScorer
from cropscore_ray.training.data.crops import CropDataset, any_square, square_overlaps
from cropscore_ray.training.data.images import LabelledImages, Request
from cropscore_ray.training.data.regions import SquaresDataset
from cropscore_ray.training.loop import NetworkTask, Worker, train_networks
from cropscore_ray.training.objectives.heads import OverlapObjective

PREPROCESS = PreprocessConfig(input_px=32, frame_px=36)
CPU = torch.device("cpu")
WIDTH = 16

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def labelled(draw_labelled: Callable[..., LabelledImages]) -> LabelledImages:
    return draw_labelled(32, NUM_CLASSES, seed=5)


@pytest.fixture(scope="module")
def engine() -> InferenceNetwork:
    torch.manual_seed(0)
    network = make_network(NETWORK, NUM_CLASSES).eval()
    return InferenceNetwork(network, PREPROCESS, CPU, torch.float32, largest_batch=8)


def a_task(
    labelled: LabelledImages, engine: InferenceNetwork, mode: str, epochs: int = 12
) -> NetworkTask:
    if mode == "pyramid":
        dataset: CropDataset | SquaresDataset
        one_level = ScorerConfig(level_shares=(0, 1, 0))
        dataset = SquaresDataset(labelled, one_level, PREPROCESS, seed=1, stride=8)
    else:
        dataset = CropDataset(labelled, any_square, PREPROCESS, seed=1)
    return NetworkTask(
        name=SCORER,
        make=partial(OverlapHead, engine.fc.in_features, WIDTH),
        dataset=dataset,
        objective=OverlapObjective(dataset, engine),
        config=SgdConfig(epochs=epochs, batch_size=8, optimizer="adamw", learning_rate=0.01),
        seed=1,
    )


def test_a_new_head_reads_channels_of_unit_size(
    labelled: LabelledImages, engine: InferenceNetwork
) -> None:
    task = a_task(labelled, engine, "exact")
    head = task.make()
    task.objective.prepare(head, CPU)
    requests = [task.dataset.request(i, epoch=0, step=i) for i in range(len(labelled))]
    crops = torch.stack([task.dataset[request]["crop"] for request in requests])
    embedding_ND = engine.cells(crops).flatten(1)
    size_D = (head.read.scale * embedding_ND).square().mean(0).sqrt()
    is_alive_D = embedding_ND.square().mean(0).sqrt() > 1e-2
    assert is_alive_D.any()
    torch.testing.assert_close(size_D[is_alive_D], torch.ones_like(size_D[is_alive_D]))


def slow_overlaps(head: OverlapHead, embedding_SD: np.ndarray, class_D: np.ndarray) -> np.ndarray:
    """One square after the other, with numpy."""
    named = {name: one.double().numpy() for name, one in head.state_dict().items()}
    weight = named["read.same.weight"] + named["read.by_class.weight"] * class_D
    found = []
    for embedding_D in embedding_SD.astype(np.float64):
        x = weight @ (named["read.scale"] * embedding_D) + named["read.same.bias"]
        x = np.maximum(x, 0)
        x = x + np.maximum(named["hidden.weight"] @ x + named["hidden.bias"], 0)
        logit = named["out.weight"] @ x + named["out.bias"]
        found.append(1 / (1 + np.exp(-logit[0])))
    return np.array(found)


@pytest.fixture(scope="module")
def with_head(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, OverlapHead]:
    """A model whose scorer has a head with random weights."""
    made = random_model(str(tmp_path_factory.mktemp("model") / "model"), num_classes=3)
    config = with_settings(made.config, [f"scorer.overlap_width={WIDTH}"])
    torch.manual_seed(4)
    network = made.network(classifier_part(0))
    head = OverlapHead(network.fc.in_features, WIDTH).eval()
    with torch.no_grad():
        torch.nn.init.uniform_(head.read.scale, 0.01, 0.05)  # its maps are large
        head.out.weight.mul_(3)
    tensors = {f"overlap.{name}": one for name, one in head.state_dict().items()}
    made = Bundle(uri=made.uri, config=config, classes=made.classes, parts=made.parts, baselines={})
    return save_part(made, SCORER, {**network.state_dict(), **tensors}, metrics={}), head


@pytest.mark.parametrize("mode", ["exact", "pyramid"])
def test_scores_are_the_overlaps_that_the_head_tells(
    with_head: tuple[Bundle, OverlapHead], mode: str
) -> None:
    bundle, head = with_head
    scorer = CropScorer(bundle, mode=mode, device=CPU, dtype=torch.float32)
    images = [np.asarray(draw_image(np.random.default_rng(i), i)[0]) for i in (1, 2)]
    classes = torch.tensor([[2, 0], [1, 2]])
    embedded = scorer.embed(list(images))
    found = scorer.score(embedded, classes).numpy()
    by_class = class_weights(bundle.network(classifier_part(0)).fc).numpy()
    for i, k in np.ndindex(2, 2):
        slow = slow_overlaps(head, embedded[i].numpy(), by_class[classes[i, k]])
        assert np.ptp(slow) > 0.01
        np.testing.assert_allclose(found[i, k], slow, atol=1e-4)
    alone = scorer.score(scorer.embed([images[1]]), classes[1:])
    np.testing.assert_array_equal(alone[0], found[1])  # the same bits whatever its group


def test_classes_and_maps_are_the_classifiers_own(with_head: tuple[Bundle, OverlapHead]) -> None:
    bundle, _ = with_head
    scorer, plain = bundle.network(SCORER), bundle.network(classifier_part(0))
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(scorer(image), plain(image))
    assert plain.overlap is None


@pytest.mark.trains
@pytest.mark.parametrize("mode", ["exact", "pyramid"])
def test_a_head_learns_how_far_squares_overlap(
    labelled: LabelledImages, engine: InferenceNetwork, mode: str
) -> None:
    task = a_task(labelled, engine, mode, epochs=30 if mode == "exact" else 20)
    trained = train_networks([task], Worker())[SCORER]
    history = trained["metrics"]
    assert history[-1]["loss"] < 0.95 * history[1]["loss"]
    head = OverlapHead(engine.fc.in_features, WIDTH).eval()
    head.load_state_dict(trained["weights"])
    assert not torch.equal(head.read.scale, torch.ones_like(head.read.scale))
    told, true = [], []
    for i in range(12):
        batch = task.dataset[Request(i, 99, level=1)]
        regions = batch.get("regions")
        cells = engine.cells(batch["crop"][None], 1 if regions is None else 7)[0]
        if regions is None:
            embedding = cells.flatten()[None]
        else:
            embedding = torch.einsum("rij,dij->rd", regions.float(), cells)
        class_D = class_weights(engine.fc)[int(labelled.classes[i])]
        told.append(head(embedding[None], class_D[None])[0])
        true.append(torch.as_tensor(batch["overlap"]).flatten())
    found, overlap = torch.cat(told).detach(), torch.cat(true)
    assert np.corrcoef(found.numpy(), overlap.numpy())[0, 1] > 0.35


def test_the_loss_by_hand(labelled: LabelledImages, engine: InferenceNetwork) -> None:
    task = a_task(labelled, engine, "exact")
    head = task.make()
    torch.nn.init.zeros_(head.out.weight)
    torch.nn.init.constant_(head.out.bias, 1.0)  # every square is said to overlap by 0.731
    crops = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    batch = {
        "crop": crops,
        "class_index": torch.tensor([0, 2]),
        "overlap": torch.tensor([1.0, 0.25]),
    }
    with torch.no_grad():
        loss, right, judged = task.objective(head, batch)
    told = 1 / (1 + np.exp(-1))
    by_hand = [-np.log(told), -0.25 * np.log(told) - 0.75 * np.log(1 - told)]
    assert float(loss) == pytest.approx(np.mean(by_hand))
    assert (int(right), int(judged)) == (1, 2)


@pytest.mark.trains
@pytest.mark.parametrize("mode", ["exact", "pyramid"])
def test_a_stopped_head_goes_on_to_the_same_weights(
    labelled: LabelledImages, engine: InferenceNetwork, mode: str
) -> None:
    keeper, task = Keeper(), a_task(labelled, engine, mode, epochs=2)
    unbroken = train_networks([task], Worker(checkpoint=keeper, checkpoint_steps=1))
    torch.manual_seed(12345)  # another process has another history
    resumed = train_networks(
        [a_task(labelled, engine, mode, epochs=2)], Worker(resumed=keeper.states[2])
    )
    assert_same(weights(resumed, SCORER), weights(unbroken, SCORER))


def test_an_image_asks_about_all_squares_of_its_level(labelled: LabelledImages) -> None:
    dataset = SquaresDataset(labelled, ScorerConfig(), PREPROCESS, seed=1, stride=8)
    counts = [len(dataset[Request(0, 0, level=level)]["overlap"]) for level in range(3)]
    assert counts == [1, 25 + 16 + 9 + 4, 49 + 36]
    mirrored = {bool(torch.equal(*_views(dataset, epoch))) for epoch in range(8)}
    assert mirrored == {True, False}


def _views(dataset: SquaresDataset, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return (dataset[Request(0, 0, 1)]["overlap"], dataset[Request(0, epoch, 1)]["overlap"])


def test_any_square_is_drawn_as_often_as_any_other() -> None:
    rng, box = np.random.default_rng(0), np.array([[0.1, 0.2, 0.5, 0.9]])
    drawn = [any_square(rng, box) for _ in range(4000)]
    overlaps = square_overlaps(box)
    for square, overlap in drawn[:20]:
        [at] = np.flatnonzero((grid.unit_squares() == square).all(1))
        assert overlap == overlaps[at]
    assert np.mean([overlap for _, overlap in drawn]) == pytest.approx(overlaps.mean(), abs=0.02)


@pytest.mark.parametrize(
    ("recipe", "setting", "named"),
    [
        ("best", "scorer.overlap_width=8", "scorer."),
        ("overlap-head", "scorer.epochs=0", "scorer.epochs"),
        ("overlap-head", "scorer.overlap_width=-1", "scorer.overlap_width"),
    ],
)
def test_a_head_that_nobody_reads_or_trains_is_refused(
    recipe: str, setting: str, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        with_settings(recipes.get(recipe), [setting])
