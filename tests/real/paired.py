"""Two runs on the same images: which images only one of them gets, and what that says.

    python tests/real/paired.py run run-poster --data m

CAM and the constant box of training images stand against the first run too.
"""

import argparse

import numpy as np

from cropscore_ray.datasets.manifest import read_manifest
from cropscore_ray.evaluation.formats.parquet import read_predictions
from cropscore_ray.evaluation.matching import Bools, constant_box_wrong
from cropscore_ray.evaluation.metrics import image_outcomes
from cropscore_ray.jobs import evaluate


def compared(one_N: Bools, other_N: Bools) -> str:
    """Return the difference of two errors in points, its standard error, and what makes it."""
    more, error = paired(one_N, other_N)
    return (
        f"{more:+5.1f} ± {error:.1f} points: "
        f"{int((~one_N & other_N).sum())} images that only the first gets, "
        f"{int((one_N & ~other_N).sum())} that only the other gets"
    )


def paired(one_N: Bools, other_N: Bools) -> tuple[float, float]:
    """Return the difference of two errors on the same images, and its standard error, in points."""
    difference_N = 100.0 * (one_N.astype(np.float64) - other_N)
    return float(difference_N.mean()), float(difference_N.std(ddof=1) / np.sqrt(len(difference_N)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--data", required=True, metavar="MANIFEST")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.data)
    outcomes = {
        uri: image_outcomes(read_predictions(uri).table, manifest) for uri in arguments.runs
    }
    first, *others = outcomes.values()
    assert all(np.array_equal(one.truth.image_id, first.truth.image_id) for one in others)
    wrong = {uri: one.wrong["gt_known"] for uri, one in outcomes.items()}
    wrong["class activation map"] = first.wrong["cam"]
    constant_box = evaluate.run(arguments.runs[0], arguments.data).constant_box
    assert constant_box is not None, f"{arguments.runs[0]} tells of no constant box"
    wrong["best constant box"] = constant_box_wrong(first.truth, constant_box)
    (name, first_N), *rest = [(name, one[first.truth.boxed]) for name, one in wrong.items()]
    print(f"{name}, error with the class known: {100 * first_N.mean():.1f} %")
    for name, other_N in rest:
        print(f"less that of {name}: {compared(first_N, other_N)}")


if __name__ == "__main__":
    main()
