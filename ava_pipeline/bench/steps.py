"""Single calls: the pass over the gradients, a step that is not collected, a step without its pass."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ava_pipeline.bench.command import Setting
from ava_pipeline.bench.results import TIMES, Result, Samples, Target, Work, interleaved, median, ratio
from ava_pipeline.bench.workload import Workload, collector, collector_of
from ava_pipeline.collect.norms import NormPlan

STEP_OF_TOTAL_NORM = Target(1.0)
STEP_OF_READING = Target(2.0)
PASS_OF_READING_ON_DEVICE = Target(2.0)
CLIPPING = Target(1.03)
_JUDGED_MODEL = "resnet50"
# So high that every clip multiplies by 1: gradients stay as they are, and each round reads and writes the same.
_MAX_NORM = 1e9


def measure_gradients(setting: Setting) -> list[Result]:
    """Collect and clip the same gradients again and again."""
    workload = Workload(setting.options)
    loss = workload.backward()
    with (
        collector(workload, workload.optimizer(), setting.folder / "step", 1) as telemetry,
        collector(workload, workload.optimizer(), setting.folder / "clip", 1) as clipping,
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
        rounds = setting.track(2 * setting.options.steps, "passes over the gradients")
        return _figures(interleaved(works, rounds, workload.clock), setting, workload.device)


def references(workload: Workload) -> dict[str, Work]:
    """What the collected step is held against, on the gradients of the latest backward pass."""
    gradients = workload.gradients()
    plan = NormPlan.of(gradients)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    return {
        "read": flat.sum,
        "total_norm": lambda: nn.utils.get_total_norm(gradients),
        "pass": lambda: plan.measure(gradients),
    }


def _figures(times_s: dict[str, Samples], setting: Setting, device: torch.device) -> list[Result]:
    raw = {f"{name}_s": float(np.median(of_it)) for name, of_it in times_s.items()}
    is_cpu = device.type == "cpu"
    is_judged = is_cpu and setting.options.model == _JUDGED_MODEL
    ratios = (
        ("step", "total_norm", "collected step() over get_total_norm", STEP_OF_TOTAL_NORM if is_judged else None),
        ("step", "read", "collected step() over reading the gradients once", STEP_OF_READING if is_judged else None),
        ("pass", "read", "the pass over reading once", None if is_cpu else PASS_OF_READING_ON_DEVICE),
        ("pass", "total_norm", "the pass over get_total_norm", None),
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
            title="collected step() minus the pass, on these gradients",
            unit="µs",
            estimate=rest,
            raw=raw,
        ),
    ]


REST_US = Target(200.0)
_ROUNDS_PER_STEP = 5


def measure_rest(setting: Setting) -> list[Result]:
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
        Result(
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


OF_EMPTY_CALL = Target(5.0)
NUM_CALLS = 10_000
_NEVER = 10**12


class Empty:
    """What calling a method costs by itself."""

    def step(self, epoch: int) -> None:
        """Do nothing."""


def works_not_collected(workload: Workload, folder: Path) -> dict[str, Work]:
    """Many calls of a collector that has nothing to collect, and as many of a method that does nothing."""
    telemetry, empty = collector(workload, workload.optimizer(), folder, _NEVER), Empty()

    def call_step() -> None:
        for _ in range(NUM_CALLS):
            telemetry.step(0)

    def call_empty() -> None:
        for _ in range(NUM_CALLS):
            empty.step(0)

    return {"step": call_step, "empty": call_empty}


def measure_hand_off(setting: Setting) -> list[Result]:
    """Call both in turn."""
    works = works_not_collected(Workload(setting.options), setting.folder / "never")
    times_s = interleaved(works, setting.track(setting.options.steps, "steps not collected"))
    return [
        Result(
            name="step_of_empty_call",
            title="step() not collected over an empty method call",
            unit=TIMES,
            estimate=ratio(times_s["step"], times_s["empty"]),
            target=OF_EMPTY_CALL,
            raw={f"{name}_call_s": float(np.median(of_it)) / NUM_CALLS for name, of_it in times_s.items()},
        )
    ]
