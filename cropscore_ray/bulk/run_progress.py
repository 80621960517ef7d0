"""How far a bulk run is: messages of its workers become lines of progress and run.json."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from cropscore_ray import storage
from cropscore_ray.bulk import run_folder
from cropscore_ray.bulk.run_folder import RunFolder
from cropscore_ray.errors import RunConflictError, StorageError
from cropscore_ray.terminal.progress import Snapshot

_SHOW_S = 0.5
_ASK_S = 2.0
_KEEP_S = 10.0
_BUSY_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a worker has done since its last message."""

    worker: str
    num_images: int
    busy_s: float
    """Seconds of work on images."""
    idle_s: float
    """Seconds of waiting for images."""
    gpu_use: float | None = None
    """Share of the last moment that its GPU was at work; None if that is not known."""


@dataclass
class RunProgress:
    """Counts images: as workers score them, and by status when their part is written."""

    folder: RunFolder
    ask_num_images: Callable[[], int | None]
    shows: list[Callable[[Snapshot], None]]
    """Called now and then."""
    num_before: int
    """Images in parts that were written before this start."""
    by_status: Counter[str] = field(default_factory=Counter)
    """Of all parts that are known to be written."""
    num_rows: int = 0
    _num_scored: int = 0
    _num_written: int = 0
    _num_images: int | None = None
    _shown_s: float = -math.inf
    _asked_s: float = -_ASK_S
    _began_s: float = field(default_factory=time.monotonic)
    _wall_s_before: float = field(init=False)
    _work: list[tuple[float, Work]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _keeping: threading.Lock = field(default_factory=threading.Lock)
    """Held while run.json is written, which lasts where the store is away; nothing else waits."""

    def __post_init__(self) -> None:
        self._wall_s_before = self.folder.record["times"]["wall_s"]

    def worked(self, work: Work) -> None:
        """Count what a worker has done."""
        with self._lock:
            self._num_scored += work.num_images
            self._work.append((time.monotonic(), work))
            self._show()

    def tick(self) -> None:
        """Show what is unchanged: that there is no worker yet, or none any more."""
        with self._lock:
            self._show()

    def wrote(self, by_status: dict[str, int], num_rows: int, *, before: bool = False) -> None:
        """Count a part that is written, or was `before` this start."""
        with self._lock:
            self.by_status.update(by_status)
            self.num_rows += num_rows
            if not before:
                self._num_written += sum(by_status.values())
            self._show()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Update run.json every ten seconds while the block runs, and at its end.

        Raises:
            RunConflictError: at the end, if another run took the folder over.
        """
        ended = threading.Event()

        def keep_on() -> None:
            with suppress(RunConflictError):
                while not ended.wait(_KEEP_S):
                    self._keep()

        threading.Thread(target=keep_on, daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            self._keep()

    def _keep(self) -> None:
        with self._keeping, suppress(StorageError):  # the next time, or at the end
            self.folder.update(self._facts())

    def complete(self) -> None:
        """Write run.json for the last time."""
        facts = self._facts()
        facts["times"]["finished_at"] = run_folder.now()
        with self._keeping:
            storage.persistently(
                self.folder.uri, lambda: self.folder.update({**facts, "complete": True})
            )

    def rate(self) -> float:
        """Return the images a second that were written in this start."""
        return self._num_written / max(time.monotonic() - self._began_s, 1e-9)

    def _facts(self) -> dict[str, dict[str, object]]:
        """Return the counts and times of run.json."""
        wall_s = self._wall_s_before + time.monotonic() - self._began_s
        with self._lock:
            counts = {
                "images": self.by_status.total(),
                "rows": self.num_rows,
                "by_status": dict(self.by_status),
            }
        return {
            "counts": counts,
            "times": {**self.folder.record["times"], "wall_s": round(wall_s, 3)},
        }

    def _show(self) -> None:
        """Show how far the run is, now and then, and its end."""
        is_end = self.num_before + self._num_written == self._num_images
        if self.shows and (is_end or time.monotonic() - self._shown_s > _SHOW_S):
            self._shown_s = time.monotonic()
            now = self.snapshot()
            for show in self.shows:
                show(now)

    def snapshot(self) -> Snapshot:
        """Return how far the run is."""
        since_s = time.monotonic() - _BUSY_S
        self._work = [(told_s, work) for told_s, work in self._work if told_s > since_s]
        busy_s = sum(work.busy_s for _, work in self._work)
        all_s = busy_s + sum(work.idle_s for _, work in self._work)
        gpu_uses = [work.gpu_use for _, work in self._work if work.gpu_use is not None]
        # A part that is done twice is scored twice; only what is written can be the end.
        num_images, ahead = self._known_images(), self._num_scored
        if num_images is not None:
            ahead = min(ahead, num_images - self.num_before - 1)
        return Snapshot(
            num_done=self.num_before + max(self._num_written, ahead),
            num_images=num_images,
            by_status=self.by_status,
            num_workers=len({work.worker for _, work in self._work}),
            busy=busy_s / all_s if all_s else None,
            gpu_use=sum(gpu_uses) / len(gpu_uses) if gpu_uses else None,
        )

    def _known_images(self) -> int | None:
        """Return how many images there are; while that is not known, ask now and then."""
        if self._num_images is None and time.monotonic() - self._asked_s > _ASK_S:
            self._asked_s = time.monotonic()
            with suppress(StorageError):
                self._num_images = self.ask_num_images()
        return self._num_images
