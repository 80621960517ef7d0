"""Clusters by name, in a small file of the user's, and where commands go; no cluster is asked."""

import json
import os
from pathlib import Path
from typing import Any

from cropscore_ray.errors import ConfigError

_DEFAULT_PORT = 8265


def file() -> Path:
    """Return where the names are kept: XDG_CONFIG_HOME/cropscore/clusters.json."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "cropscore" / "clusters.json"


def token_file(name: str) -> Path:
    """Return where the token of a cluster lies that is started from here."""
    return file().with_name("tokens") / name / "auth_token"


def read() -> dict[str, Any]:
    """Return the names' addresses, the tokens' files of some, and which name is in use."""
    if not file().exists():
        return {"current": None, "clusters": {}}
    try:
        known: dict[str, Any] = json.loads(file().read_text())
    except ValueError as error:
        raise ConfigError(f"{file()} is not JSON: {error}", hint="mend it, or delete it") from error
    return known


def use(name: str, address: str | None = None, token: Path | None = None) -> str:
    """Let commands go to a cluster from now on; return its address.

    The first time it needs the address of the dashboard. A new address forgets the token; `token`
    is the file that holds the new token, None: where Ray looks for it.

    Raises:
        ConfigError: nobody has said yet where it is.
    """
    known = read()
    if address is not None:
        known["clusters"][name] = url(address)
        tokens = known.setdefault("tokens", {})
        tokens.pop(name, None)
        if token is not None:
            tokens[name] = str(token)
    if name not in known["clusters"]:
        raise ConfigError(
            f"there is no cluster {name!r}",
            hint=f"give its --address; known are {', '.join(known['clusters']) or 'none'}",
        )
    known["current"] = name
    file().parent.mkdir(parents=True, exist_ok=True)
    file().write_text(json.dumps(known, indent=2) + "\n")
    return str(known["clusters"][name])


def address(given: str | None) -> str:
    """Return the address that a command goes to.

    The one that is given, or a cluster's name; else RAY_API_SERVER_ADDRESS; else RAY_ADDRESS if it
    is a dashboard's; else the cluster in use.
    """
    known = read()
    if given is not None:
        return str(known["clusters"].get(given) or url(given))
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        value = os.environ.get(name, "")
        if value.startswith(("http://", "https://")):
            return value
    if known["current"] is not None:
        return str(known["clusters"][known["current"]])
    raise ConfigError(
        "no cluster is named",
        hint="give --address http://HOST:8265, set RAY_API_SERVER_ADDRESS, or choose one with "
        "cropscore cluster use NAME --address URL",
    )


def token(given: str | None) -> str | None:
    """Return the token for where a command goes; None: Ray looks for one itself.

    It is that of the cluster that is named, or in use, unless RAY_AUTH_TOKEN or
    RAY_AUTH_TOKEN_PATH says one.

    Raises:
        ConfigError: the file that holds it cannot be read.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return None
    known = read()
    name = given or known["current"]
    path = known.get("tokens", {}).get(name)
    if path is None or address(given) != known["clusters"][name]:
        return None
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigError(
            f"the token of {name} cannot be read: {error}",
            hint="start the cluster from here, or set RAY_AUTH_TOKEN_PATH",
        ) from error


def url(address: str) -> str:
    """Return an address as a URL: http and port 8265 where nothing is said."""
    if "://" not in address:
        address = f"http://{address}"
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{address} is no address of a Ray dashboard", hint="give http://HOST:8265"
        )
    host = address.split("://", 1)[1]
    return address if ":" in host or address.startswith("https") else f"{address}:{_DEFAULT_PORT}"
