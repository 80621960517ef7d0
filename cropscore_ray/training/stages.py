"""The trainings of the method, each from a manifest and a bundle to new parts.

`train_regressors` runs in one worker, the others in every one. Each is a function of a `Worker`
and reads the manifest itself, so that nothing large travels. Each returns, by name, the parts that
the caller puts into the bundle: plain tensors, metrics and, of a localizer, baselines.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from cropscore_ray import schema, storage
from cropscore_ray.config.sections import TrainConfig
from cropscore_ray.errors import DataError
from cropscore_ray.models.boxes import pad_boxes
from cropscore_ray.models.bundle import LOCALIZER, SCORER, Bundle, classifier_part, load_bundle
from cropscore_ray.models.googlenet import Network
from cropscore_ray.models.heads import OverlapHead
from cropscore_ray.models.pretrained import initial_network
from cropscore_ray.models.scorer import CropScorer
from cropscore_ray.models.voter import VotingHeads
from cropscore_ray.training.data.crops import (
    CropDataset,
    any_square,
    classifier_sampler,
    scorer_sampler,
)
from cropscore_ray.training.data.images import ImageDataset, LabelledImages
from cropscore_ray.training.data.regions import PyramidDataset, SquaresDataset
from cropscore_ray.training.data.shares import (
    TrainingRun,
    classifier_rows,
    labelled_images,
    sized,
    split_boxed,
    training_manifest,
    unit_boxes,
)
from cropscore_ray.training.localizer.judging import fit_baselines, fit_voter
from cropscore_ray.training.localizer.regressor import ScoredImages, ScoredShares, train_localizer
from cropscore_ray.training.loop import NetworkTask, Objective, State, Worker, train_networks
from cropscore_ray.training.objectives.crops import CropObjective
from cropscore_ray.training.objectives.heads import OverlapObjective
from cropscore_ray.training.objectives.votes import VoteDataset, VoteObjective


def train_classifiers(run: TrainingRun, worker: Worker) -> dict[str, Any]:
    """Train the classification networks on labelled images; see `train_networks`."""
    config = run.config
    manifest = training_manifest(run.manifest_uri, run.split)
    labelled = labelled_images(classifier_rows(manifest, config))
    at_random = replace(config, classifier=replace(config.classifier, init=None))
    num_given = config.classifier.init_members or config.classifier.num_members
    tasks = []
    for member in range(config.classifier.num_members):
        first = config if member < num_given else at_random
        seed = config.seed * 1000 + member
        sampler = classifier_sampler(config.classifier)
        dataset = CropDataset(
            labelled, sampler, config.preprocess, seed, config.classifier.photometric
        )
        task = NetworkTask(
            name=classifier_part(member),
            make=partial(initial_network, first, len(manifest.classes)),
            dataset=dataset,
            objective=CropObjective(
                dataset,
                label_smoothing=config.classifier.label_smoothing,
                aux_weight=config.classifier.aux_weight,
            ),
            config=config.classifier,
            seed=seed,
        )
        tasks.append(task)
    return _as_parts(train_networks(tasks, worker))


def train_scorer(run: TrainingRun, worker: Worker) -> dict[str, Any]:
    """Fine-tune classifier 0 on crops, or regions, of the scorer's images; see TrainConfig.mode.

    Or give it an overlap head, if ScorerConfig asks for it.
    """
    bundle = load_bundle(run.model_uri)
    network = bundle.network(classifier_part(0))
    rows = split_boxed(training_manifest(run.manifest_uri, run.split), run.config).scorer
    task = _scorer_task(run.config, bundle, network, labelled_images(rows), worker)
    parts = _as_parts(train_networks([task], worker))
    if run.config.scorer.overlap_width:
        head = parts[SCORER]["tensors"]
        renamed = {f"overlap.{name}": weight for name, weight in head.items()}
        parts[SCORER]["tensors"] = {**network.state_dict(), **renamed}
    return parts


def _as_parts(trained: dict[str, State]) -> dict[str, Any]:
    """Return networks, as `train_networks` does, as parts of a bundle."""
    return {
        name: {"tensors": network["weights"], "metrics": {"epochs": network["metrics"]}}
        for name, network in trained.items()
    }


def _scorer_task(
    config: TrainConfig, bundle: Bundle, network: Network, data: LabelledImages, worker: Worker
) -> NetworkTask:
    """Return the training of the network, or of a head that reads it."""
    scorer, preprocess, seed = config.scorer, config.preprocess, config.seed * 1000 + 500
    has_head = scorer.overlap_width > 0
    dataset: ImageDataset
    if config.mode == "pyramid":
        kind = SquaresDataset if has_head else PyramidDataset
        dataset = kind(data, scorer, preprocess, seed, network.stride)
    else:
        sampler = any_square if has_head else scorer_sampler(scorer)
        dataset = CropDataset(data, sampler, preprocess, seed)
    objective: Objective
    if has_head:
        make: Callable[[], Any] = partial(OverlapHead, network.fc.in_features, scorer.overlap_width)
        engine = CropScorer(bundle, device=worker.device).network(classifier_part(0))
        objective = OverlapObjective(dataset, engine)
    else:
        make = partial(bundle.network, classifier_part(0))
        objective = CropObjective(
            dataset,
            label_smoothing=scorer.label_smoothing,
            learns_overlap=scorer.grid_fraction > 0,
        )
    return NetworkTask(
        name=SCORER, make=make, dataset=dataset, objective=objective, config=scorer, seed=seed
    )


def train_regressors(run: TrainingRun, scores_uri: str, worker: Worker) -> dict[str, Any]:
    """Train the localizer on a scores table; fit the baselines on the same images."""
    bundle = load_bundle(run.model_uri)
    shares = split_boxed(training_manifest(run.manifest_uri, run.split), run.config)
    localizer, metrics = train_localizer(
        _scored_images(scores_uri, [shares.localizer, shares.choosing, shares.judging]),
        num_classes=len(bundle.classes),
        config=run.config.localizer,
        seed=run.config.seed,
        progress=worker.progress,
    )
    part = {
        "tensors": localizer.to_tensors(),
        "metrics": metrics,
        "baselines": fit_baselines(bundle, shares.localizer, worker),
    }
    return {LOCALIZER: part}


def train_voter(run: TrainingRun, worker: Worker) -> dict[str, Any]:
    """Train voting heads on the localizer's images; fit its confidence and the baselines.

    What it returns it does so in rank 0.
    """
    config = run.config
    bundle = load_bundle(run.model_uri)
    shares = split_boxed(training_manifest(run.manifest_uri, run.split), config)
    if not len(shares.localizer):
        raise DataError(
            f"{run.manifest_uri}: the localizer has no image to learn from (its share: "
            f"{len(shares.scored)}, held back: {len(shares.held_back)})",
            hint="index more images with boxes; raise localizer_fraction or max_localizer_images",
        )
    if not len(sized(shares.localizer)):  # said before hours of training: baselines need them
        raise DataError(
            f"{run.manifest_uri}: no training image with boxes has a known size",
            hint="index the set again: it looks at the sizes of images with boxes",
        )
    seed = config.seed * 1000 + 700
    network = bundle.network(SCORER)
    dataset = VoteDataset(
        labelled_images(shares.localizer), config.voter, config.preprocess, seed, network.stride
    )
    task = NetworkTask(
        name=LOCALIZER,
        make=partial(
            VotingHeads,
            config.voter.num_heads,
            network.fc.in_features,
            network.num_inner,
            width=config.voter.width,
            dropout=config.voter.dropout,
        ),
        dataset=dataset,
        objective=VoteObjective(dataset, CropScorer(bundle, device=worker.device).network(SCORER)),
        config=config.voter,
        seed=seed,
    )
    trained = train_networks([task], worker)[LOCALIZER]
    if worker.rank != 0:
        return {}
    judging = labelled_images(shares.judging)
    tensors, metrics = fit_voter(bundle, trained["weights"], judging, worker)
    part = {
        "tensors": tensors,
        "metrics": {**metrics, "num_train": len(dataset), "epochs": trained["metrics"]},
        "baselines": fit_baselines(bundle, shares.localizer, worker),
    }
    return {LOCALIZER: part}


def _scored_images(scores_uri: str, shares: list[pa.Table]) -> ScoredShares:
    """Return shares of the localizer's images with their class-known scores, where there are any.

    Raises:
        DataError: fewer than ten have scores, or none of a share.
    """
    table = storage.read_table(scores_uri)
    schema.check_table(table.schema, schema.SCORES, scores_uri)
    known = {
        row["image_id"]: row["scores"]
        for row in table.to_pylist()
        if row["status"] == schema.OK and row["class_rank"] == 0
    }
    scored = ScoredShares(*(_with_scores(sized(rows), known) for rows in shares))
    counts = list(map(len, scored))
    if sum(counts) < 10 or 0 in counts:
        raise DataError(
            f"{scores_uri} has class-known scores of only {sum(counts)} training images: "
            f"{counts[0]} to learn from, {counts[1]} to choose by and {counts[2]} to judge by",
            hint="the localizer needs ten at the very least, some of each, and a thousand to be "
            "good",
        )
    return scored


def _with_scores(rows: pa.Table, known: dict[int, list[float]]) -> ScoredImages:
    """Return those of the rows whose scores are known."""
    rows = rows.filter(pc.is_in(rows["image_id"], pa.array(list(known), pa.int64())))
    labelled = labelled_images(rows)
    scores = [known[image_id] for image_id in rows["image_id"].to_pylist()]
    return ScoredImages(
        scores_NF=torch.tensor(scores, dtype=torch.float32),
        classes_N=torch.from_numpy(labelled.classes),
        boxes_NM4=pad_boxes(unit_boxes(rows, labelled)),
    )
