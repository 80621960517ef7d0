"""The job `bench`: ratios of speed, measured here."""

import itertools
import tempfile
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cropscore_ray.bench import localizer as localizer_bench
from cropscore_ray.bench import pipeline as pipeline_bench
from cropscore_ray.bench import roofline
from cropscore_ray.bench import scorer as scorer_bench
from cropscore_ray.bench import training as training_bench
from cropscore_ray.bench.measuring import Measured, machine, measure, ratio
from cropscore_ray.config.bench import BenchConfig
from cropscore_ray.config.sections import LocalizerConfig
from cropscore_ray.errors import CropscoreError
from cropscore_ray.grid import NUM_SQUARES
from cropscore_ray.models.bundle import SCORER, Bundle, load_bundle
from cropscore_ray.models.inference import best_dtype
from cropscore_ray.storage import absolute_uri, delete_folder, join
from cropscore_ray.terminal.progress import Progress
from cropscore_ray.terminal.tables import Table

_SAME = 1e-4

RATIOS = (
    ("exact", "naive"),
    ("exact", "good_practice"),
    ("pyramid", "exact"),
    ("exact", "forward_only"),
)


def run(name: str, config: BenchConfig) -> dict[str, Any]:
    """Run a benchmark by name, and show how far it is; return machine, rows and ratios."""
    with Progress().live() as progress:
        return BENCHMARKS[name](config, partial(progress.update, f"bench {name}"))


def scorer(config: BenchConfig, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Measure the crop-scoring engine; return machine, rows and ratios.

    `progress` takes the number of runs done, and of all runs; so in the others.
    """
    device = _device()
    dtype = best_dtype(device)
    with tempfile.TemporaryDirectory() as folder:
        bundle = _bundle(config, folder)
        with scorer_bench.contestants(bundle.uri) as contestants:
            rows = measure(contestants, unit="images/s", rounds=config.rounds, progress=progress)
        layers = roofline.layers(bundle.network(SCORER), bundle.preprocess.input_px)
    matrix = roofline.matrix_rate(device, dtype, config.rounds)
    copy = roofline.copy_rate(device, config.rounds)
    limit = roofline.roofline(layers, matrix.median, copy.median, dtype.itemsize)
    ceiling = Measured(name="roofline", unit="images/s", values=[limit / NUM_SQUARES])
    ratios = {f"{over}/{under}": ratio(rows, over, under) for over, under in RATIOS}
    exact = next(row for row in rows if row.name == "exact")
    ratios["exact/roofline"] = exact.median / ceiling.median
    return _report(device, [*rows, matrix, copy, ceiling], ratios)


def localizer(config: BenchConfig, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Measure class-wise fine-tuning, stacked and as a loop; return machine, rows and ratios.

    Raises:
        CropscoreError: the two ways' weights differ by more than 1e-4.
    """
    device = _device()
    contestants, difference = localizer_bench.contestants(config.images, LocalizerConfig(), device)
    if difference > _SAME:
        raise CropscoreError(f"the two ways' weights differ by {difference:.2g}")
    rows = measure(contestants, unit="classes/s", rounds=config.rounds, progress=progress)
    apart = Measured(name="largest difference", unit="of weights", values=[difference])
    return _report(device, [*rows, apart], {"stacked/loop": ratio(rows, "stacked", "loop")})


def training(config: BenchConfig, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Measure training steps on Ray workers; return machine, rows and ratios.

    Raises:
        ConfigError: the cluster has several nodes.
    """
    use_gpu = training_bench.on_gpu()
    size = training_bench.Size(steps=config.steps)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        images = training_bench.draw_images(Path(folder), size.num_images)
        # A folder of its own: a training resumes from the checkpoints that are there.
        where = join(absolute_uri(config.storage or folder), f"bench-{uuid.uuid4().hex[:8]}")
        try:
            for number in range(config.rounds):
                progress(number, config.rounds)
                rounds.append(
                    training_bench.run_round(images, size, where, number, use_gpu=use_gpu)
                )
        finally:
            delete_folder(where)
        progress(config.rounds, config.rounds)
    rows = training_bench.measured(rounds, size)
    single, double = training_bench.WORKERS
    ratios = {
        "two workers/one worker": ratio(rows, double, single),
        # Of seconds, where the rows are rates.
        "one worker, with checkpoints/without": ratio(rows, single, f"{single}, with checkpoints"),
        "two workers, with checkpoints/without": ratio(rows, double, f"{double}, with checkpoints"),
    }
    return _report(torch.device("cuda" if use_gpu else "cpu"), rows, ratios)


def pipeline(config: BenchConfig, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Measure the bulk run on Ray; return machine, rows and ratios."""
    device = _device()
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = _bundle(config, f"{folder}/model")
        steps = itertools.count(1)
        for _ in range(config.rounds):
            rounds.append(
                pipeline_bench.run_round(
                    Path(folder),
                    bundle.uri,
                    pipeline_bench.SIZE,
                    lambda: progress(next(steps), config.rounds * pipeline_bench.SIZE.num_steps),
                )
            )
    rows = pipeline_bench.measured(rounds)
    few, more, most = pipeline_bench.SIZE.shards
    ratios = {
        f"pipeline/bare:{mode}": ratio(rows, f"pipeline, {mode}", f"bare, {mode}")
        for mode in pipeline_bench.SIZE.photos
    }
    over, under = (f"marginal, {a:,} to {b:,} images" for a, b in ((more, most), (few, more)))
    ratios["marginal_10k_to_100k/marginal_1k_to_10k"] = ratio(rows, over, under)
    over, under = f"average, {most:,} images", f"average, {few:,} images"
    ratios["overhead_100k/overhead_1k"] = ratio(rows, over, under)
    resume, full = "resume, 99 % done", f"whole run, {most:,} images"
    ratios["resume_99/full"] = ratio(rows, resume, full)
    return _report(device, rows, ratios)


BENCHMARKS = {bench.__name__: bench for bench in (scorer, localizer, training, pipeline)}


def _bundle(config: BenchConfig, folder: str) -> Bundle:
    """Return the bundle that was asked for, or one with random weights in the folder."""
    bundle = load_bundle(config.model) if config.model else scorer_bench.random_bundle(folder)
    bundle.require(SCORER)
    return bundle


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _report(device: torch.device, rows: list[Measured], ratios: dict[str, float]) -> dict[str, Any]:
    plain = [
        {
            **{"name": row.name, "unit": row.unit, "median": row.median},
            **{"min": min(row.values), "max": max(row.values), "runs": len(row.values)},
        }
        for row in rows
    ]
    return {"machine": machine(device), "rows": plain, "ratios": ratios}


def render(report: dict[str, Any]) -> list[Table | str]:
    """Return the figures as tables for people."""
    names = [f"{row['name']}, {row['unit']}" for row in report["rows"]]
    columns = (f"<{max(map(len, [*names, *report['ratios']])) + 2}", *[">12"] * 3, ">6")
    rows = [
        (name, *(f"{row[key]:.4g}" for key in ("median", "min", "max")), str(row["runs"]))
        for name, row in zip(names, report["rows"], strict=True)
    ]
    ratios = [(name, f"{value:.3f}") for name, value in report["ratios"].items()]
    return [
        ", ".join(f"{name} {value}" for name, value in report["machine"].items()),
        "",
        Table(rows=[("", "median", "min", "max", "runs"), *rows], columns=columns, has_head=True),
        "",
        Table(rows=ratios, columns=columns),
    ]
