"""The optimizer, the rate of each step, and the moving average of what it finds."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cropscore_ray.config.sections import SgdConfig
from cropscore_ray.training.data.batches import Plan

_MOMENTUM = 0.9
_WARM_UP = 0.05
_STEP_EPOCHS, _STEP_FACTOR = 8, 0.96  # Szegedy et al. 2014, section 6


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
