"""Tables in a pipe, whose bytes other programs read, and on a terminal."""

import io

import pytest

from cropscore_ray.terminal.tables import Table, plain, show

ERRORS = Table(
    rows=[("error, %", "all", "one box"), ("  [this] run", "9.5", "8"), ("  whole image", "60.1")],
    columns=("<16", ">8"),
    has_head=True,
)
JOBS = Table(rows=[("a", "RUNNING"), ("longer", "")], columns=("<4", "<8"), gap=" ")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_columns_of_fixed_width():
    pipe = io.StringIO()
    show(ERRORS, "", JOBS, "5 images", stream=pipe)
    assert pipe.getvalue() == (
        "error, %             all one box\n"
        "  [this] run         9.5       8\n"
        "  whole image       60.1\n"
        "\n"
        "a    RUNNING \n"
        "longer         \n"
        "5 images\n"
    )
    assert pipe.getvalue() == plain(ERRORS, "", JOBS, "5 images") + "\n"


def test_a_terminal_gets_a_drawn_table(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    terminal = Terminal()
    show(ERRORS, "5 images", stream=terminal)
    text = terminal.getvalue()
    assert "──────" in text
    assert "\x1b[1m" in text, "the names of columns are bold"
    assert all(cell.strip() in text for row in ERRORS.rows for cell in row)
    assert text.splitlines()[-1] == "5 images"
