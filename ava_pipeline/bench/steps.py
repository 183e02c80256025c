"""Single calls of `step()`: the pass over the gradients, everything but that pass, and a step that collects nothing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ava_pipeline.bench.options import BenchContext
from ava_pipeline.bench.results import TIMES, Result, Target, median, ratio
from ava_pipeline.bench.timing import Samples, Work, interleaved
from ava_pipeline.bench.workload import Workload, collector, collector_of
from ava_pipeline.collect.norms import NormPlan

STEP_OF_TOTAL_NORM = Target(1.0)
STEP_OF_READING = Target(2.0)
PASS_OF_READING_ON_DEVICE = Target(2.0)
CLIPPING = Target(1.03)
REST_US = Target(200.0)
OF_EMPTY_CALL = Target(5.0)
NUM_CALLS = 10_000
_NEVER = 10**12
_ROUNDS_PER_STEP = 5
_JUDGED_MODEL = "resnet50"
# So high that every clip multiplies by 1: the gradients do not change, and each round reads and writes the same values.
_MAX_NORM = 1e9


def measure_gradients(context: BenchContext) -> list[Result]:
    """Collect and clip the same gradients repeatedly, beside torch's own norms and clipping."""
    workload = Workload(context.options)
    loss = workload.backward()
    with (
        collector(workload, workload.optimizer(), context.folder / "step", 1) as telemetry,
        collector(workload, workload.optimizer(), context.folder / "clip", 1) as clipping,
    ):
        values = {"loss": loss}

        def step_and_clip() -> None:
            clipping.step(0, values=values)
            clipping.clip_grad_norm_(_MAX_NORM)

        parameters = list(workload.model.parameters())
        works: dict[str, Work] = {
            **references(workload),
            "step": lambda: telemetry.step(0, values=values),
            "clip": lambda: nn.utils.clip_grad_norm_(parameters, _MAX_NORM),
            "step_and_clip": step_and_clip,
        }
        rounds = context.track(2 * context.options.steps, "passes over the gradients")
        return _gradient_results(interleaved(works, rounds, workload.clock), context, workload.device)


def references(workload: Workload) -> dict[str, Work]:
    """Work that a collected step is compared with, on the gradients of the latest backward pass."""
    gradients = workload.gradients()
    plan = NormPlan.of(gradients)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    return {
        "read": flat.sum,
        "total_norm": lambda: nn.utils.get_total_norm(gradients),
        "pass": lambda: plan.measure(gradients),
    }


def _gradient_results(times_s: dict[str, Samples], context: BenchContext, device: torch.device) -> list[Result]:
    raw = {f"{name}_s": float(np.median(samples)) for name, samples in times_s.items()}
    is_cpu = device.type == "cpu"
    is_judged = is_cpu and context.options.model == _JUDGED_MODEL
    ratios = (
        ("step", "total_norm", "collected step() over get_total_norm", STEP_OF_TOTAL_NORM if is_judged else None),
        ("step", "read", "collected step() over reading the gradients once", STEP_OF_READING if is_judged else None),
        ("pass", "read", "gradient pass over reading once", None if is_cpu else PASS_OF_READING_ON_DEVICE),
        ("pass", "total_norm", "gradient pass over get_total_norm", None),
        ("step_and_clip", "clip", "step() and clip_grad_norm_ over torch's own clipping", CLIPPING),
    )
    rest = median(times_s["step"] - times_s["pass"]).times(1e6)
    return [
        *(
            Result(
                name=f"{above}_of_{below}",
                title=title,
                unit=TIMES,
                estimate=ratio(times_s[above], times_s[below]),
                target=target,
                raw=raw,
            )
            for above, below, title, target in ratios
        ),
        Result(
            name="step_minus_pass",
            title="collected step() minus its gradient pass, on these gradients",
            unit="µs",
            estimate=rest,
            raw=raw,
        ),
    ]


def measure_rest(context: BenchContext) -> list[Result]:
    """Time a collected step and its pass alone, on as many parameters as the model has, with one number each."""
    # Long gradients would hide the difference, which does not depend on their length, in the variation of the pass.
    workload = Workload(context.options)
    num_parameters = len(list(workload.model.parameters()))
    with short_gradient_works(num_parameters, context.folder / "rest", workload.device) as works:
        rounds = context.track(_ROUNDS_PER_STEP * context.options.steps, "steps without the pass")
        times_s = interleaved(works, rounds, workload.clock)
    return [
        Result(
            name="step_without_pass",
            title=f"collected step() without its gradient pass, {num_parameters} parameters",
            unit="µs",
            estimate=median(times_s["step"] - times_s["pass"]).times(1e6),
            target=REST_US if workload.device.type == "cpu" else None,
            raw={f"{name}_s": float(np.median(samples)) for name, samples in times_s.items()},
        )
    ]


@contextmanager
def short_gradient_works(
    num_parameters: int, folder: Path, device: torch.device | None = None
) -> Iterator[Mapping[str, Work]]:
    """Work that collects a step, and work that only passes over the gradients, for gradients of one number each."""
    model = nn.ParameterList(nn.Parameter(torch.ones(1, device=device)) for _ in range(num_parameters))
    for parameter in model:
        parameter.grad = torch.ones_like(parameter)
    gradients = [parameter.grad for parameter in model if parameter.grad is not None]
    plan = NormPlan.of(gradients)
    groups = {"mlp_head": list(model)[-2:]}
    values = {"loss": torch.tensor(0.5, device=device)}
    with collector_of(model, torch.optim.AdamW(model.parameters()), folder, 1, groups=groups) as telemetry:
        yield {"step": lambda: telemetry.step(0, values=values), "pass": lambda: plan.measure(gradients)}


class Empty:
    """Has a method that does nothing, to measure the cost of a call."""

    def step(self, epoch: int) -> None:
        """Do nothing."""


def uncollected_works(workload: Workload, folder: Path) -> dict[str, Work]:
    """Work that calls `step()` many times without collecting, and work that calls an empty method as often."""
    telemetry, empty = collector(workload, workload.optimizer(), folder, _NEVER), Empty()

    def call_step() -> None:
        for _ in range(NUM_CALLS):
            telemetry.step(0)

    def call_empty() -> None:
        for _ in range(NUM_CALLS):
            empty.step(0)

    return {"step": call_step, "empty": call_empty}


def measure_hand_off(context: BenchContext) -> list[Result]:
    """Measure a step that is not collected, relative to an empty method call."""
    works = uncollected_works(Workload(context.options), context.folder / "never")
    times_s = interleaved(works, context.track(context.options.steps, "steps not collected"))
    return [
        Result(
            name="step_of_empty_call",
            title="step() not collected over an empty method call",
            unit=TIMES,
            estimate=ratio(times_s["step"], times_s["empty"]),
            target=OF_EMPTY_CALL,
            raw={f"{name}_call_s": float(np.median(samples)) / NUM_CALLS for name, samples in times_s.items()},
        )
    ]
