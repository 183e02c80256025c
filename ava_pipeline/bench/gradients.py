"""The pass over the gradients, beside reading them once and beside torch's own norms and clipping."""

import numpy as np
import torch
from torch import nn

from ava_pipeline.bench.figures import TIMES, Figure, Target
from ava_pipeline.bench.options import Setting
from ava_pipeline.bench.statistics import median, ratio
from ava_pipeline.bench.timing import Samples, Work, interleaved
from ava_pipeline.bench.workload import Workload, collector
from ava_pipeline.collect.norms import NormPlan

STEP_OF_TOTAL_NORM = Target(1.0)
STEP_OF_READING = Target(2.0)
PASS_OF_READING_ON_DEVICE = Target(2.0)
CLIPPING = Target(1.03)
_JUDGED_MODEL = "resnet50"
# So high that every clip multiplies by 1: gradients stay as they are, and each round reads and writes the same.
_MAX_NORM = 1e9


def measure_gradients(setting: Setting) -> list[Figure]:
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


def _figures(times_s: dict[str, Samples], setting: Setting, device: torch.device) -> list[Figure]:
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
            Figure(
                name=f"{above}_of_{below}",
                title=title,
                unit=TIMES,
                estimate=ratio(times_s[above], times_s[below]),
                target=target,
                raw=raw,
            )
            for above, below, title, target in ratios
        ),
        Figure(
            name="step_minus_pass",
            title="collected step() minus the pass, on these gradients",
            unit="µs",
            estimate=rest,
            raw=raw,
        ),
    ]
