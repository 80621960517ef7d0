"""One run at a time in a run folder.

On a disk the lock is the kernel's: it ends with the process that holds it, however that ends.
In S3 it is an object with the holder's token, made only where there is none and renewed every
few seconds. A holder that no longer renews it is dead: its object is replaced, by one run and no
other, since the store compares what is there with what was seen.

A holder may also have been paused, or cut off from the store, and come back. It never replaces
another's lock, and each process of the run looks at the lock right before it writes a part or
run.json (`Held.require`). So what two runs could still write at once is what was on its way to
the store between that look and the end of that write.

Other stores have no means for this; there two runs at once would do the same work twice, and write
the same files.
"""

import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from botocore.exceptions import BotoCoreError, ClientError

from cropscore_ray import storage
from cropscore_ray.errors import RunConflictError, StorageError
from cropscore_ray.storage import s3

NAME = ".lock"
RENEW_S = 5.0
LEASE_S = 20.0
"""A lock that stayed as it was for so long is nobody's: four renewals were missed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A lock that a run holds; travels to all of its processes that write in the folder."""

    folder_uri: str
    token: str | None = None
    """In S3; None where nobody can take the lock away."""

    def require(self) -> None:
        """Raise RunConflictError if it is another run's by now, or nobody's any more."""
        if self.token is None:
            return
        lock = _read(storage.join(self.folder_uri, NAME))
        if lock is None or self.token not in lock.body:
            raise RunConflictError(
                f"another run took over {self.folder_uri} while this one could not reach it",
                hint="leave the folder to that run, or choose another --out",
            )


@contextmanager
def held(folder_uri: str, say: Callable[[str], None]) -> Iterator[Held]:
    """Hold the lock of a folder.

    Args:
        folder_uri: the run folder; need not exist.
        say: told if it must be seen whether the holder of a lock in S3 is alive.

    Raises:
        RunConflictError: another run has it.
    """
    where = storage.join(folder_uri, NAME)
    kind = storage.store_of(where).lock
    if kind == "lease":
        lease = _Lease(where)
        lease.take(say)
        try:
            yield Held(folder_uri=folder_uri, token=lease.token)
        finally:
            lease.give_back()
    elif kind == "file":
        with _locked_file(Path(storage.absolute_uri(where))):
            yield Held(folder_uri=folder_uri)
    else:
        yield Held(folder_uri=folder_uri)


def _me() -> dict[str, Any]:
    return {"host": platform.node(), "pid": os.getpid()}


def _conflict(where: str, text: str) -> RunConflictError:
    try:
        holder = json.loads(text)
        who = f" (process {holder['pid']} on {holder['host']})"
    except (ValueError, KeyError, TypeError):
        who = ""
    folder = where.removesuffix(f"/{NAME}")
    return RunConflictError(
        f"another run is at work in {folder}{who}",
        hint="wait until it ends, or choose another folder",
    )


@contextmanager
def _locked_file(path: Path) -> Iterator[None]:
    is_new = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _open_and_lock(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}", hint="check --out") from error
    with file:
        file.truncate(0)
        file.write(json.dumps(_me()))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if is_new:
                with suppress(OSError):  # it has the run's files
                    path.parent.rmdir()


def _open_and_lock(path: Path) -> TextIO:
    while True:
        file = path.open("a+")
        with ExitStack() as unless_locked:
            unless_locked.callback(file.close)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    unless_locked.pop_all()
                    return file
            except BlockingIOError as error:
                file.seek(0)
                raise _conflict(str(path), file.read()) from error
            except FileNotFoundError:
                pass  # its last holder has just taken it away


class _Object(NamedTuple):
    """The object of a lock as it was."""

    etag: str
    body: str


def _read(where: str) -> _Object | None:
    answer = _call(where, "get_object", {})
    return None if answer is None else _Object(answer["ETag"], answer["Body"].decode())


def _call(where: str, action: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Return what S3 answers, or None if the object is not there, or not as was asked for."""
    bucket, key = s3.bucket_and_key(where)
    try:
        answer: dict[str, Any] = getattr(s3.client(), action)(Bucket=bucket, Key=key, **arguments)
        return answer | {"Body": answer["Body"].read()} if "Body" in answer else answer
    except (BotoCoreError, ClientError, OSError) as error:
        if isinstance(error, ClientError) and s3.code_of(error) in _ABSENT_OR_CHANGED:
            return None
        raise StorageError(f"cannot lock {where}: {error}") from error


_ABSENT_OR_CHANGED = {
    *("NoSuchKey", "404"),
    *("PreconditionFailed", "412", "ConditionalRequestConflict", "409"),
}


class _Lease:
    """The lock of a folder in S3."""

    def __init__(self, where: str) -> None:
        self.where, self.token = where, uuid.uuid4().hex
        self.renewals = 0
        self.ended = threading.Event()
        self.renewer = threading.Thread(target=self._renew, daemon=True)

    def take(self, say: Callable[[str], None]) -> None:
        """Make the object, or replace one that nobody renews any more."""
        while not self._put({"IfNoneMatch": "*"}):
            lock = _read(self.where)
            # It may be this run's own, if it was made and the answer to that got lost.
            if self._is_mine(lock) or (lock and self._stays(lock, say) and self._replace(lock)):
                break
        self.renewer.start()

    def _stays(self, lock: _Object, say: Callable[[str], None]) -> bool:
        """Return whether the object stays as it is for a lease, or False if it goes away."""
        say(f"{self.where} is there; looking for {LEASE_S:.0f} s whether its run is alive")
        for _ in range(round(LEASE_S / RENEW_S)):
            time.sleep(RENEW_S)
            now = _read(self.where)
            if now is None:
                return False
            if now != lock:
                raise _conflict(self.where, now.body)
        return True

    def give_back(self) -> None:
        """Delete the object, if it is still this run's."""
        self.ended.set()
        self.renewer.join()
        with suppress(StorageError):  # it will be nobody's soon
            if self._is_mine(_read(self.where)):
                _call(self.where, "delete_object", {})

    def _renew(self) -> None:
        while not self.ended.wait(RENEW_S):
            with suppress(StorageError):  # the store may come back
                lock = _read(self.where)
                if lock is None or not self._is_mine(lock):
                    return  # `Held.require` says so to whoever writes
                self._replace(lock)

    def _is_mine(self, lock: _Object | None) -> bool:
        return lock is not None and self.token in lock.body

    def _replace(self, lock: _Object) -> bool:
        """Put the object in place of that one, and of no other; return whether it was replaced."""
        # Ceph compares without the quotes that HTTP wants.
        return any(self._put({"IfMatch": etag}) for etag in (lock.etag, lock.etag.strip('"')))

    def _put(self, condition: dict[str, str]) -> bool:
        self.renewals += 1
        body = json.dumps({**_me(), "token": self.token, "renewals": self.renewals})
        put = {"Body": body.encode(), **condition}
        return _call(self.where, "put_object", put) is not None
