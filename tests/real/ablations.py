"""The table of ablations: each row one change to what the localizer learns from, or how.

    python tests/real/ablations.py m bundle-pyramid --cache scores \
        --scorer "as it is=bundle-unadapted" --scorer "object crops=bundle-object"

The first model's localizer is the base of the table, its own images are what every localizer
learns from, and the val split is what they are judged by. Another scorer's scores are normalized
as its own model has it. Scores are computed once and kept in
the cache; after that a row takes seconds.

The seeds are the localizer's alone: which of its images are held back, first weights and order.
Its share of the images, the scorer and so the scores are those of one training, and how they
would vary with its seed is not in the spread.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from cropscore_ray import grid
from cropscore_ray.config.sections import LocalizerConfig
from cropscore_ray.datasets.manifest import Manifest, read_manifest
from cropscore_ray.geometry import IOU_THRESHOLD
from cropscore_ray.images.decode import Pixels, decode
from cropscore_ray.images.fetch import fetch_image
from cropscore_ray.models.boxes import best_iou, pad_boxes
from cropscore_ray.models.bundle import Bundle, load_bundle
from cropscore_ray.models.scorer import CropScorer
from cropscore_ray.training.data.shares import labelled_images, split_boxed, unit_boxes
from cropscore_ray.training.localizer.regressor import ScoredImages, ScoredShares, train_localizer

SEEDS = (0, 1, 2)
GROUP = 4
REGIONS = {
    "squares": grid.square_rectangles(),
    "rectangles": grid.rectangle_cells(),
    "cells": grid.rectangle_cells()[:49],  # the blocks of one cell, row by row
}


@dataclass(frozen=True)
class Images:
    """Rows of a manifest, and the true boxes as fractions."""

    rows: pa.Table
    classes_N: Tensor  # noqa: N815
    boxes_NM4: Tensor  # noqa: N815

    def scored(self, scores_NF: Tensor, regions_F4: NDArray[np.int64]) -> ScoredImages:
        return ScoredImages(
            scores_NF=scores_NF,
            classes_N=self.classes_N,
            boxes_NM4=self.boxes_NM4,
            regions_F4=regions_F4,
        )


@dataclass(frozen=True)
class Data:
    """What a row learns from and what it is judged by."""

    train: ScoredImages
    val: ScoredImages


def some_images(rows: pa.Table) -> Images:
    labelled = labelled_images(rows)
    return Images(
        rows=rows,
        classes_N=torch.from_numpy(labelled.classes),
        boxes_NM4=pad_boxes(unit_boxes(rows, labelled)),
    )


def score(bundle: Bundle, some: Images, kind: str, *, mirrored: bool) -> Tensor:
    """Score images, or their mirror images, for their classes: (N, regions).

    Args:
        bundle: the model; squares are scored in its mode.
        some: the images.
        kind: one of REGIONS; cells are those of classifier 0's class map.
        mirrored: the mirror images; their scores come in the order of the images' own squares.
    """
    scorer, regions_F4 = CropScorer(bundle), REGIONS[kind]
    order = grid.mirror_order(regions_F4) if mirrored else np.arange(len(regions_F4))
    uris, found = some.rows["image_uri"].to_pylist(), []
    for i in range(0, len(uris), GROUP):
        group: list[Pixels | Tensor] = []
        for uri in uris[i : i + GROUP]:
            plain = torch.from_numpy(decode(fetch_image(uri)))
            group.append(plain.flip(1) if mirrored else plain)
        classes_GK = some.classes_N[i : i + GROUP, None]
        if kind == "cells":
            scores_GF = scorer.class_maps(group, classes_GK)[:, 0].flatten(1)
        elif kind == "squares":
            scores_GF = scorer.score(scorer.embed(group), classes_GK)[:, 0]
        else:
            embedded = scorer.embed_regions(group, regions_F4)
            scores_GF = scorer.score(embedded, classes_GK)[:, 0]
        found.append(scores_GF[:, order].float())
        print(f"\r{kind}: {i + len(group)} of {len(uris)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return torch.cat(found)


def cached(cache: Path, bundle: Bundle, some: Images, kind: str, *, mirrored: bool) -> Tensor:
    """Score images, or read what was scored before."""
    fingerprint = Manifest(table=some.rows, classes=bundle.classes).fingerprint()
    which = f"{kind}-mirrored" if mirrored else kind
    file = cache / f"{bundle.fingerprint}-{fingerprint}-{which}.pt"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(score(bundle, some, kind, mirrored=mirrored), file)
    scores_NF: Tensor = torch.load(file)
    return scores_NF


def wrong_by_seed(data: Data, config: LocalizerConfig) -> tuple[NDArray[np.bool_], list[int]]:
    """Train a localizer a seed; return which val images each gets wrong, (seeds, N).

    And how many classes took a last layer of their own: where images are few, none may.
    """
    torch.set_num_threads(1)
    found, num_classwise = [], []
    num_held = max(2, round(len(data.train) * config.held_back_fraction))
    for seed in SEEDS:
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
        localizer, metrics = train_localizer(
            ScoredShares(
                data.train.take(order[num_held:]),
                data.train.take(order[: num_held // 2]),
                data.train.take(order[num_held // 2 : num_held]),
            ),
            num_classes=1000,
            config=config,
            seed=seed,
            progress=lambda *_: None,
        )
        boxes_N4 = localizer.boxes(data.val.scores_NF, data.val.classes_N)
        found.append((best_iou(boxes_N4, data.val.boxes_NM4) < IOU_THRESHOLD).numpy())
        num_classwise.append(metrics["num_classwise"])
    return np.stack(found), num_classwise


def line(name: str, wrong_SN: NDArray[np.bool_], is_single_N: NDArray[np.bool_]) -> str:
    """Return a row of the table: mean over seeds and their spread, all, single and multi."""
    parts = []
    for group in (np.ones_like(is_single_N), is_single_N, ~is_single_N):
        errors_S = 100 * wrong_SN[:, group].mean(1)
        parts.append(f"{errors_S.mean():.1f} ± {errors_S.std(ddof=1):.1f}")
    return f"| {name} | {' | '.join(parts)} |"


def rows(
    base: Data, config: LocalizerConfig, others: dict[str, tuple[Data, LocalizerConfig]]
) -> Iterator[tuple[str, Data, LocalizerConfig]]:
    """Yield each row's name, data and settings; each differs from the first in one thing."""
    yield f"base: {config.normalization}, {config.loss}", base, config
    for normalization in ("raw", "zscore", "l2"):
        if normalization != config.normalization:
            changed = replace(config, normalization=normalization)
            yield f"normalization: {normalization}", base, changed
    for loss in ("euclidean", "l2", "l1", "giou"):
        if loss != config.loss:
            yield f"loss: {loss}", base, replace(config, loss=loss)
    classwise = replace(config, classwise_min_images=2)
    yield "classes with 2 images or more may have last layers of their own", base, classwise
    for name, (data, own) in others.items():
        yield name, data, own


def data(
    cache: Path, bundle: Bundle, both: tuple[Images, Images], kind: str, *, averaged: bool = False
) -> Data:
    """Return the training and the validation images with their scores."""
    found = []
    for some in both:
        scores_NF = cached(cache, bundle, some, kind, mirrored=False)
        if averaged:
            scores_NF = (scores_NF + cached(cache, bundle, some, kind, mirrored=True)) / 2
        found.append(some.scored(scores_NF, REGIONS[kind]))
    return Data(*found)


def other_model(where: str, mode: str, train: Manifest, for_localizer: pa.Table) -> Bundle:
    """Return a model of this mode whose scorer has not learnt from images that it is to score.

    Which these are follows from its settings, if it was trained on the same manifest.
    """
    bundle = load_bundle(where)
    if bundle.config.mode != mode:
        sys.exit(f"{where} is a model of mode {bundle.config.mode}; the table is of mode {mode}")
    if bundle.config.scorer.epochs:
        seen = split_boxed(train, bundle.config).scorer["image_id"].to_pylist()
        num_seen = len(set(seen).intersection(for_localizer["image_id"].to_pylist()))
        if num_seen:
            sys.exit(
                f"{where}: its scorer has learnt from {num_seen} of the images that localizers "
                "learn from here; train it with the first model's seed and localizer_fraction"
            )
    return bundle


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest")
    parser.add_argument("model")
    parser.add_argument("--cache", type=Path, required=True, help="folder of scores")
    parser.add_argument("--scorer", action="append", default=[], metavar="NAME=BUNDLE")
    parser.add_argument("--averaged", action="store_true", help="score mirror images too")
    arguments = parser.parse_args()
    manifest, bundle = read_manifest(arguments.manifest), load_bundle(arguments.model)
    train = manifest.only("train")
    for_localizer = split_boxed(train, bundle.config).scored
    both = some_images(for_localizer), some_images(manifest.only("val").table)
    of = partial(data, arguments.cache)
    base = of(bundle, both, "squares")
    config = bundle.config.localizer
    others = {"49 cells of the class map": (of(bundle, both, "cells"), config)}
    if bundle.config.mode == "pyramid":
        others["784 rectangles"] = of(bundle, both, "rectangles"), config
    if arguments.averaged:
        averaged = of(bundle, both, "squares", averaged=True)
        others["mirror images' scores averaged in"] = averaged, config
    for option in arguments.scorer:
        name, where = option.split("=", 1)
        other = other_model(where, bundle.config.mode, train, for_localizer)
        # Overlaps are read as they are, logits normalized.
        own = replace(config, normalization=other.config.localizer.normalization)
        others[f"scorer: {name}"] = of(other, both, "squares"), own
    is_single_N = np.array([len(boxes) == 1 for boxes in both[1].rows["gt_boxes"].to_pylist()])
    print(f"error in %, ± over {len(SEEDS)} seeds of the localizer alone\n")
    print(f"| {bundle.config.mode} | {len(is_single_N)} images | single-box | multi-box |")
    print("|---|---|---|---|")
    for name, some, settings in rows(base, config, others):
        wrong_SN, num_classwise = wrong_by_seed(some, settings)
        if any(num_classwise) or "2 images" in name:
            name = f"{name} ({', '.join(map(str, num_classwise))} classes did)"
        print(line(name, wrong_SN, is_single_N), flush=True)


if __name__ == "__main__":
    main()
