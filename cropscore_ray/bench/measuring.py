"""Speed as ratios: contestants measured in turn, round by round, in one run."""

import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from cropscore_ray.models.inference import best_dtype

Run = Callable[[], int]
"""Does some work and returns how many units it did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was measured of one thing, a value a round."""

    name: str
    unit: str
    values: list[float]

    @property
    def median(self) -> float:
        """The middle value, which a disturbed round does not move."""
        return statistics.median(self.values)


def measure(
    contestants: dict[str, Run],
    *,
    unit: str,
    rounds: int,
    progress: Callable[[int, int], None],
) -> list[Measured]:
    """Warm each contestant up, then let all run once a round.

    Returns:
        the seconds of each first call, then the units per second of each contestant.
    """
    steps = (rounds + 1) * len(contestants)
    warm_up, rates = [], {name: [0.0] * rounds for name in contestants}
    for step, (number, name) in enumerate(itertools.product(range(rounds + 1), contestants)):
        began_s = time.perf_counter()
        units = contestants[name]()
        seconds = time.perf_counter() - began_s
        if number == 0:
            warm_up.append(Measured(name=f"first call: {name}", unit="s", values=[seconds]))
        else:
            rates[name][number - 1] = units / seconds
        progress(step + 1, steps)
    return warm_up + [Measured(name=name, unit=unit, values=rates[name]) for name in rates]


def ratio(rows: list[Measured], over: str, under: str) -> float:
    """Return the median over rounds of one contestant's rate to another's.

    Round by round, since a machine that others use is slow for all in the same round.
    """
    rates = {row.name: row.values for row in rows}
    return statistics.median(a / b for a, b in zip(rates[over], rates[under], strict=True))


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the figures were measured on."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": str(best_dtype(device)).removeprefix("torch."),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1] for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return (names or [platform.processor() or platform.machine()])[0].strip()
