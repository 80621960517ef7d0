"""Rules that settings keep, by the words of the error messages."""

from typing import Any

from cropscore_ray.errors import ConfigError

_RULES = {
    "0 or more": lambda value: value >= 0,
    "1 or more": lambda value: value >= 1,
    "1 or more, or null": lambda value: value >= 1,
    "above 0": lambda value: value > 0,
    "above 0 and at most 1": lambda value: 0 < value <= 1,
    "above 0 and below 1": lambda value: 0 < value < 1,
    "from 0 to 1": lambda value: 0 <= value <= 1,
    "from 0 to below 1": lambda value: 0 <= value < 1,
}


def check(config: Any, section: str, rule: str, *names: str) -> None:
    """Raise ConfigError if a field of a section ("" for none) breaks the rule; None never does."""
    for name in names:
        value = getattr(config, name)
        require(
            value is None or _RULES[rule](value), f"{section}.{name}".removeprefix("."), value, rule
        )


def one_of(known: tuple[str, ...], name: str, value: str) -> None:
    """Raise ConfigError unless the value is a known one."""
    require(value in known, name, value, "one of " + ", ".join(known))


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """Raise ConfigError, with the dotted field, its value and the rule, unless the rule holds."""
    if not holds:
        raise ConfigError(f"{name} is {value!r}, but it must be {rule}")
