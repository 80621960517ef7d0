"""The process that holds a model: where it computes, and what it tells of its GPU."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from models import random_model

from cropscore_ray import storage
from cropscore_ray.bulk import run_folder, score_actor, telemetry
from cropscore_ray.bulk.crashes import Crashes
from cropscore_ray.bulk.parts import Row, as_row
from cropscore_ray.bulk.score_actor import Scoring, StageActor
from cropscore_ray.bulk.telemetry import WorkerTelemetry
from cropscore_ray.bulk.workers import Pool
from cropscore_ray.clusters import events
from cropscore_ray.config.bulk import LocalizeConfig
from cropscore_ray.images.fetch import Fetched


@pytest.mark.parametrize(
    ("num_gpus", "has_gpu", "device", "uuid"),
    [
        (0, True, "cpu", None),
        (0, False, "cpu", None),
        (1, True, "cuda", "8-4"),
        (0.5, True, "cuda", "8-4"),
        (1, False, "cpu", None),
    ],
)
def test_a_worker_computes_on_a_gpu_only_if_it_asked_for_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_gpus: float,
    has_gpu: bool,
    device: str,
    uuid: str | None,
) -> None:
    found: list[Any] = []
    random_model(str(tmp_path / "model"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    gpu = SimpleNamespace(uuid="8-4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(score_actor, "WorkerTelemetry", lambda *told: found.append(told[-1]))
    StageActor(
        Scoring(
            stage=lambda bundle, config, device: found.append(device),
            model_uri=str(tmp_path / "model"),
            config=LocalizeConfig(),
            class_map=[],
        ),
        run_folder.open_run(str(tmp_path), table="scores", identity={}, facts={}),
        Pool(num_now=1, most=1, num_gpus=num_gpus, num_cpus=0 if num_gpus else 1),
        queue=None,
        crashes=None,
    )
    assert found == [uuid, torch.device(device)]


def test_a_stage_computes_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = random_model(str(tmp_path / "model"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    stage = score_actor.make_stage("localize", bundle, LocalizeConfig(), torch.device("cpu"))
    assert stage.scorer.device == torch.device("cpu")


class Nvml:
    """NVIDIA's library, of a machine with one GPU."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != "GPU-8-4":
            raise self.NVMLError("not found")
        return uuid

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=87, memory=3)


@pytest.mark.parametrize(("uuid", "use"), [("8-4", 0.87), ("8-5", None), (None, None)])
def test_a_worker_tells_of_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, uuid: str | None, use: float | None
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(telemetry, "pynvml", Nvml())
    monkeypatch.setattr(telemetry, "Counter", lambda *_: SimpleNamespace(inc=lambda *_: None))
    monkeypatch.setattr(events, "worker_id", lambda: "a")
    monkeypatch.setattr(events, "tell", lambda queue, work: told.append(work.gpu_use))
    WorkerTelemetry(None, "run", uuid).worked(3, busy_s=1, idle_s=0)
    assert told == [use]


def test_a_machine_without_nvidias_library_tells_nothing() -> None:
    assert telemetry.gpu_use("8-4") is None


class Narrow:
    """A stage that has room for one image at a time."""

    schema = pa.schema([("image_id", pa.int64()), ("status", pa.string())])

    def __init__(self, error: RuntimeError) -> None:
        self.error = error

    def by_image(self, rows: list[Row], fetched: list[Fetched]) -> Iterator[list[Row]]:
        yield [{"image_id": rows[0]["image_id"], "status": "ok"}]
        if len(rows) > 1:
            raise self.error


class Reads:
    """A stage whose rows tell what an image's bytes are, or why there are none."""

    schema = pa.schema(
        [("image_id", pa.int64()), ("status", pa.string()), ("found", pa.large_binary())]
    )

    def by_image(self, rows: list[Row], fetched: list[Fetched]) -> Iterator[list[Row]]:
        for row, one in zip(rows, fetched, strict=True):
            known = {"image_id": row["image_id"], "status": "ok", "found": one}
            yield [
                known | ({} if isinstance(one, bytes) else {"status": one.status, "found": None})
            ]


def a_part(folder: run_folder.RunFolder, stage: Any, rows: list[Row], crashes: Crashes) -> pa.Table:
    """Have an actor with a stage score a part; return what it wrote."""
    actor = StageActor(
        Scoring(
            stage=lambda bundle, config, device: stage,
            model_uri=random_model(f"{folder.uri}/model").uri,
            config=LocalizeConfig(),
            class_map=[],
        ),
        folder,
        Pool(num_now=1, most=1, num_gpus=0, num_cpus=1),
        queue=None,
        crashes=crashes,
    )
    actor(as_row(0, pa.Table.from_pylist(rows)))
    return storage.read_table(folder.part_uri(0))


def three_images() -> list[Row]:
    empty = {"class_index": None, "image_uri": "a.jpg", "data": b"", "fetch_status": None}
    return [{"image_id": i, **empty} for i in (7, 8, 9)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> run_folder.RunFolder:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(events, "ask", lambda method, *arguments: method(*arguments))
    monkeypatch.setattr(
        score_actor,
        "WorkerTelemetry",
        lambda *_: SimpleNamespace(worked=lambda *_, **__: None, did=lambda *_: None),
    )
    return run_folder.open_run(str(tmp_path), table="scores", identity={}, facts={})


def test_images_that_do_not_fit_into_memory_together_are_taken_one_by_one(
    folder: run_folder.RunFolder,
) -> None:
    narrow = Narrow(torch.OutOfMemoryError("CUDA out of memory"))
    rows = a_part(folder, narrow, three_images(), Crashes())
    assert rows["image_id"].to_pylist() == [7, 8, 9]


def test_another_error_of_a_stage_is_not_tried_again(folder: run_folder.RunFolder) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"):
        a_part(folder, Narrow(RuntimeError("shapes differ")), three_images(), Crashes())


@pytest.mark.parametrize("num_deaths", [0, 2, 4])
def test_images_that_did_not_travel_with_their_part_are_fetched(
    folder: run_folder.RunFolder, tmp_path: Path, num_deaths: int
) -> None:
    """After two deaths one by one; after two more of them at an image, that one is spared."""
    left = {"data": None, "fetch_status": None, "fetch_error": None}
    rows: list[Row] = [
        {"image_id": 1, **left, "data": b"one"},
        {"image_id": 2, "data": None, "fetch_status": "denied", "fetch_error": "not for you"},
        *({"image_id": i, **left} for i in (3, 4, 5)),
    ]
    for row in rows:
        row |= {"class_index": None, "image_uri": f"{tmp_path}/{row['image_id']}.jpg"}
    for i in (3, 5):
        (tmp_path / f"{i}.jpg").write_bytes(b"%d" % i)
    crashes = Crashes()
    for _ in range(num_deaths):
        if crashes.begin(0).one_by_one:
            crashes.at(0, 5)
    found = a_part(folder, Reads(), rows, crashes)
    assert found["image_id"].to_pylist() == [1, 2, 3, 4, 5]
    last = "crashed" if num_deaths == 4 else "ok"
    assert found["status"].to_pylist() == ["ok", "denied", "ok", "missing", last]
    images = [b"one", None, b"3", None, None if num_deaths == 4 else b"5"]
    assert found["found"].to_pylist() == images
