"""The process that holds a model: where it computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from models import random_model

from cropscore_ray import run_folder, stage_actor
from cropscore_ray.config import LocalizeConfig
from cropscore_ray.pool import Pool
from cropscore_ray.stage_actor import Scoring, StageActor


@pytest.mark.parametrize(
    ("num_gpus", "has_gpu", "device"),
    [(0, True, "cpu"), (0, False, "cpu"), (1, True, None), (0.5, True, None), (1, False, "cpu")],
)
def test_a_worker_computes_on_a_gpu_only_if_it_asked_for_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_gpus: float,
    has_gpu: bool,
    device: str | None,
) -> None:
    given: list[torch.device | None] = []
    random_model(str(tmp_path / "model"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(stage_actor, "WorkerTelemetry", lambda *_: None)
    stage: Any = lambda bundle, config, device: given.append(device)  # noqa: E731
    StageActor(
        Scoring(
            stage=stage,
            model_uri=str(tmp_path / "model"),
            config=LocalizeConfig(),
            class_map=[],
        ),
        run_folder.open_run(str(tmp_path), table="scores", identity={}, facts={}),
        Pool(num_now=1, most=1, num_gpus=num_gpus, num_cpus=0 if num_gpus else 1),
        queue=None,
        attempts=None,
    )
    assert given == [device and torch.device(device)]


def test_a_stage_computes_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = random_model(str(tmp_path / "model"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    stage = stage_actor.make_stage("localize", bundle, LocalizeConfig(), torch.device("cpu"))
    assert stage.scorer.device == torch.device("cpu")
