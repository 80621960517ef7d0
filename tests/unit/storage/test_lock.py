"""One run at a time in a folder: the second is refused, and the dead give way."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cropscore_ray.errors import RunConflictError, StorageError
from cropscore_ray.storage import lock

HOLD = (
    "from cropscore_ray.storage import lock; import sys, time\nwith lock.held(sys.argv[1], print): "
)


def silent(_: str) -> None:
    pass


def test_a_second_run_is_refused_with_the_first_ones_name(tmp_path: Path) -> None:
    me = rf"in {tmp_path} \(process {os.getpid()} on "
    with lock.held(str(tmp_path), silent), pytest.raises(RunConflictError, match=me):
        lock.held(str(tmp_path), silent).__enter__()
    with lock.held(str(tmp_path), silent):
        pass


def test_a_folder_that_was_made_for_the_lock_alone_goes_with_it(tmp_path: Path) -> None:
    with lock.held(str(tmp_path / "run"), silent):
        pass
    assert not (tmp_path / "run").exists()
    with lock.held(str(tmp_path / "run"), silent):
        (tmp_path / "run" / "run.json").write_text("{}")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["run.json"]


def test_the_lock_of_a_killed_run_is_free(tmp_path: Path) -> None:
    code = HOLD + "print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunConflictError, match=f"process {holder.pid} "):
            lock.held(str(tmp_path), silent).__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=20)
    with lock.held(str(tmp_path), silent):
        assert (tmp_path / lock.NAME).exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*file/run/\.lock"):
        lock.held(str(tmp_path / "file/run"), silent).__enter__()
