"""Progress on stderr: a live bar on a terminal, a line now and then in a log."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


class Progress:
    """Shows one stage at a time: done of total, time left, and a word of detail."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr)
        self._bars: RichProgress | None = None
        self._last_line_s = -_LINE_EVERY_S
        self._began: dict[str, tuple[int, float]] = {}

    @contextmanager
    def live(self) -> Iterator["Progress"]:
        """Draw bars while the block runs, if stderr is a terminal."""
        if not self._console.is_terminal:
            yield self
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
        )
        with RichProgress(*columns, console=self._console) as bars:
            self._bars = bars
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
        left = f", {(total - done) / rate:.0f} s left" if total and rate and done < total else ""
        of = f" of {total}" if total is not None else ""
        self.say(f"{stage}: {done}{of}{left}{', ' if detail else ''}{detail}")

    def failures(self, stage: str) -> Callable[[int, int | None, Counter[str]], None]:
        """Return what shows a stage whose images have a status: done, total, failed."""

        def show(done: int, total: int | None, by_status: Counter[str]) -> None:
            failed = sum(count for status, count in by_status.items() if status != "ok")
            self.update(stage, done, total, f"{failed} failed" if failed else "")

        return show

    def _update_bar(self, stage: str, done: int, total: int | None, detail: str) -> None:
        assert self._bars is not None
        for task in self._bars.tasks:
            if task.description == stage:
                self._bars.update(task.id, completed=done, total=total, detail=detail)
                return
        self._bars.add_task(stage, completed=done, total=total, detail=detail)
