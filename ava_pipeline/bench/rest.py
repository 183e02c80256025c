"""Everything of a collected step but the pass: lists, measures, staging, hand-off."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ava_pipeline.bench.figures import Figure, Target
from ava_pipeline.bench.options import Setting
from ava_pipeline.bench.statistics import median
from ava_pipeline.bench.timing import Work, interleaved
from ava_pipeline.bench.workload import Workload, collector_of
from ava_pipeline.collect.norms import NormPlan

REST_US = Target(200.0)
_ROUNDS_PER_STEP = 5


def measure_rest(setting: Setting) -> list[Figure]:
    """A collected step and the pass alone, in turn, on as many parameters as the model has, of one number each.

    What is left of their difference does not depend on how long the gradients are, and on long ones it would drown
    in what the pass takes more or less from one time to the next.
    """
    workload = Workload(setting.options)
    num_parameters = len(list(workload.model.parameters()))
    with works_of_short_gradients(num_parameters, setting.folder / "rest", workload.device) as works:
        rounds = setting.track(_ROUNDS_PER_STEP * setting.options.steps, "steps without the pass")
        times_s = interleaved(works, rounds, workload.clock)
    return [
        Figure(
            name="step_without_pass",
            title=f"collected step() without the pass, {num_parameters} parameters",
            unit="µs",
            estimate=median(times_s["step"] - times_s["pass"]).times(1e6),
            target=REST_US if workload.device.type == "cpu" else None,
            raw={f"{name}_s": float(np.median(of_it)) for name, of_it in times_s.items()},
        )
    ]


@contextmanager
def works_of_short_gradients(
    num_parameters: int, folder: Path, device: torch.device | None = None
) -> Iterator[Mapping[str, Work]]:
    """A collected step, and the pass alone, over gradients of one number each."""
    model = nn.ParameterList(nn.Parameter(torch.ones(1, device=device)) for _ in range(num_parameters))
    for parameter in model:
        parameter.grad = torch.ones_like(parameter)
    gradients = [parameter.grad for parameter in model if parameter.grad is not None]
    plan = NormPlan.of(gradients)
    groups = {"mlp_head": list(model)[-2:]}
    values = {"loss": torch.tensor(0.5, device=device)}
    with collector_of(model, torch.optim.AdamW(model.parameters()), folder, 1, groups=groups) as telemetry:
        yield {"step": lambda: telemetry.step(0, values=values), "pass": lambda: plan.measure(gradients)}
