"""The job `bench`: ratios of speed, measured here."""

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from cropscore_ray.bench import localizer as localizer_bench
from cropscore_ray.bench import roofline
from cropscore_ray.bench import scorer as scorer_bench
from cropscore_ray.bench.measuring import Measured, machine, measure, ratio
from cropscore_ray.bundle import SCORER, load_bundle
from cropscore_ray.config import LocalizerConfig
from cropscore_ray.errors import ConfigError, CropscoreError
from cropscore_ray.grid import NUM_SQUARES
from cropscore_ray.inference import best_dtype
from cropscore_ray.progress import Progress

_SAME = 1e-4
_IMAGES_A_CLASS = 20

RATIOS = (
    ("exact", "naive"),
    ("exact", "good_practice"),
    ("pyramid", "exact"),
    ("exact", "forward_only"),
)


def run(what: str, *, model: str | None, images: int | None, rounds: int) -> dict[str, Any]:
    """Run a benchmark by name, and show how far it is; return machine, rows and ratios.

    Raises:
        ConfigError: an option belongs to the other benchmark.
    """
    for name, value, owner in (("model", model, "scorer"), ("images", images, "localizer")):
        if value is not None and what != owner:
            raise ConfigError(f"--{name} is an option of `cropscore bench {owner}`")
    shown = Progress()
    with shown.live():
        progress = partial(shown.update, f"bench {what}")
        if what == "scorer":
            return scorer(model=model, rounds=rounds, progress=progress)
        return localizer(images=images or _IMAGES_A_CLASS, rounds=rounds, progress=progress)


def scorer(
    *, model: str | None = None, rounds: int = 5, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Measure the crop-scoring engine; return machine, rows and ratios.

    Args:
        model: a bundle with a scorer; None: torchvision's GoogLeNet with random weights.
        rounds: measurements of each contestant.
        progress: told of runs done and runs in all.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = best_dtype(device)
    with tempfile.TemporaryDirectory() as folder:
        bundle = load_bundle(model) if model else scorer_bench.random_bundle(folder)
        bundle.require(SCORER)
        with scorer_bench.contestants(bundle.uri) as contestants:
            rows = measure(contestants, unit="images/s", rounds=rounds, progress=progress)
        layers = roofline.layers(bundle.network(SCORER), bundle.preprocess.input_px)
    matrix = roofline.matrix_rate(device, dtype, rounds)
    copy = roofline.copy_rate(device, rounds)
    limit = roofline.roofline(layers, matrix.median, copy.median, dtype.itemsize)
    ceiling = Measured(name="roofline", unit="images/s", values=[limit / NUM_SQUARES])
    ratios = {f"{over}/{under}": ratio(rows, over, under) for over, under in RATIOS}
    exact = next(row for row in rows if row.name == "exact")
    ratios["exact/roofline"] = exact.median / ceiling.median
    return _found(device, [*rows, matrix, copy, ceiling], ratios)


def localizer(
    *, images: int, rounds: int = 5, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Measure class-wise fine-tuning, stacked and as a loop; return machine, rows and ratios.

    Args:
        images: training images of each of the 1,000 classes; a mirrored one counts as one.
        rounds: measurements of each way.
        progress: told of runs done and runs in all.

    Raises:
        CropscoreError: the two ways' weights differ by more than 1e-4.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    contestants, difference = localizer_bench.contestants(images, LocalizerConfig(), device)
    if difference > _SAME:
        raise CropscoreError(f"the two ways' weights differ by {difference:.2g}")
    rows = measure(contestants, unit="classes/s", rounds=rounds, progress=progress)
    apart = Measured(name="largest difference", unit="of weights", values=[difference])
    return _found(device, [*rows, apart], {"stacked/loop": ratio(rows, "stacked", "loop")})


def _found(device: torch.device, rows: list[Measured], ratios: dict[str, float]) -> dict[str, Any]:
    return {"machine": machine(device), "rows": [_plain(row) for row in rows], "ratios": ratios}


def _plain(row: Measured) -> dict[str, Any]:
    values = row.values
    return {
        "name": row.name,
        "unit": row.unit,
        "median": row.median,
        "min": min(values),
        "max": max(values),
        "runs": len(values),
    }


def render(found: dict[str, Any]) -> str:
    """Return the figures as a table for people."""
    lines = [", ".join(f"{name} {value}" for name, value in found["machine"].items()), ""]
    lines.append(f"{'':34}{'median':>12}{'min':>12}{'max':>12}{'runs':>6}")
    for row in found["rows"]:
        name = f"{row['name']}, {row['unit']}"
        numbers = "".join(f"{row[key]:>12.4g}" for key in ("median", "min", "max"))
        lines.append(f"{name:34}{numbers}{row['runs']:>6}")
    lines += ["", *(f"{name:34}{value:>12.3f}" for name, value in found["ratios"].items())]
    return "\n".join(lines)
