"""The three trainings of the method, each from a manifest and a bundle to new parts.

`train_classifiers` and `train_scorer` run in every worker, `train_regressors` in one; each
is a function of a `Worker` and returns plain tensors and numbers, which the caller puts
into the bundle. They read the manifest themselves, so that nothing large travels.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from cropscore_ray import baselines, fetch, geometry, images, schema, storage, voting
from cropscore_ray.bundle import LOCALIZER, SCORER, Bundle, classifier_part, load_bundle
from cropscore_ray.config import TrainConfig
from cropscore_ray.errors import DataError, ImageError
from cropscore_ray.manifest import Manifest, read_manifest
from cropscore_ray.scoring import CropScorer
from cropscore_ray.training.confidence import fit_confidence
from cropscore_ray.training.crop_loss import CropObjective
from cropscore_ray.training.crops import CropDataset, classifier_sampler, scorer_sampler
from cropscore_ray.training.dataset import ImageDataset, LabelledImages
from cropscore_ray.training.regions import PyramidDataset
from cropscore_ray.training.regressor import ScoredImages, pad_boxes, train_localizer
from cropscore_ray.training.sgd import NetworkTask, State, Worker, train_networks
from cropscore_ray.training.votes import VoteDataset, VoteObjective
from cropscore_ray.voting import VotingHead
from cropscore_ray.weights import initial_network

_CAM_IMAGES = 300  # enough to choose one threshold of a coarse grid


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRun:
    """What a training must know: where its images are, where its model is, its settings."""

    manifest_uri: str
    split: str | None
    model_uri: str
    config: TrainConfig


def training_manifest(uri: str, split: str | None) -> Manifest:
    """Return the rows to train on: the split asked for, else `train`, else the only one.

    Raises:
        DataError: there are several splits, none named train, and none was asked for.
    """
    manifest = read_manifest(uri)
    if split is None and "train" in manifest.splits:
        split = "train"
    if split is None and len(manifest.splits) > 1:
        raise DataError(
            f"{uri} has the splits {', '.join(manifest.splits)} and none is called train",
            hint="name the one to train on with --split",
        )
    return manifest.only(split)


def boxed_rows(manifest: Manifest) -> pa.Table:
    """Return the rows that carry a class and at least one box."""
    rows = manifest.table.to_pylist()
    keep = [row["class_index"] is not None and bool(row["gt_boxes"]) for row in rows]
    return manifest.table.filter(pa.array(keep, pa.bool_()))


def split_boxed(manifest: Manifest, config: TrainConfig) -> tuple[pa.Table, pa.Table]:
    """Return the boxed rows for the scorer and, disjoint from them, for the localizer.

    Drawn class by class from the seed, so that both shares hold every class that has two
    images; each in the order of image_id.

    Raises:
        DataError: fewer than two images carry boxes.
    """
    rows = boxed_rows(manifest)
    if len(rows) < 2:
        raise DataError(
            "the training split has fewer than two images with a class and boxes",
            hint="index a source with boxes: ilsvrc:, voc:, csv: or parquet:",
        )
    rng = np.random.default_rng((config.seed, 0xB0C5))
    classes = rows["class_index"].to_numpy()
    order = rng.permutation(len(rows))
    order = order[np.argsort(classes[order], kind="stable")]
    # Every 1/fraction-th image in the order of classes: an even draw from each class.
    reached = np.floor(np.arange(len(rows) + 1) * config.localizer_fraction + rng.random())
    for_localizer = np.diff(reached) > 0
    chosen = order[for_localizer]
    if config.max_localizer_images is not None:
        chosen = rng.permutation(chosen)[: config.max_localizer_images]
    return rows.take(np.sort(order[~for_localizer])), rows.take(np.sort(chosen))


def _labelled(rows: pa.Table) -> LabelledImages:
    boxes = [
        np.array(some or [], np.float64).reshape(-1, 4) for some in rows["gt_boxes"].to_pylist()
    ]
    return LabelledImages(
        uris=rows["image_uri"].to_pylist(),
        classes=rows["class_index"].to_numpy().astype(np.int64),
        boxes=boxes,
    )


def train_classifiers(run: TrainingRun, worker: Worker) -> dict[str, State]:
    """Train the classification networks on all labelled images; see `train_networks`."""
    config = run.config
    manifest = training_manifest(run.manifest_uri, run.split)
    rows = manifest.table.filter(manifest.table["class_index"].is_valid())
    make = partial(initial_network, config, len(manifest.classes))
    tasks = []
    for member in range(config.classifier.num_members):
        seed = config.seed * 1000 + member
        sampler = classifier_sampler(config.classifier)
        dataset = CropDataset(
            _labelled(rows), sampler, config.preprocess, seed, config.classifier.photometric
        )
        task = NetworkTask(
            name=classifier_part(member),
            make=make,
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
    return train_networks(tasks, worker)


def train_scorer(run: TrainingRun, worker: Worker) -> dict[str, State]:
    """Fine-tune classifier 0 on crops, or regions, of the scorer's images; see TrainConfig.mode."""
    config = run.config
    bundle = load_bundle(run.model_uri)
    rows, _ = split_boxed(training_manifest(run.manifest_uri, run.split), config)
    seed = config.seed * 1000 + 500
    make = partial(bundle.network, classifier_part(0))
    sampler = scorer_sampler(config.scorer)
    dataset: ImageDataset = CropDataset(_labelled(rows), sampler, config.preprocess, seed)
    if config.mode == "pyramid":
        dataset = PyramidDataset(
            _labelled(rows), config.scorer, config.preprocess, seed, make().stride
        )
    task = NetworkTask(
        name=SCORER,
        make=make,
        dataset=dataset,
        objective=CropObjective(
            dataset,
            label_smoothing=config.scorer.label_smoothing,
            learns_overlap=config.scorer.grid_fraction > 0,
        ),
        config=config.scorer,
        seed=seed,
    )
    return train_networks([task], worker)


def train_regressors(run: TrainingRun, scores_uri: str, worker: Worker) -> dict[str, Any]:
    """Train the localizer on a scores table; fit the baselines on the same images.

    Returns:
        {"tensors": of the localizer, "metrics": …, "baselines": …}.
    """
    bundle = load_bundle(run.model_uri)
    _, rows = split_boxed(training_manifest(run.manifest_uri, run.split), run.config)
    scores, rows = _join_scores(scores_uri, rows)
    labelled = _labelled(rows)
    unit = _unit_boxes(rows, labelled)
    data = ScoredImages(
        scores_NF=torch.from_numpy(scores),
        classes_N=torch.from_numpy(labelled.classes),
        boxes_NM4=pad_boxes(unit),
    )
    localizer, metrics = train_localizer(
        data,
        num_classes=len(bundle.classes),
        config=run.config.localizer,
        seed=run.config.seed,
        progress=worker.progress,
    )
    return {
        "tensors": localizer.to_tensors(),
        "metrics": metrics,
        "baselines": _fit_baselines(bundle, labelled, unit),
    }


def train_voter(run: TrainingRun, worker: Worker) -> dict[str, Any]:
    """Train a voting head on the localizer's images; fit its confidence and the baselines.

    Returns:
        what `train_regressors` does, in rank 0.
    """
    config = run.config
    bundle = load_bundle(run.model_uri)
    _, rows = split_boxed(training_manifest(run.manifest_uri, run.split), config)
    labelled = _labelled(rows.filter(rows["width_px"].is_valid()))
    seed = config.seed * 1000 + 700
    order = np.random.default_rng(seed).permutation(len(labelled))
    num_held = max(1, round(len(labelled) * config.voter.held_back_fraction))
    network = bundle.network(SCORER)
    dataset = VoteDataset(
        labelled.take(order[num_held:]), config.voter, config.preprocess, seed, network.stride
    )
    task = NetworkTask(
        name=LOCALIZER,
        make=partial(
            VotingHead,
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
    tensors, metrics = _with_confidence(bundle, trained["weights"], labelled.take(order[:num_held]))
    return {
        "tensors": tensors,
        "metrics": {**metrics, "num_train": len(dataset), "epochs": trained["metrics"]},
        "baselines": _fit_baselines(bundle, labelled, _unit_boxes(rows, labelled)),
    }


def _with_confidence(
    bundle: Bundle, weights: State, held: LabelledImages
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Return a voter's tensors with a confidence fitted on held-back images, and its error."""
    scorer = CropScorer(bundle, mode="votes")
    unfitted = voting.to_tensors(weights, torch.zeros(3, voting.NUM_EVIDENCE))
    scorer.voter = voting.from_tensors(unfitted, scorer.network(SCORER).fc, scorer.device)
    evidence, hits = [], []
    for uri, class_index, true in zip(held.uris, held.classes, held.boxes, strict=True):
        try:
            pixels = images.decode(fetch.fetch_image(uri))
        except ImageError:
            continue  # as in training, where it was counted
        height, width = pixels.shape[:2]
        classes_GK = torch.tensor([[class_index]], device=scorer.device)
        unit_GK4, evidence_GKE = scorer.elect([pixels], classes_GK)
        box = unit_GK4[0].cpu().numpy() * [width, height, width, height]
        evidence.append(evidence_GKE[0, 0].cpu())
        hits.append(geometry.iou(box, true).max() >= 0.5)
    hits_N = torch.tensor(hits)
    confidence = fit_confidence(torch.stack(evidence), hits_N)
    metrics = {"num_held_back": len(hits), "held_back_error": 1 - float(hits_N.float().mean())}
    return voting.to_tensors(weights, confidence), metrics


def _unit_boxes(rows: pa.Table, labelled: LabelledImages) -> list[NDArray[np.float64]]:
    """Return the true boxes of rows with known sizes, as fractions of the image."""
    sized = rows.filter(rows["width_px"].is_valid())
    sides = np.array([sized["width_px"], sized["height_px"]] * 2, np.float64).T
    return [boxes / side for boxes, side in zip(labelled.boxes, sides, strict=True)]


def _join_scores(scores_uri: str, rows: pa.Table) -> tuple[NDArray[np.float32], pa.Table]:
    """Return the class-known scores, (N, 140), and the manifest rows they belong to."""
    table = storage.read_table(scores_uri)
    schema.check_table(table.schema, schema.SCORES, scores_uri)
    known = {
        row["image_id"]: row["scores"]
        for row in table.to_pylist()
        if row["status"] == schema.OK and row["class_rank"] == 0
    }
    sized = rows["width_px"].is_valid().to_pylist()
    ids = rows["image_id"].to_pylist()
    keep = [one in known and has_size for one, has_size in zip(ids, sized, strict=True)]
    rows = rows.filter(pa.array(keep, pa.bool_()))
    if len(rows) < 10:
        raise DataError(
            f"{scores_uri} has class-known scores of only {len(rows)} training images",
            hint="the localizer needs ten at the very least, and a thousand to be good",
        )
    scores = np.array([known[one] for one in rows["image_id"].to_pylist()], np.float32)
    return scores, rows


def _fit_baselines(
    bundle: Bundle, labelled: LabelledImages, unit: list[NDArray[np.float64]]
) -> dict[str, Any]:
    """Return the best constant box and the best CAM threshold on training images."""
    scorer = CropScorer(bundle)
    maps, boxes = [], []
    step = max(1, len(labelled) // _CAM_IMAGES)
    for i in range(0, len(labelled), step):
        try:
            pixels = images.decode(fetch.fetch_image(labelled.uris[i]))
        except ImageError:
            continue  # it has its row in the scores table already
        classes_GK = torch.tensor([[labelled.classes[i]]], device=scorer.device)
        maps.append(scorer.class_maps([pixels], classes_GK)[0, 0].cpu().numpy())
        boxes.append(unit[i])
    return {
        "constant_box": baselines.fit_constant_box(unit).tolist(),
        "cam_threshold": baselines.fit_cam_threshold(np.stack(maps), boxes),
    }
