"""Progress on stderr: a live bar on a terminal, a line now and then in a log."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

_LINE_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """How far a run is."""

    num_done: int
    """Images that are scored, those of earlier starts counted."""
    num_images: int | None
    """None while it is unknown."""
    by_status: Counter[str]
    """Images in parts that are written."""
    num_workers: int
    """Processes that worked on images in the last half minute."""
    busy: float | None
    """Share of that time that they worked; the others waited for images."""
    gpu_use: float | None = None
    """Share of that time that their GPUs were at work; None where no GPU reports it."""


class Progress:
    """Shows one stage at a time: done of total, time left, and a word of detail."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr)
        self._bars: RichProgress | None = None
        self._last_line_s = -_LINE_EVERY_S
        self._began: dict[str, tuple[int, float]] = {}

    @contextmanager
    def live(self) -> Iterator["Progress"]:
        """Draw bars while the block runs, if stderr is a terminal.

        What others print meanwhile is no result, and goes to stderr: Ray prints its warnings.
        """
        with redirect_stdout(sys.stderr), ExitStack() as stack:
            if self._console.is_terminal:
                self._bars = stack.enter_context(_bars(self._console))
            try:
                yield self
            finally:
                self._bars = None

    def say(self, message: str) -> None:
        """Print one line."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def update(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        """Show how far a stage is; the last call of a stage has done == total."""
        first, began_s = self._began.setdefault(stage, (done, time.monotonic()))
        if self._bars is not None:
            self._update_bar(stage, done, total, detail)
            return
        now_s = time.monotonic()
        if done != total and now_s - self._last_line_s < _LINE_EVERY_S:
            return
        self._last_line_s = now_s
        rate = (done - first) / max(now_s - began_s, 1e-9)  # of this start, not of earlier ones
        left = (
            f", {duration((total - done) / rate)} left" if total and rate and done < total else ""
        )
        of = f" of {total:,}" if total is not None else ""
        self.say(f"{stage}: {done:,}{of}{left}{', ' if detail else ''}{detail}")

    def run(self, stage: str) -> Callable[[Snapshot], None]:
        """Return what shows a bulk run: its rate, its workers, and failures by reason."""
        first: tuple[int, float] | None = None

        def show(now: Snapshot) -> None:
            nonlocal first
            first = first or (now.num_done, time.monotonic())
            rate = (now.num_done - first[0]) / max(time.monotonic() - first[1], 1e-9)
            words = [f"{rate:,.{0 if rate >= 10 else 2}f} images/s"] if rate else []
            if now.busy is None and not rate:
                words.append("waiting for a worker")
            elif now.busy is not None:
                plural = "" if now.num_workers == 1 else "s"
                words.append(f"{now.num_workers} worker{plural} {now.busy:.0%} busy")
            if now.gpu_use is not None:
                words.append(f"GPUs {now.gpu_use:.0%}")
            failures = sorted(set(now.by_status) - {"ok"})
            words += [f"{now.by_status[status]:,} {status}" for status in failures]
            self.update(stage, now.num_done, now.num_images, ", ".join(words))

        return show

    def _update_bar(self, stage: str, done: int, total: int | None, detail: str) -> None:
        assert self._bars is not None
        tasks = {task.description: task.id for task in self._bars.tasks}
        if stage not in tasks:
            tasks[stage] = self._bars.add_task(stage, total=total, detail=detail)
        self._bars.update(tasks[stage], completed=done, total=total, detail=detail)


def _bars(console: Console) -> RichProgress:
    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
        console=console,
    )


def duration(seconds: float) -> str:
    """Return a time in words: 40 s, 35 min, 2 h 5 min, 3 d 4 h."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
