"""One run at a time in a run folder.

On a disk the lock is the kernel's: it ends with the process that holds it, however that ends.
In S3 it is an object with the holder's token, made only where there is none and renewed every
few seconds: a holder that no longer renews it is dead. Other stores have no such means; there
two runs at once would do the same work twice, and write the same files.
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
from pathlib import Path
from typing import Any, TextIO

from botocore.exceptions import BotoCoreError, ClientError

from cropscore_ray import s3, storage
from cropscore_ray.errors import RunConflictError, StorageError

NAME = ".lock"
RENEW_S = 5.0
LEASE_S = 20.0
"""A lock that stayed as it was for so long is nobody's: four renewals were missed."""


@contextmanager
def held(folder_uri: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a folder.

    Args:
        folder_uri: the run folder; need not exist.
        say: told if it must be seen whether the holder of a lock in S3 is alive.

    Raises:
        RunConflictError: another run has it.
    """
    where = storage.join(folder_uri, NAME)
    if where.startswith(s3.SCHEME):
        lock = _Lease(where)
        lock.take(say)
        try:
            yield
        finally:
            lock.give_back()
    elif storage.is_remote(where):
        yield
    else:
        with _locked_file(Path(storage.absolute_uri(where))):
            yield


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
        hint="wait until it ends, or choose another --out",
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


class _Lease:
    """The lock of a folder in S3."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.bucket, self.key = s3.bucket_and_key(where)
        self.body = json.dumps({**_me(), "token": uuid.uuid4().hex})
        self.renewals = 0
        self.ended = threading.Event()
        self.renewer = threading.Thread(target=self._renew, daemon=True)

    def take(self, say: Callable[[str], None]) -> None:
        """Make the object; one that nobody renews any more is deleted first."""
        while not self._make():
            found = self._read()
            if found is not None and self._stays(found, say) and self._read() == found:
                self._delete()
        self.renewer.start()

    def _stays(self, found: str, say: Callable[[str], None]) -> bool:
        """Return whether the object stays as it is for a lease, or False if it goes away."""
        say(f"{self.where} is there; looking for {LEASE_S:.0f} s whether its run is alive")
        for _ in range(round(LEASE_S / RENEW_S)):
            time.sleep(RENEW_S)
            now = self._read()
            if now != found and now is not None:
                raise _conflict(self.where, found)
            if now is None:
                return False
        return True

    def give_back(self) -> None:
        """Delete the object, if it is still this run's."""
        self.ended.set()
        self.renewer.join()
        try:
            if self._is_mine(self._read()):
                self._delete()
        except StorageError:
            pass  # it will be nobody's soon

    def _renew(self) -> None:
        while not self.ended.wait(RENEW_S):
            try:
                if self._is_mine(self._read()):
                    self._put()
            except StorageError:
                continue  # the store may come back

    def _is_mine(self, text: str | None) -> bool:
        return text is not None and json.loads(text)["token"] == json.loads(self.body)["token"]

    def _make(self) -> bool:
        """Make the object and return True, or False where there is one."""
        try:
            self._put(IfNoneMatch="*")
        except _LockedError:
            return False
        return True

    def _put(self, **conditions: str) -> None:
        self.renewals += 1
        body = json.dumps({**json.loads(self.body), "renewals": self.renewals})
        self._call("put_object", Body=body.encode(), **conditions)

    def _read(self) -> str | None:
        found = self._call("get_object")
        return None if found is None else str(found["Body"].read().decode())

    def _delete(self) -> None:
        self._call("delete_object")

    def _call(self, action: str, **arguments: Any) -> Any:
        try:
            return getattr(s3.client(), action)(Bucket=self.bucket, Key=self.key, **arguments)
        except ClientError as error:
            code = s3.code_of(error)
            if code in ("NoSuchKey", "404"):
                return None
            if code in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
                raise _LockedError from error
            raise StorageError(f"cannot lock {self.where}: {error}") from error
        except (BotoCoreError, OSError) as error:
            raise StorageError(f"cannot lock {self.where}: {error}") from error


class _LockedError(Exception):
    pass
