"""What a bulk run takes: hours, money, requests, storage, and what lost nodes add."""

import heapq
import statistics
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cropscore_ray import storage
from cropscore_ray.bulk import part_sizes
from cropscore_ray.errors import DataError
from cropscore_ray.terminal.tables import Table

RUNS = 41
S3_PRICES = {"gets": 0.4e-6, "puts": 5e-6, "storage_gb_month": 0.023}
"""US dollars, S3 Standard in us-east-1, from Amazon's list of prices (2025)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Who works, and how often a worker is lost."""

    num_workers: int
    images_per_s: float
    """Of one worker."""
    losses_per_hour: float = 0.0
    """Of one worker: what spot nodes are taken away at, or break at."""
    replaced_after_s: float = 300.0
    """From the loss of a worker until another one works: a node comes up, a model is loaded."""
    price_per_hour: float | None = None
    """Of one worker, in any currency."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What is to be done."""

    num_images: int
    part_images: int | None = None
    """As `part_sizes.sizes` takes it."""
    images_per_read: float = 1.0
    """1 for files; more where images lie side by side in archives."""
    rows_per_image: int = 6
    bytes_per_row: int = 40
    """Of predictions: 38 were measured in a part of 64 images (660 of a row of 140 scores)."""

    @property
    def images_beside(self) -> float:
        """Images of the part that an image is in, on average: large parts have more of them."""
        by_size = part_sizes.parts_by_size(self.part_images, self.num_images)
        return sum(size * size * number for size, number in by_size) / self.num_images


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """One run with losses that fall at random."""

    hours: float
    worker_hours: float
    num_losses: int
    images_again: float


def simulate(work: Work, cluster: Cluster, rng: np.random.Generator) -> Simulated:
    """Let a run go from loss to loss.

    Losses are independent of one another and of what went before. A lost worker's part is done
    again from its beginning; the loss falls anywhere in it.
    """
    part_s = work.images_beside / cluster.images_per_s
    todo_s = work.num_images / cluster.images_per_s
    loss_rate = cluster.losses_per_hour / 3600
    now_s = up_s = again_s = 0.0
    num_up, num_losses = cluster.num_workers, 0
    returns: list[float] = []
    while True:
        until_loss_s = rng.exponential(1 / (loss_rate * num_up)) if loss_rate * num_up else np.inf
        until_return_s = returns[0] - now_s if returns else np.inf
        until_done_s = todo_s / num_up if num_up else np.inf
        step_s = min(until_loss_s, until_return_s, until_done_s)
        now_s, up_s, todo_s = now_s + step_s, up_s + step_s * num_up, todo_s - step_s * num_up
        if step_s == until_done_s:
            break
        if step_s == until_return_s:
            heapq.heappop(returns)
            num_up += 1
            continue
        lost_s = rng.uniform(0, part_s)
        todo_s, again_s = todo_s + lost_s, again_s + lost_s
        num_up, num_losses = num_up - 1, num_losses + 1
        heapq.heappush(returns, now_s + cluster.replaced_after_s)
    return Simulated(
        hours=now_s / 3600,
        worker_hours=up_s / 3600,
        num_losses=num_losses,
        images_again=again_s * cluster.images_per_s,
    )


def plan(work: Work, cluster: Cluster, *, seed: int = 0) -> dict[str, Any]:
    """Return what a run takes: plain numbers, for people and programs.

    `hours` are those of an undisturbed run; `with_losses` has the median of simulated runs and the
    time that 95 of 100 keep. Storage's prices are S3_PRICES; a worker's is the caller's.
    """
    rng = np.random.default_rng(seed)
    runs = [simulate(work, cluster, rng) for _ in range(RUNS if cluster.losses_per_hour else 1)]
    gets = work.num_images / work.images_per_read
    puts = part_sizes.num_parts(work.part_images, work.num_images)
    result_bytes = work.num_images * work.rows_per_image * work.bytes_per_row
    worker_hours = statistics.median(run.worker_hours for run in runs)
    price = cluster.price_per_hour
    return {
        "work": asdict(work),
        "cluster": asdict(cluster),
        "hours": work.num_images / cluster.images_per_s / cluster.num_workers / 3600,
        "worker_hours": work.num_images / cluster.images_per_s / 3600,
        "with_losses": {
            "runs": len(runs),
            "hours": statistics.median(run.hours for run in runs),
            "hours_95": float(np.quantile([run.hours for run in runs], 0.95)),
            "worker_hours": worker_hours,
            "losses": statistics.median(run.num_losses for run in runs),
            "images_again": statistics.median(run.images_again for run in runs),
        },
        "cost": {
            "workers": None if price is None else worker_hours * price,
            "requests": gets * S3_PRICES["gets"] + puts * S3_PRICES["puts"],
            "storage_month": result_bytes / 1e9 * S3_PRICES["storage_gb_month"],
        },
        "requests": {"gets": gets, "puts": puts},
        "result": {"files": puts, "bytes": result_bytes},
    }


def measured_rate(file: str, mode: str) -> float:
    """Return a worker's images a second from what `cropscore bench scorer --json` printed.

    Raises:
        DataError: the file is something else.
    """
    printed = storage.read_json(storage.absolute_uri(file))
    try:
        rates = {row["name"]: row["median"] for row in printed["rows"]}
        return float(rates[mode])
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{file} has no rate of {mode} mode",
            hint="write it with: cropscore bench scorer --json > FILE",
        ) from error


def render(planned: dict[str, Any]) -> Table:
    """Return a plan as a table for people."""
    cluster, losses, cost = planned["cluster"], planned["with_losses"], planned["cost"]
    workers = cluster["num_workers"]
    lines = [
        ("images", f"{planned['work']['num_images']:,}"),
        ("workers", f"{workers:,}, {cluster['images_per_s']:,.4g} images/s each"),
        ("", f"({planned['rate_source']})"),
        ("hours", f"{planned['hours']:,.2f} undisturbed"),
    ]
    if losses["losses"]:
        lines += [
            ("", f"{losses['hours']:,.2f} with losses, {losses['hours_95']:,.2f} in 95 of 100"),
            ("losses", f"{losses['losses']:,.0f}; {losses['images_again']:,.0f} images done again"),
        ]
    lines.append(("worker hours", f"{losses['worker_hours']:,.1f}"))
    if cost["workers"] is not None:
        lines.append(("workers' cost", f"{cost['workers']:,.2f}"))
    gets, puts = planned["requests"]["gets"], planned["requests"]["puts"]
    result = planned["result"]
    lines += [
        ("requests", f"{gets:,.0f} reads, {puts:,} writes: {cost['requests']:,.2f} $ on S3"),
        ("result", f"{result['files']:,} files, {result['bytes'] / 1e9:,.2f} GB"),
        ("", f"{cost['storage_month']:,.2f} $ a month on S3"),
    ]
    return Table(rows=lines, columns=("<14", ""), gap=" ")
