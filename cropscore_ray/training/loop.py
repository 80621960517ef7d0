"""Stochastic training of networks in a plain process, alone or as one of several workers.

What is particular to a cluster (gradients averaged over workers, checkpoints that outlive
a node) enters through `Worker`, so that the same loop runs in a test without Ray.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cropscore_ray.config.sections import SgdConfig
from cropscore_ray.errors import ConfigError
from cropscore_ray.training.data.batches import Batch, Feed, Plan, make_plan
from cropscore_ray.training.data.images import ImageDataset

logger = logging.getLogger(__name__)

_MOMENTUM = 0.9
_WARM_UP = 0.05
_STEP_EPOCHS, _STEP_FACTOR = 8, 0.96  # Szegedy et al. 2014, section 6

State = dict[str, Any]


def ignore(*event: Any) -> None:
    """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One process of a training: its place among the workers, and how it reaches them."""

    rank: int = 0
    num_workers: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    num_loaders: int = 0
    """Processes that read and decode images ahead; 0: a thread."""
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network
    """Makes gradients common to all workers."""
    total: Callable[[Tensor], Tensor] = lambda sums: sums
    """Adds up what each worker has; all must call it at the same step."""
    checkpoint_steps: int = 0
    """Steps from one checkpoint to the next, besides those at the ends of epochs; 0: none."""
    checkpoint: Callable[[dict[str, Any], Callable[[], State]], None] = ignore
    """Called by all workers with metrics and, for the one that needs it, the state."""
    progress: Callable[[str, int, int, Callable[[], str]], None] = ignore
    """Called with the network's name, steps done, steps in all, and what returns how it goes."""
    resumed: State | None = None
    """The state of the last checkpoint of a training that was stopped."""


class Objective(Protocol):
    """What a network is to learn."""

    def trained(self, network: Any) -> nn.Module:
        """Return what is trained in the network's place: itself, or itself in a wrapper."""

    def prepare(self, network: Any, device: torch.device) -> None:
        """Measure what must be known before the first step of a new training."""

    def state(self) -> Any:
        """Return what `prepare` measured, for a checkpoint."""

    def load(self, state: Any) -> None:
        """Take what `prepare` measured at another time."""

    def __call__(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return a pass's mean loss, and how many images or squares are right, of how many."""


@dataclass(frozen=True, kw_only=True)
class NetworkTask:
    """One network to train: its name in the bundle, first weights, images, loss and settings."""

    name: str
    make: Callable[[], Any]
    """A module with its first weights."""
    dataset: ImageDataset
    objective: Objective
    config: SgdConfig
    seed: int


def train_networks(tasks: list[NetworkTask], worker: Worker) -> dict[str, State]:
    """Train networks one after the other; go on after the last checkpoint if there is one.

    Returns:
        for each task's name, {"weights": state dict on the CPU, "metrics": of its epochs}.
    """
    state = worker.resumed or {"finished": {}, "current": None}
    for task in tasks:
        if task.name not in state["finished"]:
            finished = {**state["finished"], task.name: _train_network(task, worker, state)}
            state = {"finished": finished, "current": None}
    return dict(state["finished"])


def _train_network(task: NetworkTask, worker: Worker, state: State) -> State:
    if not task.config.epochs:
        torch.manual_seed(task.seed)
        return {"weights": task.make().state_dict(), "metrics": []}
    session = _Session(task, worker)
    if state["current"]:
        session.load(state["current"])
        worker.progress(
            task.name, session.step, session.plan.num_steps, lambda: "goes on from here"
        )
    else:
        task.objective.prepare(session.network, worker.device)
    for metrics in session.run():
        worker.checkpoint(
            {"network": task.name, **metrics},
            lambda: {"finished": state["finished"], "current": session.state()},
        )
    kept = session.average.module if session.average else session.network
    weights = {name: weight.detach().cpu() for name, weight in kept.state_dict().items()}
    return {"weights": weights, "metrics": session.history}


class _Session:
    """One network in training, with all that its steps change."""

    def __init__(self, task: NetworkTask, worker: Worker) -> None:
        torch.manual_seed(task.seed)
        self.task = task
        self.worker = worker
        self.network = task.make().to(worker.device, memory_format=torch.channels_last)
        self.average = moving_average(self.network, task.config)
        self.trained = task.objective.trained(self.network).to(worker.device)
        self.module = worker.wrap(self.trained)
        self.plan = make_plan(
            task.name, len(task.dataset), task.config, task.seed, worker.rank, worker.num_workers
        )
        self.optimizer, self.schedule = make_optimizer(self.module, task.config, self.plan)
        self.history: list[dict[str, float]] = []
        self.step = 0
        self.totals, self.sums = torch.zeros(2, 4, dtype=torch.float64, device=worker.device)
        """Of this epoch: loss, images judged right, images judged, unreadable ones; of all workers
        up to the last checkpoint, and of this one since then."""
        self.began_s = 0.0
        """When this epoch would have begun, had it run from then to now without a break."""
        self.seconds, self.waited_s = 0.0, 0.0  # of this epoch

    def _parts(self) -> dict[str, Any]:
        parts = {"network": self.trained, "optimizer": self.optimizer, "schedule": self.schedule}
        return parts | ({"average": self.average} if self.average else {})

    def state(self) -> State:
        """Return all that a training needs to go on from here."""
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "objective": self.task.objective.state(),
            "step": self.step,
            "history": self.history,
            "epoch": (self.totals.cpu(), self.seconds, self.waited_s),
        }

    def load(self, state: State) -> None:
        """Go on from a state."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.task.objective.load(state["objective"])
        self.step, self.history = state["step"], state["history"]
        totals, self.seconds, self.waited_s = state["epoch"]
        self.totals.copy_(totals)

    def run(self) -> Iterator[dict[str, float]]:
        """Take all steps that are left; give metrics where a checkpoint is due."""
        if self.step == self.plan.num_steps:
            return
        device, num_loaders = self.worker.device, self.worker.num_loaders
        feed = Feed(self.task.dataset, self.plan, self.step, device, num_loaders)
        self.module.train()
        self.began_s = time.monotonic() - self.seconds
        while self.step < self.plan.num_steps:
            waited_s = feed.waited_s
            self._take_step(feed)
            self.waited_s += feed.waited_s - waited_s
            ends_epoch = self.step % self.plan.steps_an_epoch == 0
            is_due = ends_epoch or self.step % (self.worker.checkpoint_steps or math.inf) == 0
            if is_due:
                self._add_up()
            self.worker.progress(self.task.name, self.step, self.plan.num_steps, self._line)
            if ends_epoch:
                self._end_epoch()
                yield self.history[-1]
            elif is_due:
                yield self._metrics(self.totals)

    def _take_step(self, feed: Feed) -> None:
        """Take one step of the optimizer on this worker's share of the batch.

        Each pass adds its part to the mean gradient of the whole batch; only the last pass
        waits for the other workers.
        """
        torch.manual_seed(hash((self.task.seed, self.step, self.worker.rank)))  # dropout
        self.optimizer.zero_grad(set_to_none=True)
        passes = self.plan.passes(self.step)
        no_sync = getattr(self.module, "no_sync", nullcontext)
        for images in passes:
            with no_sync() if images is not passes[-1] else nullcontext():
                self._take_pass(feed.take(), len(images))
        if self.task.config.optimizer == "adamw":
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        if self.average:
            self.average.update_parameters(self.network)
        self.step += 1

    def _take_pass(self, batch: Batch, num_images: int) -> None:
        loss, right, judged = self.task.objective(self.module, batch)
        # Workers' gradients are averaged, and their shares may differ by an image.
        weighted = loss * (num_images / self.plan.batch_size)
        (weighted * self.worker.num_workers).backward()  # type: ignore[no-untyped-call]
        sums = [weighted.detach(), right, judged, batch["num_failed"].sum()]
        self.sums += torch.stack([number.double() for number in sums])

    def _add_up(self) -> None:
        """Add to the totals what all workers have had since the last checkpoint."""
        self.totals += self.worker.total(self.sums)
        self.sums.zero_()

    def _metrics(self, sums: Tensor) -> dict[str, float]:
        """Return the epoch so far: mean loss, accuracy, failures and time.

        The time is all that went by, that of checkpoints and of lines of progress too.

        Raises:
            ConfigError: the loss is no longer a number.
        """
        loss_sum, right, judged, failed = sums.tolist()  # waits for a GPU
        self.seconds = time.monotonic() - self.began_s
        taken = (self.step - 1) % self.plan.steps_an_epoch + 1
        if not math.isfinite(loss_sum):
            raise ConfigError(
                f"{self.task.name}: the loss is not a number any more by step {self.step}",
                hint="lower its learning_rate",
            )
        return {
            "epoch": (self.step - 1) // self.plan.steps_an_epoch + 1,
            "loss": loss_sum / taken,
            "accuracy": right / judged if judged else 0.0,
            "failed": failed,
            "seconds": self.seconds,
            "input_wait": self.waited_s / self.seconds,
        }

    def _line(self) -> str:
        """Return how the epoch goes, as if the other workers had what this worker has."""
        metrics = self._metrics(self.totals + self.worker.num_workers * self.sums)
        taken = (self.step - 1) % self.plan.steps_an_epoch + 1
        rate = taken * self.plan.batch_size / self.seconds
        waited = f"{metrics['input_wait']:.0%} of it waiting for images"
        failed = (
            f", passed over {metrics['failed']:.0f} unreadable ones" if metrics["failed"] else ""
        )
        return f"loss {metrics['loss']:.3f}, {rate:.0f} images/s, {waited}{failed}"

    def _end_epoch(self) -> None:
        self.history = [*self.history, self._metrics(self.totals)]
        self.totals.zero_()
        self.began_s += self.seconds
        self.seconds, self.waited_s = 0.0, 0.0
        logger.info("%s epoch %d: %s", self.task.name, len(self.history), self.history[-1])


def make_optimizer(
    module: nn.Module, config: SgdConfig, plan: Plan
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return the optimizer of a training and the schedule of its rate."""
    optimizer: torch.optim.Optimizer
    parameters, rate, decay = module.parameters(), config.learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(
            parameters, lr=rate, weight_decay=decay, momentum=_MOMENTUM, nesterov=True
        )
    share = partial(rate_share, schedule=config.schedule, plan=plan)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def rate_share(step: int, schedule: str, plan: Plan) -> float:
    """Return the share of the peak rate in a step.

    A linear warm-up, then half a cosine down to 0; or, for `step`, 4 % less every 8 epochs.
    """
    warm_up = math.ceil(_WARM_UP * plan.num_steps)
    if step < warm_up:
        return (step + 1) / warm_up
    if schedule == "step":
        return _STEP_FACTOR ** (step // plan.steps_an_epoch // _STEP_EPOCHS)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, plan.num_steps - warm_up)))


def moving_average(network: nn.Module, config: SgdConfig) -> AveragedModel | None:
    """Return the exponential moving average of weights and of batch norm's figures.

    Its decay grows from 0.1 up to ema_decay, so that first weights do not weigh for ever.
    """
    if not config.ema_decay:
        return None

    def update(averaged: Any, current: Any, num_averaged: Tensor | int) -> None:
        taken = int(num_averaged)
        decay = min(config.ema_decay, (1 + taken) / (10 + taken))
        get_ema_multi_avg_fn(decay)(averaged, current, num_averaged)  # type: ignore[no-untyped-call]

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)
