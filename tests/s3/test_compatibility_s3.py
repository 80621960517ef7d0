"""Runs and trainings that an earlier version left unfinished (tests/compatibility) go on."""

import shutil
import tarfile
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch

from cropscore_ray import storage
from cropscore_ray.config.bulk import LocalizeConfig, RunConfig
from cropscore_ray.jobs import localize, train
from cropscore_ray.models import scorer

MADE = Path(__file__).parents[1] / "compatibility"
BUCKET = "cropscore-drawn"  # in the manifest's URIs
NUMBERS = ["class_score", "xmin", "ymin", "xmax", "ymax", "confidence"]


@pytest.fixture(scope="module")
def drawn_images(s3_endpoint: str) -> None:
    """The images where the manifest says that they are."""
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    client.create_bucket(Bucket=BUCKET)
    with tarfile.open(MADE / "images.tar") as archive:
        for entry in archive:
            if file := archive.extractfile(entry):
                client.put_object(Bucket=BUCKET, Key=entry.name, Body=file.read())


@pytest.mark.parametrize(("model", "run"), [("model", "run"), ("voting-model", "voting-run")])
def test_a_run_goes_on_to_the_rows_of_its_version(
    model: str,
    run: str,
    tmp_path: Path,
    drawn_images: None,
    bulk_here: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What made it computed in float32; other processors would in bfloat16.
    monkeypatch.setattr(scorer, "best_dtype", lambda device: torch.float32)
    shutil.copytree(MADE / run, tmp_path / run)
    before = {file.name: file.read_bytes() for file in (tmp_path / run).glob("predictions/*")}

    made = RunConfig(
        source=str(MADE / "manifest"),
        split="val",
        model=str(MADE / model),
        out=str(tmp_path / run),
    )
    record = localize.run("localize", made, LocalizeConfig(part_images=3))

    assert record["complete"]
    assert record["counts"]["by_status"] == {"ok": 10}
    for name, data in before.items():
        assert (tmp_path / run / "predictions" / name).read_bytes() == data
    rows = storage.read_table(str(tmp_path / run / "predictions"))
    expected = storage.read_table(str(MADE / f"{run}-expected.parquet"))
    same = [name for name in expected.column_names if name not in (*NUMBERS, "cam_xyxy")]
    assert rows.select(same).equals(expected.select(same))
    for name in NUMBERS:
        found, wanted = rows[name].to_numpy(), expected[name].to_numpy()
        np.testing.assert_allclose(found, wanted, atol=0.02, err_msg=name)


def test_a_training_goes_on_from_the_checkpoint_of_its_version(
    tmp_path: Path, drawn_images: None, ray_local: None
) -> None:
    shutil.copytree(MADE / "half-trained", tmp_path / "model")
    model = str(tmp_path / "model")

    config = train.first_config("classifier", model=model, recipe=None)
    bundle = train.run("classifier", data=str(MADE / "manifest"), model=model, config=config)

    metrics = bundle.parts["classifier-0"]["metrics"]
    assert metrics["fingerprint"] == "a954add9b225"
    # The first three epochs are those of the checkpoint, to the last digit.
    assert metrics["epochs"][2]["loss"] == 2.096340537071228
    assert len(metrics["epochs"]) == 6
