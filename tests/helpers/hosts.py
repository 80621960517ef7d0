"""Hosts of one network on this machine: network namespaces, each with an address of its own.

They share the disk and all else. The first one holds the bridge to which the others are plugged.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

_NETWORK = "10.77.0"


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Host:
    """One of them."""

    name: str
    number: int
    suffix: str = field(default_factory=lambda: secrets.token_hex(3))

    @property
    def namespace(self) -> str:
        return f"{self.name}-{self.suffix}"

    @property
    def address(self) -> str:
        return f"{_NETWORK}.{self.number}"

    @property
    def within(self) -> list[str]:
        """What runs a command there."""
        return ["ip", "netns", "exec", self.namespace]

    def processes(self) -> set[int]:
        return {int(pid) for pid in _ip("netns", "pids", self.namespace).split()}

    def connect(self, is_connected: bool) -> None:
        """Plug its cable in, or out."""
        _ip("-n", self.namespace, "link", "set", "eth0", "up" if is_connected else "down")


@contextmanager
def hosts(*names: str) -> Iterator[list[Host]]:
    """Give hosts that reach one another; skip the test where there can be none."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("hosts are network namespaces: needs root, and the program ip")
    found = [Host(name, number) for number, name in enumerate(names, 1)]
    made: list[Host] = []
    try:
        for host in found:
            _ip("netns", "add", host.namespace)
            made.append(host)
            _ip("-n", host.namespace, "link", "set", "lo", "up")
            _plug(host, found[0])
        yield found
    finally:
        for host in made:
            _ip("netns", "delete", host.namespace)


def _plug(host: Host, first: Host) -> None:
    """Give a host its eth0 and its address."""
    if host is first:
        _ip("-n", host.namespace, "link", "add", "eth0", "type", "bridge")
    else:
        cable = ["type", "veth", "peer", "name", "eth0", "netns", host.namespace]
        _ip("-n", first.namespace, "link", "add", f"to{host.number}", *cable)
        _ip("-n", first.namespace, "link", "set", f"to{host.number}", "master", "eth0", "up")
    _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
    host.connect(True)
