"""Clusters that tests start as people do: `ray start`, a token, ports and folders of their own."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

WAIT_S = 120
COMMAND = [sys.executable, "-m", "cropscore_ray.cli"]
_RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def temporary(prefix: str) -> tempfile.TemporaryDirectory[str]:
    """Return a folder for Ray: its path is short, and processes that end may still write there."""
    return tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)


@dataclass(kw_only=True)
class RayNode:
    """A `ray start` that stays, and all processes that come of it: they are of one session."""

    options: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    within: Sequence[str] = ()
    """A command that runs others, on another host for example."""

    def __post_init__(self) -> None:
        self.agent_port = free_port()
        command = [*self.within, _RAY, "start", "--block", "--disable-usage-stats", *self.options]
        # Jobs are taken by the agent, whose usual port another Ray on this machine may have.
        command += [f"--dashboard-agent-listen-port={self.agent_port}"]
        command += ["--object-store-memory=200000000"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )

    def processes(self) -> dict[int, tuple[int, str]]:
        """Return the parent and the command of each process, by process id."""
        columns = ["ps", "-s", str(self.process.pid), "-o", "pid=,ppid=,args="]
        listing = subprocess.run(columns, capture_output=True, text=True, check=False).stdout
        found = [line.split(None, 2) for line in listing.splitlines() if "<defunct>" not in line]
        return {int(pid): (int(parent), args) for pid, parent, args in found}

    def stop(self) -> None:
        """Kill all processes."""
        deadline_s = time.monotonic() + WAIT_S
        while found := self.processes():
            assert time.monotonic() < deadline_s, found
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()


@dataclass(kw_only=True)
class Head:
    """The head of a cluster, and its dashboard."""

    folder: str
    """Ray's temporary one; a short path, since sockets lie in it."""
    token: str | None = field(default_factory=lambda: secrets.token_hex(16))
    """None: whoever reaches it may do all."""
    host: str = "127.0.0.1"
    """Where the dashboard listens."""
    port: int = field(default_factory=free_port)
    """Where nodes join."""
    dashboard_port: int = field(default_factory=free_port)
    options: Sequence[str] = ("--num-cpus=4",)
    more_environment: Mapping[str, str] = field(default_factory=dict)
    within: Sequence[str] = ()

    def __post_init__(self) -> None:
        options = ["--head", f"--port={self.port}", f"--temp-dir={self.folder}"]
        options += [f"--dashboard-host={self.host}", f"--dashboard-port={self.dashboard_port}"]
        self.node = RayNode(
            options=[*options, *self.options],
            environment=self.environment() | dict(self.more_environment),
            log=Path(self.folder) / "log",
            within=self.within,
        )

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.dashboard_port}"

    def environment(self, token: str | None = None) -> dict[str, str]:
        """Return what a command needs to be let in, or with another token not to be."""
        names = ("RAY_ADDRESS", "RAY_AUTH_MODE")
        kept = {name: value for name, value in os.environ.items() if name not in names}
        kept |= {"XDG_CONFIG_HOME": self.folder, "HOME": self.folder}
        if self.token is None:
            return kept | {"RAY_AUTH_MODE": "disabled"}
        return kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token or self.token}

    def ask(self, path: str) -> Any:
        """Return what the dashboard answers."""
        headers = {"Authorization": f"Bearer {self.token}"}
        request = Request(f"{self.address}{path}", headers=headers)
        return json.load(urlopen(request, timeout=30))

    def stop(self) -> None:
        self.node.stop()


def cropscore(
    *arguments: str, within: Sequence[str] = (), **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [*within, *COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, **more)


def errors(said: str) -> list[str]:
    """Return the lines that tell what went wrong, and what to do."""
    return [line for line in said.splitlines() if line.startswith(("error:", "hint:"))]
