"""Votes: where a cell's box lies, who wins, and how a head is trained; by hand and end to end."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks import Keeper, assert_same, weights

from cropscore_ray import geometry
from cropscore_ray.config.sections import NetworkConfig, PreprocessConfig, VoterConfig
from cropscore_ray.models.boxes import NO_BOX, mirrored
from cropscore_ray.models.googlenet import make_network
from cropscore_ray.models.heads import class_weights
from cropscore_ray.models.inference import InferenceNetwork
from cropscore_ray.models.voter import (
    CELLS,
    VoterMaps,
    VotingHead,
    VotingHeads,
    cell_centres,
    count_votes,
    from_tensors,
    voted_boxes,
    voter_maps,
)
from cropscore_ray.training.data.images import LabelledImages, Request
from cropscore_ray.training.loop import NetworkTask, Worker, train_networks
from cropscore_ray.training.objectives.votes import (
    VoteDataset,
    VoteObjective,
    draw_window,
    vote_losses,
)

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORK = NetworkConfig(architecture="googlenet-small", width=0.125)
PREPROCESS = PreprocessConfig(input_px=56, frame_px=56)
NUM_CLASSES = 3


def test_a_cell_that_knows_nothing_votes_for_a_box_around_itself() -> None:
    boxes = voted_boxes(torch.zeros(1, 5, CELLS * CELLS))[0].view(CELLS, CELLS, 4)
    row, column = 3, 8
    x, y = (column + 0.5) / CELLS, (row + 0.5) / CELLS
    expected = torch.tensor([x - 0.3, y - 0.3, x + 0.3, y + 0.3])
    torch.testing.assert_close(boxes[row, column], expected)


def test_a_vote_moves_each_side_by_itself() -> None:
    votes = torch.zeros(1, 5, CELLS * CELLS)
    votes[0, 1:, 0] = torch.log(torch.tensor([0.1, 0.2, 0.5, 1.0]) / 0.3)
    centre = 0.5 / CELLS
    expected = torch.tensor([centre - 0.1, centre - 0.2, centre + 0.5, centre + 1.0])
    torch.testing.assert_close(voted_boxes(votes)[0, 0], expected)


def test_each_head_has_a_vote_in_every_cell() -> None:
    cells = CELLS * CELLS
    centres = cell_centres(3 * cells, torch.device("cpu"))
    assert centres[1].tolist() == pytest.approx([1.5 / CELLS, 0.5 / CELLS])
    assert torch.equal(centres[:cells], centres[2 * cells :])


def test_the_loss_of_heads_together_is_the_mean_of_their_losses() -> None:
    torch.manual_seed(5)
    votes = torch.randn(4, 5, 2 * CELLS * CELLS)
    true = torch.rand(4, 3, 2).sort(1).values
    true = torch.stack([torch.cat([true[:, 0], true[:, 1]], 1), torch.full((4, 4), NO_BOX)], 1)
    together = vote_losses(votes[:, 0], voted_boxes(votes), true)
    alone = [vote_losses(some[:, 0], voted_boxes(some), true) for some in votes.chunk(2, 2)]
    torch.testing.assert_close(together, (alone[0] + alone[1]) / 2)


def test_the_mirror_of_a_mirror_is_the_box() -> None:
    box = torch.tensor([0.125, 0.25, 0.5, 1.0])
    assert mirrored(box).tolist() == [0.5, 0.25, 0.875, 1.0]
    assert torch.equal(mirrored(mirrored(box)), box)


def test_most_votes_win_and_outliers_have_no_part() -> None:
    here, there = [0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 1.0, 1.0]
    boxes = torch.tensor([[here, here, [0.1, 0.1, 0.5, 0.46], there, there]])
    chances = torch.tensor([[0.8, 0.8, 0.8, 0.9, 0.2]])
    box, evidence = count_votes(boxes, chances)
    # Three votes of 0.64 against 0.81 and 0.04; the winner is their mean.
    torch.testing.assert_close(box[0], torch.tensor([0.1, 0.1, 0.5, 0.4867]), atol=1e-3, rtol=0)
    assert float(evidence[0, 1]) == pytest.approx(3 * 0.64 / (3 * 0.64 + 0.85), abs=0.01)
    assert float(evidence[0, 2]) == pytest.approx(0.9)
    assert float(evidence[0, 3]) == pytest.approx(0.8)


def test_a_small_object_needs_fewer_votes() -> None:
    large, small = [0.0, 0.0, 1.0, 1.0], [0.4, 0.4, 0.5, 0.5]
    boxes = torch.tensor([[large] * 5 + [small] * 2])
    box, _ = count_votes(boxes, torch.full((1, 7), 0.9))
    assert box[0].tolist() == pytest.approx(small)


@settings(max_examples=30)
@given(seed=st.integers(0, 1000))
def test_a_mean_of_boxes_at_the_edge_stays_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = torch.from_numpy(rng.uniform(0, 0.1, (1, 60, 2))).float()
    boxes = torch.cat([low, torch.ones(1, 60, 2)], 2)
    box, _ = count_votes(boxes, torch.from_numpy(rng.random((1, 60))).float())
    assert float(box.max()) <= 1.0


@settings(max_examples=30)
@given(seed=st.integers(0, 1000))
def test_an_images_winner_does_not_depend_on_its_neighbours(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.6, (3, 80, 2))
    boxes = torch.from_numpy(np.concatenate([low, low + 0.4], 2)).float()
    chances = torch.from_numpy(rng.random((3, 80))).float()
    together = count_votes(boxes, chances)
    for i in range(3):
        alone = count_votes(boxes[i : i + 1], chances[i : i + 1])
        for one, all_ in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], all_[i])


@settings(max_examples=100)
@given(seed=st.integers(0, 10_000))
def test_boxes_in_a_window_lie_where_they_lay(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.8, (2, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.05, 0.2, (2, 2))], 1)
    window, seen = draw_window(np.random.default_rng(seed), boxes, 0.5)
    assert (window[:2] >= 0).all()
    assert (window[2:] <= 1 + 1e-9).all()
    assert (window[2:] - window[:2] >= 0.5 - 1e-9).all()
    assert 1 <= len(seen) <= 2
    assert ((seen >= 0) & (seen <= 1)).all()
    back = np.tile(window[:2], 2) + seen * np.tile(window[2:] - window[:2], 2)
    assert geometry.iou(back, boxes).max(1).min() > 0.3 - 1e-9


def test_vote_losses_judge_cells_inside_and_outside_alike() -> None:
    true = torch.full((1, 2, 4), NO_BOX)
    true[0, 0] = torch.tensor([0.0, 0.0, 0.5, 0.5])  # 49 of the 196 cells
    right = torch.full((CELLS, CELLS), -20.0)
    right[:7, :7] = 20.0
    boxes = true[:, :1].expand(1, CELLS * CELLS, 4)
    assert float(vote_losses(right.flatten()[None], boxes, true)) == pytest.approx(0, abs=1e-5)
    unsure = vote_losses(torch.zeros(1, CELLS * CELLS), boxes, true)
    assert float(unsure) == pytest.approx(np.log(2), rel=1e-5)
    # Half of the box: GIoU 1/2 inside it, and one side of four is off by a quarter.
    half = torch.tensor([0.0, 0.0, 0.5, 0.25]).expand(1, CELLS * CELLS, 4)
    worse = vote_losses(right.flatten()[None], half, true)
    assert float(worse) == pytest.approx(2 * 0.5 + 0.5 * 0.25 / 4, rel=1e-4)


def test_an_object_between_the_cells_still_has_one() -> None:
    true = torch.tensor([[[0.5001, 0.5001, 0.501, 0.501]]])
    none = vote_losses(torch.full((1, 196), -20.0), torch.zeros(1, 196, 4), true)
    assert float(none) > 5  # the cell that holds it says no


@pytest.fixture(scope="module")
def labelled(draw_labelled: Callable[..., LabelledImages]) -> LabelledImages:
    return draw_labelled(48, NUM_CLASSES, seed=9)


@pytest.fixture(scope="module")
def scorer() -> InferenceNetwork:
    torch.manual_seed(0)
    network = make_network(NETWORK, NUM_CLASSES).eval()
    cpu = torch.device("cpu")
    return InferenceNetwork(network, PREPROCESS, cpu, torch.float32, largest_batch=8)


def a_dataset(labelled: LabelledImages, config: VoterConfig) -> VoteDataset:
    return VoteDataset(labelled, config, PREPROCESS, seed=1, stride=8)


def test_an_item_has_both_sides_and_padded_boxes(labelled: LabelledImages) -> None:
    data = a_dataset(labelled, VoterConfig())
    item = data[Request(0, 0)]
    assert item["large"].shape == (112, 112, 3)
    assert item["small"].shape == (56, 56, 3)
    assert item["boxes"].shape == (32, 4)
    found = item["boxes"][:, 0] < NO_BOX
    assert 1 <= int(found.sum()) <= 2
    assert all(torch.equal(data[Request(0, 0)][name], item[name]) for name in ("large", "boxes"))
    assert not torch.equal(data[Request(0, 1)]["large"], data[Request(0, 2)]["large"])


def a_task(labelled: LabelledImages, scorer: InferenceNetwork, config: VoterConfig) -> NetworkTask:
    dataset, network = a_dataset(labelled, config), scorer.network
    sizes = {"width": config.width, "dropout": config.dropout}
    return NetworkTask(
        name="localizer",
        make=partial(VotingHeads, 2, network.fc.in_features, network.num_inner, **sizes),
        dataset=dataset,
        objective=VoteObjective(dataset, scorer),
        config=config,
        seed=1,
    )


@pytest.mark.trains
def test_a_head_learns_where_drawn_objects_are(
    labelled: LabelledImages, scorer: InferenceNetwork
) -> None:
    config = VoterConfig(epochs=25, batch_size=8, learning_rate=3e-3, width=32, dropout=0.0)
    task = a_task(labelled, scorer, config)
    trained = train_networks([task], Worker())["localizer"]
    history = trained["metrics"]
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert history[-1]["accuracy"] > 0.5 > history[0]["accuracy"]
    # What is stored votes as what was trained, and scales were measured.
    unfitted = torch.stack([torch.zeros(7), torch.ones(7), torch.zeros(7)])
    tensors = {**trained["weights"], "confidence": unfitted}
    voter = from_tensors(tensors, scorer.fc, torch.device("cpu"))
    first, second = (head.get_submodule("last") for head in voter.heads.heads)
    assert torch.equal(first.scale, second.scale)
    assert not torch.equal(first.scale, torch.ones_like(first.scale))
    assert not torch.equal(first.same.weight, second.same.weight)
    item = task.dataset[Request(5, 0)]
    large, small = item["large"][None], item["small"][None]
    both = voter_maps(scorer, torch.cat([large, large.flip(2)]), torch.cat([small, small.flip(2)]))
    box, evidence = voter.elect(both, torch.tensor([item["class_index"]]))
    assert box.shape == (1, 4)
    assert evidence.shape == (1, 7)
    assert voter.confidences(evidence).tolist() == [0.5]


@pytest.mark.trains
def test_a_stopped_voter_goes_on_to_the_same_weights(
    labelled: LabelledImages, scorer: InferenceNetwork
) -> None:
    config = VoterConfig(epochs=2, batch_size=8, pass_size=4, width=16)  # with dropout
    keeper, task = Keeper(), a_task(labelled, scorer, config)
    unbroken = train_networks([task], Worker(checkpoint=keeper, checkpoint_steps=1))
    for state in (keeper.states[0], keeper.states[len(keeper.states) // 2]):
        torch.manual_seed(12345)  # another process has another history
        task = a_task(labelled, scorer, config)
        resumed = train_networks([task], Worker(resumed=state))
        assert_same(weights(resumed, "localizer"), weights(unbroken, "localizer"))


def test_a_class_has_its_own_votes(scorer: InferenceNetwork) -> None:
    torch.manual_seed(3)
    head = VotingHead(scorer.fc.in_features, scorer.network.num_inner, width=8).eval()
    torch.nn.init.normal_(head.out.weight)
    maps = VoterMaps(
        last_NDhw=torch.rand(2, scorer.fc.in_features, 14, 14),
        inner_NDhw=torch.rand(2, scorer.network.num_inner, 14, 14),
        whole_NDhw=torch.rand(2, scorer.fc.in_features, 7, 7),
    )
    weights = class_weights(scorer.fc)
    assert float(weights.std()) == pytest.approx(1.0)
    first = head(maps, weights[torch.tensor([0, 0])])
    second = head(maps, weights[torch.tensor([0, 1])])
    torch.testing.assert_close(first[0], second[0])
    assert not torch.allclose(first[1], second[1], atol=1e-3)
