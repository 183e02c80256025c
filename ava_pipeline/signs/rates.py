"""Learning rates that are odd, and clipping that shortens nearly every step."""

from collections.abc import Iterator

import numpy as np

from ava_pipeline.contract.finding import Finding
from ava_pipeline.signs.evidence import Evidence, RowRange, ranges_where
from ava_pipeline.signs.thresholds import Thresholds

RATE_ZERO, RATE_JUMP, RATE_ORDER = "learning-rate-zero", "learning-rate-jump", "learning-rate-order"
_SCHEDULE = "Look at the schedule: its length in steps or epochs, its warm-up, and where it is stepped."
_GROUPS = "Look at the optimizer's groups: which parameters stand in which, and with which rate."


def rates(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """A group at 0, a rate that leaps up, a head that is not above its backbone."""
    for column in run.rates.names:
        rates = run.rates.values(column)
        held = _holders(run, column)
        # Such a rate moves nothing, whatever it is; one that no known group is moved by may move others.
        if held and all(map(run.is_frozen, held)):
            continue
        what = f" ({', '.join(held)})" if held else ""
        for stretch in ranges_where(rates == 0.0, least=limits.least_rows):
            yield stretch.finding(
                run.rates,
                sign=RATE_ZERO,
                column=column,
                value=0.0,
                message=f"{column} is 0{what} over {stretch.length} collected steps: nothing changes.",
                advice=_GROUPS,
            )
        yield from _jumps(run, column, limits)
    if limits.head_rate_above:
        yield from _order(run, limits)


def _jumps(run: Evidence, column: str, limits: Thresholds) -> Iterator[Finding]:
    """A restart goes back to a rate that was there before; a jump goes beyond all of them."""
    rates = run.rates.values(column)
    highest = np.fmax(np.fmax.accumulate(rates), run.highest_rates.get(column, 0.0))
    before, after = rates[:-1], rates[1:]
    is_jump = (before > 0) & (after > limits.rate_jump * before) & (after > limits.rate_jump * highest[:-1])
    for index in np.flatnonzero(is_jump):
        yield RowRange(int(index) + 1, int(index) + 1).finding(
            run.rates,
            sign=RATE_JUMP,
            column=column,
            value=float(after[index] / before[index]),
            message=f"{column} leapt from {before[index]:.3g} to {after[index]:.3g}.",
            advice=_SCHEDULE,
        )


def _order(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    heads, backbones = (_rates_of(run, role) for role in ("head", "backbone_last"))
    for head in heads:
        for backbone in backbones:
            is_wrong = run.rates.values(head) <= run.rates.values(backbone)
            for stretch in ranges_where(is_wrong, least=limits.least_rows):
                of_head, of_backbone = (
                    float(np.median(run.rates.values(one)[stretch.rows])) for one in (head, backbone)
                )
                value = of_head / of_backbone if of_backbone else 0.0
                yield stretch.finding(
                    run.rates,
                    sign=RATE_ORDER,
                    column=head,
                    value=value,
                    message=f"{head}, the head's, is {value:.3g} times {backbone}, the backbone's, and is meant to be "
                    "above it.",
                    advice=_GROUPS,
                )


def _rates_of(run: Evidence, role: str) -> list[str]:
    groups = [group for name, group in run.groups.items() if group.role == role and not run.is_frozen(name)]
    return [rate for group in groups for rate in group.learning_rates if rate in run.rates.names]


def _holders(run: Evidence, column: str) -> list[str]:
    """The groups that this rate moves, the smallest ones."""
    return [name for name, group in run.groups.items() if column in group.learning_rates and group.role != "overall"]


CLIPPING_OFTEN = "clipping-often"
_CLIP_RATE = "clip_rate"


def clipping(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The clip rate stays near 1, so that the bound and not the gradient decides how long a step is."""
    if _CLIP_RATE not in run.steps.names:
        return
    rates = run.steps.values(_CLIP_RATE)
    for stretch in ranges_where(rates >= limits.clip_share, least=2 * limits.least_rows, bridge=2):
        value = float(np.nanmean(rates[stretch.rows]))
        yield stretch.finding(
            run.steps,
            sign=CLIPPING_OFTEN,
            column=_CLIP_RATE,
            value=value,
            message=f"clipping shortened {value:.0%} of the steps over {stretch.length} collected steps.",
            advice="Raise max_norm to what is usual for the overall norm, or lower the learning rate instead.",
        )
