"""Schedulers of diffusers: by a sampler's name, and watched."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from torch import Tensor

from calotype.draw.assemble import quiet
from calotype.draw.kinds import Kind
from calotype.draw.schedule import SAMPLERS
from calotype.errors import UsageError


def scheduler_named(sampler: str, own: Any, kind: Kind) -> Any:
    """The scheduler of a sampler's name, with a checkpoint's noise schedule.

    Args:
        own: the checkpoint's scheduler.

    Raises:
        UsageError: if there is none of the name, or none but its own draws with such a checkpoint.
    """
    if sampler not in SAMPLERS:
        raise UsageError(f"There is no sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}.")
    if not kind.samplers:
        raise UsageError(f"{kind.title} draws with the sampler that its folder says; leave the sampler out.")
    config = dict(own.config)
    names = {"ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler", "dpm++": "DPMSolverMultistepScheduler"}
    name = names[sampler]
    if not kind.flow:
        # a DDIM in diffusers cuts off latents beyond 1 where it is not told otherwise
        config = {"clip_sample": False, "set_alpha_to_one": False, **config, "algorithm_type": "dpmsolver++"}
    elif sampler == "dpm++":
        config |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": config["shift"]}
    else:
        name = "FlowMatchEulerDiscreteScheduler"
    with quiet():
        return getattr(importlib.import_module("diffusers"), name).from_config(config)


class Watched:
    """Keeps what a scheduler's last step took for the finished latents; None if it does not show it."""

    def __init__(self, scheduler: Any) -> None:
        self.clean: Tensor | None = None
        inner = scheduler.step

        @functools.wraps(inner)  # pipelines look which arguments it takes
        def step(output: Tensor, timestep: Any, sample: Tensor, *args: Any, **named: Any) -> Any:
            result = inner(output, timestep, sample, *args, **named)
            if isinstance(result, tuple) and len(result) > 1:
                self.clean = result[1]
            elif getattr(scheduler.config, "algorithm_type", "") == "dpmsolver++":
                self.clean = scheduler.model_outputs[-1]
            elif type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler":
                self.clean = sample - scheduler.sigmas[scheduler.step_index - 1].to(sample) * output
            return result

        scheduler.step = step
