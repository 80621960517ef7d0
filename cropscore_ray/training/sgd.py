"""Stochastic training of networks in a plain process; one of several workers, or alone.

What is particular to a cluster (gradients averaged over workers, checkpoints that outlive
a node) enters through `Worker`, so that the same loop runs in a test without Ray.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from cropscore_ray.config import SgdConfig
from cropscore_ray.errors import DataError
from cropscore_ray.images import normalize
from cropscore_ray.inference import best_dtype
from cropscore_ray.networks import Network
from cropscore_ray.training.crops import (
    Calibration,
    CropDataset,
    crop_loss,
    epoch_order,
    fit_calibration,
)

logger = logging.getLogger(__name__)

_MOMENTUM = 0.9
_WARM_UP = 0.05
_GPU_LOADERS = 8
_CALIBRATION_CROPS = 400

State = dict[str, Any]


def _plain(network: Network) -> nn.Module:
    return network


def _ignore(metrics: dict[str, Any], state: State) -> None:
    del metrics, state


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One process of a training: its place among the workers, and how it reaches them."""

    rank: int = 0
    num_workers: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wrap: Callable[[Network], nn.Module] = _plain
    """Makes gradients common to all workers."""
    checkpoint: Callable[[dict[str, Any], State], None] = _ignore
    """Called by all workers after every epoch."""
    progress: Callable[[str, int, int, float], None] = lambda name, done, total, loss: None
    """Told the network's name, steps done, steps in all and the running loss."""
    resumed: State | None = None
    """The state of the last checkpoint of a training that was stopped."""


@dataclass(frozen=True, kw_only=True)
class NetworkTask:
    """One network to train: its name in the bundle, first weights, crops and settings."""

    name: str
    make: Callable[[], Network]
    dataset: CropDataset
    config: SgdConfig
    seed: int
    learns_overlap: bool = False
    """Whether the sampler draws squares of the grid."""


def train_networks(tasks: list[NetworkTask], worker: Worker) -> dict[str, State]:
    """Train networks one after the other; go on after the last checkpoint if there is one.

    Returns:
        for each task's name, {"weights": state dict on the CPU, "metrics": of its epochs}.
    """
    state = worker.resumed or {"finished": {}, "current": None}
    for task in tasks:
        if task.name not in state["finished"]:
            state = _train_network(task, worker, state)
    return dict(state["finished"])


@dataclass(frozen=True, kw_only=True)
class _Session:
    """One network in training, with all that its steps change."""

    task: NetworkTask
    worker: Worker
    network: Network
    module: nn.Module
    loader: DataLoader[dict[str, Any]]
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    calibration: Calibration

    def state(self) -> State:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load(self, state: State) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


def _train_network(task: NetworkTask, worker: Worker, state: State) -> State:
    session = _begin(task, worker)
    history: list[dict[str, float]] = []
    if state["current"]:
        session.load(state["current"])
        history = state["current"]["history"]
    for epoch in range(len(history), task.config.epochs):
        torch.manual_seed(task.seed + epoch)  # dropout, also after a restart
        history = [*history, {"epoch": epoch + 1, **_epoch(session, epoch)}]
        current = {**session.state(), "history": history}
        worker.checkpoint(
            {"network": task.name, **history[-1]},
            {"finished": state["finished"], "current": current},
        )
    weights = {name: one.detach().cpu() for name, one in session.network.state_dict().items()}
    finished = {**state["finished"], task.name: {"weights": weights, "metrics": history}}
    return {"finished": finished, "current": None}


def _begin(task: NetworkTask, worker: Worker) -> _Session:
    torch.manual_seed(task.seed)
    network = task.make().to(worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader = _loader(task, worker)
    calibration = Calibration()
    if task.learns_overlap and task.config.epochs:
        logits_N, overlaps_N = _first_logits(network, task.dataset, worker.device)
        calibration = fit_calibration(logits_N, overlaps_N)
    module = worker.wrap(network)
    optimizer, schedule = _optimizer(module, task.config, len(loader))
    return _Session(
        task=task,
        worker=worker,
        network=network,
        module=module,
        loader=loader,
        optimizer=optimizer,
        schedule=schedule,
        calibration=calibration,
    )


@torch.no_grad()
def _first_logits(
    network: Network, dataset: CropDataset, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the untrained scorer's logits of grid squares, and their overlaps."""
    network.eval()
    logits, overlaps = [torch.empty(0)], [torch.empty(0)]
    for i in range(0, len(dataset), max(1, len(dataset) // _CALIBRATION_CROPS)):
        batch = _on_device(default_collate([dataset[dataset.request(i, step=i)]]), device)
        logits_NC = network(*_inputs(batch, dataset)).float()
        is_square = ~batch["overlap"].isnan()
        own_logit = logits_NC.gather(1, batch["class_index"][:, None])[:, 0]
        logits.append(own_logit[is_square].cpu())
        overlaps.append(batch["overlap"][is_square].cpu().float())
    return torch.cat(logits), torch.cat(overlaps)


def _on_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return a batch on its device, with one class and overlap a crop or region."""
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return moved | {name: moved[name].flatten() for name in ("class_index", "overlap")}


def _inputs(batch: dict[str, Tensor], dataset: CropDataset) -> list[Tensor]:
    """Return what the network is called with: normalized crops, and regions if there are any."""
    crops_N3SS = normalize(batch["crop"], dataset.preprocess, torch.float32)
    return [crops_N3SS, *([batch["regions"]] if "regions" in batch else [])]


def _loader(task: NetworkTask, worker: Worker) -> DataLoader[dict[str, Any]]:
    on_gpu = worker.device.type == "cuda"
    num_images = len(task.dataset)
    if num_images < worker.num_workers:
        raise DataError(
            f"{task.name}: {num_images} labelled training images for {worker.num_workers} workers",
            hint="does the manifest's training split carry classes and, for the scorer, boxes?",
        )
    # Whole batches only, since batch norm dislikes a last batch of one; as many for any
    # number of workers, so that a schedule can go on with another number.
    batch = min(task.config.batch_size, num_images)
    per_worker = max(1, batch // worker.num_workers)
    return DataLoader(
        task.dataset,
        batch_size=per_worker,
        sampler=_EpochOrder(task, worker, num_images // batch * per_worker, per_worker),
        num_workers=_GPU_LOADERS if on_gpu else 0,
        pin_memory=on_gpu,
    )


class _EpochOrder:
    """The sampler of a DataLoader: another order every epoch, set on the dataset."""

    def __init__(self, task: NetworkTask, worker: Worker, num_images: int, per_step: int) -> None:
        self.task = task
        self.worker = worker
        self.num_images = num_images
        self.per_step = per_step

    def __iter__(self) -> Iterator[Any]:
        task, worker = self.task, self.worker
        order = epoch_order(
            len(task.dataset), task.seed, task.dataset.epoch, worker.rank, worker.num_workers
        )
        requests = enumerate(order[: self.num_images])
        return iter(task.dataset.request(i, at // self.per_step) for at, i in requests)

    def __len__(self) -> int:
        return self.num_images


def _optimizer(
    module: nn.Module, config: SgdConfig, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.SGD(
        module.parameters(),
        lr=config.learning_rate,
        momentum=_MOMENTUM,
        nesterov=True,
        weight_decay=config.weight_decay,
    )
    num_steps = steps_per_epoch * config.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, num_steps=num_steps))
    return optimizer, schedule


def _rate(step: int, num_steps: int) -> float:
    """Return the share of the peak rate: a linear warm-up, then half a cosine down to 0."""
    warm_up = math.ceil(_WARM_UP * num_steps)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, num_steps - warm_up)))


def _epoch(session: _Session, epoch: int) -> dict[str, float]:
    """Take one pass; return the mean loss, accuracy on class crops, failures and seconds."""
    task, device, num_steps = session.task, session.worker.device, len(session.loader)
    session.module.train()
    task.dataset.epoch = epoch
    began_s = time.monotonic()
    total = torch.zeros(4, device=device)  # loss, right, class crops, failed images
    for step, batch in enumerate(session.loader, 1):
        batch = _on_device(batch, device)
        loss, logits_NC = _step(session, batch)
        total += _tally(loss, logits_NC, batch)
        done = epoch * num_steps + step
        session.worker.progress(
            task.name, done, task.config.epochs * num_steps, float(total[0]) / step
        )
    loss_sum, right, crops, failed = total.tolist()
    logger.info("%s epoch %d: loss %.3f", task.name, epoch + 1, loss_sum / num_steps)
    return {
        "loss": loss_sum / num_steps,
        "accuracy": right / crops if crops else 0.0,
        "failed": failed,
        "seconds": time.monotonic() - began_s,
    }


def _step(session: _Session, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Take one step of the optimizer; return the loss and the logits."""
    device = session.worker.device
    dtype = best_dtype(device)
    inputs = _inputs(batch, session.task.dataset)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits_NC = session.module(*inputs)
    logits_NC = logits_NC.float()
    smoothing = session.task.config.label_smoothing
    loss = crop_loss(logits_NC, batch, smoothing, session.calibration)
    session.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    session.optimizer.step()
    session.schedule.step()
    return loss, logits_NC


def _tally(loss: Tensor, logits_NC: Tensor, batch: dict[str, Tensor]) -> Tensor:
    is_class_crop = batch["overlap"].isnan()
    right = (logits_NC.argmax(1) == batch["class_index"]) & is_class_crop
    sums = [loss.detach(), right.sum(), is_class_crop.sum(), batch["num_failed"].sum()]
    return torch.stack([one.float() for one in sums])
