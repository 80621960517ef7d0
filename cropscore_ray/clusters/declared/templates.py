"""The files of `cluster/`: declarations of clusters, read as data and written as YAML."""

from pathlib import Path
from typing import Any

import yaml

from cropscore_ray.errors import ConfigError

SPOT, ON_DEMAND = "spot", "on-demand"
"""How nodes are bought: spot ones may be taken away."""

FOLDER = Path(__file__).parent / "files"


def read(name: str) -> Any:
    """Return a YAML file of `cluster/` as data, each part of its own: none is shared."""
    return unshared(yaml.safe_load((FOLDER / name).read_text()))


def unshared(value: Any) -> Any:
    """Return a copy in which a part that YAML's anchors shared stands once for each use."""
    if isinstance(value, dict):
        return {name: unshared(part) for name, part in value.items()}
    if isinstance(value, list):
        return [unshared(part) for part in value]
    return value


def to_yaml(documents: list[Any], comment: str) -> str:
    """Return documents as YAML text, in their own order, below a comment."""
    above = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    return above + yaml.safe_dump_all(map(unshared, documents), sort_keys=False, width=100)


def write(folder: str, files: dict[str, str]) -> list[str]:
    """Write texts by name into a folder, which is made; return their paths.

    Raises:
        ConfigError: a file cannot be written there.
    """
    paths = [Path(folder) / name for name in files]
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, files.values(), strict=True):
            path.write_text(text)
    except OSError as error:
        raise ConfigError(
            f"{folder}: {error.strerror}", hint="give --out another folder"
        ) from error
    return [str(path) for path in paths]
