"""Ray, started by this process or joined over the network."""

import logging
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import ray

from cropscore_ray.clusters import tokens
from cropscore_ray.errors import ClusterError
from cropscore_ray.storage import s3

logger = logging.getLogger(__name__)

# Ray's own object store takes 30 % of the memory by default; here a few parts are on their way.
_OBJECT_STORE_BYTES = 2**30
_NO_DASHBOARD = "http://127.0.0.1:0"
_ANSWERS_S = 10.0


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine; once a process.

    A local Ray gets at least four logical CPUs: on a machine with two, the reading,
    scoring and writing of a pipeline would wait for one another for ever. It asks for a token,
    unless RAY_AUTH_MODE says otherwise. From then on SIGTERM is what Ctrl-C is.
    """
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        _join(quiet)
    else:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        _provide_token()
        s3.ask_plainly()  # Ray's own processes write checkpoints
        # Ray Train asks a dashboard whether a training's controller lives. This Ray has none, and
        # another cluster's would know nothing of it: the training's workers would be killed.
        os.environ["RAY_API_SERVER_ADDRESS"] = _NO_DASHBOARD
        ray.init(
            address="local",  # else Ray would join one that runs here, or ran and left a trace
            num_cpus=max(4, os.cpu_count() or 1),
            include_dashboard=False,
            configure_logging=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )
    if threading.current_thread() is threading.main_thread():
        # Ray's handler would print a stack of its own C++ before the process ends.
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _join(options: dict[str, Any]) -> None:
    address = os.environ["RAY_ADDRESS"]
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal() and "/" not in host:  # Ray would ask for many minutes
            socket.create_connection((host.strip("[]"), int(port)), _ANSWERS_S).close()
        ray.init(**options)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        reason, *_ = [*str(error).splitlines(), type(error).__name__]
        raise ClusterError(
            f"no Ray cluster can be joined at {address!r}: {reason}",
            hint="RAY_ADDRESS is a head's HOST:6379 on one of its nodes; from elsewhere, submit "
            "the command; unset it to compute on this machine",
        ) from error


def _provide_token() -> None:
    """Make the token of a local Ray, which Ray itself would write for all to read."""
    is_off = os.environ.get("RAY_AUTH_MODE", "token").lower() != "token"
    if is_off or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    try:
        tokens.make(Path.home() / ".ray" / "auth_token")
    except OSError:  # no home, or a read-only one: the token is this process's alone
        os.environ["RAY_AUTH_TOKEN"] = tokens.new()
