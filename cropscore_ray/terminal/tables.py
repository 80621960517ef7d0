"""Tables as text: plain columns in a pipe, drawn by rich on a terminal."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, TextIO


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows of cells."""

    rows: Sequence[Sequence[str]]
    columns: Sequence[str]
    """How a cell is set in plain text, as `<32`, `>14` or "" for any width; the last is for all
    further cells too."""
    gap: str = ""
    """What stands between two cells in plain text."""
    has_head: bool = False
    """Whether the first row names the columns."""

    def __str__(self) -> str:
        """Return the plain text."""
        lines = (self._with_columns(row) for row in self.rows)
        return "\n".join(self.gap.join(f"{cell:{how}}" for cell, how in line) for line in lines)

    def __rich__(self) -> Any:
        """Return what rich draws."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        box = SIMPLE_HEAD if self.has_head else None
        drawn = RichTable(box=box, show_header=self.has_head, pad_edge=False)
        names, *others = self.rows if self.has_head else [(), *self.rows]
        nameless = max(map(len, self.rows), default=0) - len(names)
        for name, how in self._with_columns([*names, *[""] * nameless]):
            drawn.add_column(Text(name), justify="right" if how.startswith(">") else "left")
        for row in others:
            drawn.add_row(*map(Text, row))
        return drawn

    def _with_columns(self, row: Sequence[str]) -> Iterable[tuple[str, str]]:
        return zip(row, chain(self.columns, repeat(self.columns[-1])), strict=False)


def plain(*parts: Table | str) -> str:
    """Return tables and lines as plain text."""
    return "\n".join(map(str, parts))


def show(*parts: Table | str, stream: TextIO | None = None) -> None:
    """Print tables and lines on stdout, or on another stream."""
    stream = stream or sys.stdout
    if not stream.isatty():
        print(plain(*parts), file=stream, flush=True)
        return
    from rich.console import Console

    console = Console(file=stream)
    for part in parts:
        console.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str))
