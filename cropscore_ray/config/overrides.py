"""Configs to plain values and back, for `--set a.b=VALUE` and every written config.

Any frozen dataclass will do; what its fields mean is not known here.
"""

import dataclasses
import json
import types
import typing
from typing import Any, TypeVar

from cropscore_ray.errors import ConfigError

Config = TypeVar("Config")

LATER = {"later": True}
"""Metadata of a setting that did not exist in version 0.1.0: `field(default=…, metadata=LATER)`.
At its default it is no difference, so that what began without it goes on."""


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def to_identity(config: Any) -> dict[str, Any]:
    """Return what makes two configs different ones, as plain JSON values.

    That is all of a config, but for settings that were added LATER and stand at their defaults.
    """
    plain = to_dict(config)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            plain[field.name] = to_identity(value)
        elif field.metadata.get("later") and value == field.default:
            del plain[field.name]
    return plain


def from_dict(kind: type[Config], values: Any, *, where: str = "") -> Config:
    """Build a config from plain values; ConfigError names an unknown or mistyped field."""
    if not isinstance(values, dict):
        name = where.removesuffix(".") or "the config"
        raise ConfigError(f"{name} is {values!r}, but it must be the fields of a {kind.__name__}")
    hints = typing.get_type_hints(kind)
    kwargs = {}
    for name, value in values.items():
        dotted = f"{where}{name}"
        if name not in hints:
            raise ConfigError(
                f"there is no setting {dotted!r}", hint=f"known here: {', '.join(hints)}"
            )
        kwargs[name] = _convert(hints[name], value, dotted)
    return kind(**kwargs)


def _convert(hint: Any, value: Any, dotted: str) -> Any:
    """Return a plain value as the annotated type, or raise ConfigError."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, where=f"{dotted}.")
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if option is type(None) and value is None:
            return None
        if typing.get_origin(option) is tuple and isinstance(value, list | tuple):
            return _convert_tuple(option, value, dotted)
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option in (int, bool, str) and type(value) is option:
            return value
    rule = " or ".join(_name_of(option) for option in options)
    raise ConfigError(f"{dotted} is {value!r}, but it must be {rule}")


def _name_of(kind: Any) -> str:
    """Return a type as users write its values."""
    if typing.get_origin(kind) is tuple:
        return "a list in brackets, like [1, 2]"
    return "null" if kind is type(None) else str(kind.__name__)


def _convert_tuple(hint: Any, values: Any, dotted: str) -> tuple[Any, ...]:
    """Return plain values as `tuple[kind, ...]` or as a tuple of fixed length."""
    kinds = typing.get_args(hint)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(values)
    if len(kinds) != len(values):
        raise ConfigError(f"{dotted} is {values!r}, but it must have {len(kinds)} values")
    pairs = zip(kinds, values, strict=True)
    return tuple(_convert(kind, value, f"{dotted}[{i}]") for i, (kind, value) in enumerate(pairs))


def with_settings(config: Config, settings: list[str]) -> Config:
    """Return the config with `a.b=VALUE` settings applied; values are JSON or bare words."""
    values = to_dict(config)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting!r} has no '='", hint="write --set scorer.epochs=3")
        *folders, leaf = path.strip().split(".")
        inner = values
        for name in folders:
            inner = inner.get(name) if isinstance(inner, dict) else None  # type: ignore[assignment]
            if not isinstance(inner, dict):
                raise ConfigError(f"there is no setting {path.strip()!r}")
        inner[leaf] = _parse(text)
    return from_dict(type(config), values)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"None": None, "True": True, "False": False}.get(text, text)
