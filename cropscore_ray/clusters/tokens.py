"""Tokens that Ray clusters ask for, in files that only their owner can read."""

import secrets
import stat
from pathlib import Path

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make(path: Path) -> None:
    """Make a token, if there is none; close the file to all but its owner if there is one.

    Raises:
        OSError: the file cannot be written, or is somebody else's.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        path.touch(0o600, exist_ok=False)
    except FileExistsError:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & _OTHERS:
            path.chmod(mode & ~_OTHERS)
    else:
        path.write_text(new())


def new() -> str:
    """Return a token nobody can guess: 256 random bits in hexadecimal."""
    return secrets.token_hex(32)
