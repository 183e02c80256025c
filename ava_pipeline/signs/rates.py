"""Learning rates that are 0, jump or are the wrong way round."""

from collections.abc import Iterator

import numpy as np

from ava_pipeline.contract.arrays import Floats
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.manifest import Role
from ava_pipeline.signs.evidence import Evidence, LastingState, RowRange
from ava_pipeline.signs.thresholds import Thresholds

_SCHEDULE_ADVICE = "Check the schedule: its length in steps or epochs, its warm-up, and where it is stepped."
_GROUPS_ADVICE = "Check the optimizer's parameter groups: which parameters each holds, and its learning rate."

_RATE_ZERO = LastingState(
    sign="learning-rate-zero",
    message="{column} is 0{of_groups} over {num_rows} collected steps: its parameters do not change.",
    advice=_GROUPS_ADVICE,
    bridge=0,
)


def rates(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """A rate is 0, jumps, or is not higher for the head than for the backbone though it should be."""
    for column, values in run.rates.values.items():
        groups = [name for name, group in run.groups.items() if column in group.learning_rates]
        groups = [name for name in groups if run.groups[name].role != "overall"]
        # The rate of frozen groups changes nothing; one that no known group has may belong to other parameters.
        if groups and run.frozen.issuperset(groups):
            continue
        of_groups = f" ({', '.join(groups)})" if groups else ""
        yield from _RATE_ZERO.findings(
            run.rates, column, values == 0.0, values, least_rows=limits.least_rows, of_groups=of_groups
        )
        yield from _jumps(run, column, values, limits)
    if limits.head_rate_above:
        yield from _order(run, limits)


def _jumps(run: Evidence, column: str, values: Floats, limits: Thresholds) -> Iterator[Finding]:
    """A warm restart returns to an earlier rate; a jump goes beyond all of them."""
    highest = np.fmax(np.fmax.accumulate(values), run.highest_rates.get(column, 0.0))
    before, after = values[:-1], values[1:]
    is_jump = (before > 0) & (after > limits.rate_jump * before) & (after > limits.rate_jump * highest[:-1])
    for index in np.flatnonzero(is_jump):
        yield RowRange(int(index) + 1, int(index) + 1).finding(
            run.rates,
            sign="learning-rate-jump",
            column=column,
            value=float(after[index] / before[index]),
            message=f"{column} jumped from {before[index]:.3g} to {after[index]:.3g}.",
            advice=_SCHEDULE_ADVICE,
        )


def _ratio_of_medians(values: Floats) -> float:
    """Of a head's rate and a backbone's, float64 [2, rows]; 0 if the backbone's median is 0."""
    head, backbone = np.median(values, axis=1)
    return float(head / backbone) if backbone else 0.0


_RATE_ORDER = LastingState(
    sign="learning-rate-order",
    message="{column}, the head's rate, is {value:.3g} times {backbone}, the backbone's; expected it to be higher.",
    advice=_GROUPS_ADVICE,
    bridge=0,
    average=_ratio_of_medians,
)


def _order(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    for head in _rates_of(run, "head"):
        for backbone in _rates_of(run, "backbone_last"):
            both = np.stack((run.rates.values[head], run.rates.values[backbone]))
            yield from _RATE_ORDER.findings(
                run.rates, head, both[0] <= both[1], both, least_rows=limits.least_rows, backbone=backbone
            )


def _rates_of(run: Evidence, role: Role) -> list[str]:
    groups = [group for name, group in run.groups.items() if group.role == role and name not in run.frozen]
    return [rate for group in groups for rate in group.learning_rates if rate in run.rates.values]
