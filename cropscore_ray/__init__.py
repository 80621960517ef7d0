"""Find where an object is from classification scores alone, on a Ray cluster.

    import cropscore_ray as cropscore

    predictions = cropscore.load("bundle").localize(["cat.jpg"])

The names below come from `cropscore_ray.api`, which is imported when one of them is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cropscore_ray.api import Model, Run, draw, evaluate, load, read_run

__version__ = "0.1.0"
__all__ = ["Model", "Run", "__version__", "draw", "evaluate", "load", "read_run"]


def __getattr__(name: str) -> Any:
    """Return a name of the Python interface; importing the package itself stays quick."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cropscore_ray import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__
