"""What a worker of a training raises reaches the user, however the others wait for it."""

from pathlib import Path

import pytest
import torch

from cropscore_ray.errors import DataError
from cropscore_ray.training import on_ray
from cropscore_ray.training.loop import Worker

pytestmark = pytest.mark.usefixtures("ray_local")


def test_an_error_that_would_come_again_ends_a_training_at_once(tmp_path: Path) -> None:
    tries = tmp_path / "tries"

    def training(worker: Worker) -> None:
        if worker.rank == 1:
            with tries.open("a") as file:
                file.write("tried\n")
            raise DataError("no boxes", hint="draw some")
        worker.total(torch.ones(1))  # waits for the other

    config = on_ray.FitConfig(name="x", storage_uri=str(tmp_path), num_workers=2, use_gpu=False)
    with pytest.raises(DataError, match=r"^no boxes$") as caught:
        on_ray.fit(training, config)
    assert caught.value.hint == "draw some"
    assert tries.read_text() == "tried\n"
