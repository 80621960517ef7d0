"""The run folder: what a bulk run is, what of it is done, and which runs may go on with it.

A run is cut into parts of consecutive manifest rows; part i is one file whose name says
i, written whole or not at all. So what is done is read off the folder, and doing a part
twice leaves one file: no row is lost or doubled, whatever was killed.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa

from cropscore_ray import storage
from cropscore_ray.errors import RunConflictError
from cropscore_ray.storage.lock import Held

FORMAT = 1
TABLES = ("predictions", "scores")
PACKED = ("manifest", "shards")
_UNREACHED = "unreached"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """A run folder opened for writing; `complete` if nothing is left to do."""

    uri: str
    table: str
    record: dict[str, Any]
    held: Held
    unreached: frozenset[int]
    """Parts of earlier starts in which the store gave no answer for an image."""

    @property
    def complete(self) -> bool:
        """Whether every part is there and the counts are final."""
        return bool(self.record["complete"])

    @property
    def table_uri(self) -> str:
        """The folder of the run's Parquet files."""
        return storage.join(self.uri, self.table)

    def part_uri(self, part: int) -> str:
        """Return where a part's rows go."""
        return storage.join(self.table_uri, f"part-{part:07d}.parquet")

    def written_parts(self) -> set[int]:
        """Return the numbers of the parts that are written."""
        return _numbers(self.table_uri, ".parquet")

    def write_part(self, part: int, rows: pa.Table, *, reached: bool) -> None:
        """Write a part's rows, and mark the part if the store gave no answer for an image of it.

        A marked part is written, but the next start does it again. RunConflictError if another
        run took the folder over.
        """
        mark = storage.join(self.uri, _UNREACHED, f"part-{part:07d}")

        def write() -> None:
            self.held.require()
            if not reached:
                storage.write_bytes(mark, b"")
            storage.write_table(self.part_uri(part), rows)
            if reached and part in self.unreached and storage.exists(mark):
                storage.delete_file(mark)

        storage.persistently(self.uri, write)

    def update(self, fields: Mapping[str, Any]) -> None:
        """Change fields of run.json, atomically; RunConflictError as `write_part`."""
        self.held.require()
        self.record.update(fields)
        storage.write_json(storage.join(self.uri, "run.json"), self.record)


def _numbers(folder_uri: str, suffix: str = "") -> set[int]:
    names = [uri.rsplit("/", 1)[-1] for uri in storage.list_files(folder_uri)]
    return {
        int(name.removeprefix("part-").removesuffix(suffix))
        for name in names
        if name.startswith("part-") and name.endswith(suffix)
    }


def now() -> str:
    """Return the time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_record(uri: str) -> dict[str, Any] | None:
    """Return a folder's run.json, or None if it has none."""
    where = storage.join(uri, "run.json")
    if not storage.exists(where):
        return None
    record: dict[str, Any] = storage.read_json(where)
    return record


def require_kind(uri: str, command: str) -> None:
    """Raise RunConflictError if a folder holds images that were packed, and this packs none.

    Or the other way round: neither's tables make room for the other's.
    """
    other = (read_record(uri) or {}).get("command")
    if other is not None and (other == "pack") != (command == "pack"):
        raise RunConflictError(f"{uri} holds a run of {other}", hint="choose another --out")


def discard(uri: str) -> None:
    """Delete the run in a folder, if there is one; what is not the run's is left alone."""
    record = read_record(uri) or {}
    if "identity" not in record:
        return
    where = storage.join(uri, "run.json")
    storage.write_json(where, {**record, "complete": False})  # true at every moment of this
    for name in (_UNREACHED, *(PACKED if record.get("command") == "pack" else TABLES)):
        storage.delete_folder(storage.join(uri, name))
    storage.delete_file(where)


def open_run(
    uri: str,
    *,
    table: str,
    identity: dict[str, Any],
    facts: dict[str, Any],
    held: Held | None = None,
) -> RunFolder:
    """Begin a run in a folder, or go on with the one that is there.

    Args:
        uri: the run folder.
        table: the name of its table: predictions, scores or, of a packed set, manifest.
        identity: what makes two runs the same: command, model, manifest and config.
        facts: what else stands in run.json.
        held: its lock; None: no other run is at work there.

    Raises:
        RunConflictError: the folder holds another run, or files that are no run.
    """
    opened = partial(RunFolder, uri=uri, table=table, held=held or Held(folder_uri=uri))
    record = read_record(uri)
    if record is not None:
        _require_same(record.get("identity", {}), identity, uri)
        return opened(record=record, unreached=frozenset(_numbers(storage.join(uri, _UNREACHED))))
    if storage.list_files(storage.join(uri, table)):
        raise RunConflictError(
            f"{uri} has a {table} folder but no run.json, so it belongs to nobody known",
            hint="choose another --out",
        )
    record = {
        "format": FORMAT,
        "complete": False,
        "identity": identity,
        **facts,
        "counts": {},
        "times": {"started_at": now(), "finished_at": None, "wall_s": 0.0},
    }
    run = opened(record=record, unreached=frozenset())
    run.update({})
    return run


def _require_same(there: dict[str, Any], wanted: dict[str, Any], uri: str) -> None:
    if differences := "; ".join(_differences(there, wanted)):
        raise RunConflictError(
            f"{uri} holds another run; {differences}",
            hint="choose another --out, or start afresh with --overwrite",
        )


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name}: {json.dumps(old)} there, {json.dumps(new)} now"
