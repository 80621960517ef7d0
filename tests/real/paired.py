"""Two runs on the same images: which images only one of them gets, and what that says.

    python tests/real/paired.py run run-poster --data m

The baselines that the first run carries stand against it too.
"""

import argparse

import numpy as np

from cropscore_ray.evaluate import image_outcomes
from cropscore_ray.formats.parquet import read_predictions
from cropscore_ray.manifest import Manifest, read_manifest
from cropscore_ray.outcomes import Bools, Outcomes, constant_box_wrong


def read(uri: str, manifest: Manifest) -> tuple[Outcomes, list[float]]:
    """Return what became of each image of a run, and its model's constant box."""
    predictions = read_predictions(uri)
    assert predictions.run is not None, f"{uri} is no run folder"
    constant_box: list[float] = predictions.run["baselines"]["constant_box"]
    return image_outcomes(predictions.table, manifest), constant_box


def compared(one_N: Bools, other_N: Bools) -> str:
    """Return the difference of two errors in points, its standard error, and what makes it."""
    difference_N = one_N.astype(np.float64) - other_N
    error = difference_N.std(ddof=1) / np.sqrt(len(difference_N))
    return (
        f"{100 * difference_N.mean():+5.1f} ± {100 * error:.1f} points: "
        f"{int((~one_N & other_N).sum())} images that only the first gets, "
        f"{int((one_N & ~other_N).sum())} that only the other gets"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--data", required=True, metavar="MANIFEST")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.data)
    first, constant_box = read(arguments.runs[0], manifest)
    others = {uri: read(uri, manifest)[0].wrong["gt_known"] for uri in arguments.runs[1:]}
    others["class activation map"] = first.wrong["cam"]
    others["best constant box"] = constant_box_wrong(first.truth, constant_box)
    boxed_N, wrong_N = first.truth.boxed, first.wrong["gt_known"]
    print(f"{arguments.runs[0]}, error with the class known: {100 * wrong_N[boxed_N].mean():.1f} %")
    for name, other_N in others.items():
        print(f"less that of {name}: {compared(wrong_N[boxed_N], other_N[boxed_N])}")


if __name__ == "__main__":
    main()
