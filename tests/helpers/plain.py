"""Bulk runs in this process, for tests whose subject is not Ray.

The functions are those that run on Ray, called one part after the other. That both ways give the
same rows is seen where a run is compared with one on Ray: tests/ray/test_runs.py and test_pack.py,
tests/s3/test_flow_s3.py and test_kills_s3.py.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch

from cropscore_ray.bulk import pipeline, score_actor
from cropscore_ray.bulk.crashes import Crashes
from cropscore_ray.bulk.packing import pack_part
from cropscore_ray.bulk.parts import BulkRun, fetch_part, plan_parts
from cropscore_ray.bulk.run_progress import RunProgress
from cropscore_ray.bulk.score_actor import StageActor
from cropscore_ray.bulk.workers import _SHARE, Pool
from cropscore_ray.clusters import events


@contextmanager
def without_ray(num_cpus: int = 4) -> Iterator[None]:
    """Do the parts of bulk runs here while the block runs.

    Args:
        num_cpus: of the node that would do them, so that they are computed with as many threads.
    """
    threads = torch.get_num_threads()
    try:
        with pytest.MonkeyPatch.context() as patch:
            _patch(patch, num_cpus)
            yield
    finally:
        torch.set_num_threads(threads)  # a stage sets its own


def _patch(patch: pytest.MonkeyPatch, num_cpus: int) -> None:
    silent = SimpleNamespace(worked=lambda *_, **__: None, did=lambda *_: None)
    patch.setattr(score_actor, "WorkerTelemetry", lambda *_: silent)
    patch.setattr(events, "ask", lambda method, *arguments: method(*arguments))
    pool = Pool(num_now=1, most=1, num_gpus=0, num_cpus=_SHARE * num_cpus)
    patch.setattr(pipeline, "_do_parts", partial(_do_parts, pool))


def _do_parts(
    pool: Pool,
    run: BulkRun,
    link: Any,
    done: frozenset[int],
    num_left: int,
    workers: Any,
    progress: RunProgress,
) -> None:
    del num_left, workers
    work: Callable[[pa.Table], pa.Table]
    if link is pipeline.packed:
        work = partial(pack_part, run=run)
    else:
        [scoring] = link.args
        work = StageActor(scoring, run.folder, pool, None, Crashes())
    for part in plan_parts(pa.table({}), run, done):
        [summary] = work(fetch_part(part)).to_pylist()
        progress.wrote(json.loads(summary["by_status"]), summary["rows"])
