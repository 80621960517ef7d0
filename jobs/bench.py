"""The job `bench`: ratios of speed, measured here."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch

from cropscore_ray import bench, roofline
from cropscore_ray.bundle import SCORER, load_bundle
from cropscore_ray.grid import NUM_SQUARES
from cropscore_ray.inference import best_dtype
from cropscore_ray.roofline import Measured

RATIOS = (
    ("exact", "naive"),
    ("exact", "good_practice"),
    ("pyramid", "exact"),
    ("exact", "forward_only"),
)


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
        bundle = load_bundle(model) if model else bench.random_bundle(folder)
        bundle.require(SCORER)
        with bench.scorer_contestants(bundle.uri) as contestants:
            rows = bench.measure(contestants, unit="images/s", rounds=rounds, progress=progress)
        layers = roofline.layers(bundle.network(SCORER), bundle.preprocess.input_px)
    matrix = roofline.matrix_rate(device, dtype, rounds)
    copy = roofline.copy_rate(device, rounds)
    limit = roofline.roofline(layers, matrix.median, copy.median, dtype.itemsize)
    ceiling = Measured(name="roofline", unit="images/s", values=[limit / NUM_SQUARES])
    ratios = {f"{over}/{under}": bench.ratio(rows, over, under) for over, under in RATIOS}
    exact = next(row for row in rows if row.name == "exact")
    ratios["exact/roofline"] = exact.median / ceiling.median
    rows = [*rows, matrix, copy, ceiling]
    return {
        "machine": bench.machine(device),
        "rows": [_plain(row) for row in rows],
        "ratios": ratios,
    }


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
