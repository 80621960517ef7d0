"""Figures of a worker's work: for the command that runs, and for Prometheus.

Ray serves the metrics of all its processes on each node, with `ray_` before their names and
`_total` after those of counters; cluster/grafana/cropscore.json draws them.
"""

from ray._private.thirdparty import pynvml
from ray.util.metrics import Counter, Gauge

from cropscore_ray.bulk.run_progress import Work
from cropscore_ray.clusters import events
from cropscore_ray.clusters.events import Handle
from cropscore_ray.terminal.progress import Snapshot


def gpu_use(uuid: str) -> float | None:
    """Return the share of the last moment that a GPU was at work; None if that is not known.

    PyTorch needs a package for that which it does not bring; Ray brings it for its own metrics.
    """
    try:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        return float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu) / 100
    except pynvml.NVMLError:
        return None


class WorkerTelemetry:
    """A worker's figures, and those of its GPU, named by torch's UUID."""

    def __init__(self, queue: Handle, run: str, gpu_uuid: str | None = None) -> None:
        self._queue = queue
        self._gpu_uuid = gpu_uuid
        self._worker = events.worker_id()
        self._tags = {"run": run}
        self._images = Counter("cropscore_images", "Images done.", ("run", "status"))
        self._busy = Counter("cropscore_busy_seconds", "Time of work on images.", ("run",))
        self._idle = Counter("cropscore_idle_seconds", "Time of waiting for images.", ("run",))

    def worked(self, num_images: int, *, busy_s: float, idle_s: float) -> None:
        """Report images that are scored, and the time since the last report."""
        work = Work(
            worker=self._worker,
            num_images=num_images,
            busy_s=busy_s,
            idle_s=idle_s,
            gpu_use=gpu_use(self._gpu_uuid) if self._gpu_uuid else None,
        )
        events.tell(self._queue, work)
        for counter, seconds in ((self._busy, busy_s), (self._idle, idle_s)):
            if seconds > 0:  # Ray counts nothing else
                counter.inc(seconds, self._tags)

    def did(self, by_status: dict[str, int]) -> None:
        """Count a part's images, by status."""
        for status, number in by_status.items():
            self._images.inc(number, self._tags | {"status": status})


class RunTelemetry:
    """A whole run's figures, from the command that runs it."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._images = Gauge("cropscore_run_images", "Images of the run, if known.", ("run",))
        self._done = Gauge("cropscore_run_images_done", "Images of it that are done.", ("run",))
        self._workers = Gauge("cropscore_run_workers", "Processes at work on them.", ("run",))

    def show(self, snapshot: Snapshot) -> None:
        """Report how far the run is."""
        if snapshot.num_images is not None:
            self._images.set(snapshot.num_images, self._tags)
        self._done.set(snapshot.num_done, self._tags)
        self._workers.set(snapshot.num_workers, self._tags)
