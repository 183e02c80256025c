"""Ours and its peers on the same gradients, one behind the other.

Each is prepared, measured and closed before the next: what one of them does in the background, wandb's service process
say, costs it and not whoever comes next.
"""

from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from ava_pipeline.bench.figures import TIMES, Figure, Target
from ava_pipeline.bench.options import Setting
from ava_pipeline.bench.peers import PEERS, Ours, Peer, Trained
from ava_pipeline.bench.statistics import Estimate, median, ratio
from ava_pipeline.bench.timing import Clock, Samples, interleaved
from ava_pipeline.bench.workload import Workload
from ava_pipeline.collect.groups import find_groups
from ava_pipeline.collect.watched import named_parameters

TIMES_CHEAPER = Target(1.5, at_least=True)
_STEPS_PER_PEER = 2  # of those asked for: some of them take long


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One way of recording, measured or not.

    Attributes:
        title: for people.
        has_same_columns: whether it records what we do.
        missing: why it was not measured.
        record_ms: how long it holds the training thread up a recorded step.
        times_ours: over ours.
    """

    title: str
    has_same_columns: bool
    missing: str | None = None
    record_ms: Estimate | None = None
    times_ours: Estimate | None = None

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        estimates = {"record_ms": self.record_ms, "times_ours": self.times_ours}
        return asdict(self) | {name: one and one._asdict() for name, one in estimates.items()}


def compare(setting: Setting, peers: tuple[type[Peer], ...] = PEERS) -> tuple[list[Compared], list[Figure]]:
    """Record the same gradients with each peer that is installed.

    Returns:
        Every peer, ours first, and how much cheaper ours is than the cheapest that records the same columns.
    """
    workload = Workload(setting.options)
    trained = _trained(workload)
    installed: list[type[Peer]] = [Ours, *(peer for peer in peers if peer.missing() is None)]
    times_s = {peer.title: _times_s(peer, trained, setting, workload.clock) for peer in installed}
    ours_s = times_s[Ours.title]
    everyone: tuple[type[Peer], ...] = (Ours, *peers)
    compared = [_compared(peer, times_s.get(peer.title), ours_s) for peer in everyone]
    return compared, _figures(compared)


def _trained(workload: Workload) -> Trained:
    loss = workload.backward()
    parameters = named_parameters(workload.model)
    groups = {
        column: [parameters[name] for name in group.parameters] for column, group in find_groups(workload.model).items()
    }
    return Trained(workload.model, workload.optimizer(), loss, groups)


def _times_s(kind: type[Peer], trained: Trained, setting: Setting, clock: Clock) -> Samples:
    peer, steps = kind(), count(1)
    folder = setting.folder / kind.__name__
    folder.mkdir()
    peer.prepare(trained, folder)
    try:
        rounds = setting.track(max(2, setting.options.steps // _STEPS_PER_PEER), kind.title)
        return interleaved({kind.title: lambda: peer.record(next(steps))}, rounds, clock)[kind.title]
    finally:
        peer.close()


def _compared(peer: type[Peer], times_s: Samples | None, ours_s: Samples) -> Compared:
    if times_s is None:
        return Compared(title=peer.title, has_same_columns=peer.has_same_columns, missing=peer.missing())
    return Compared(
        title=peer.title,
        has_same_columns=peer.has_same_columns,
        record_ms=median(times_s).times(1e3),
        # Each was measured in a time of its own, so no sample of one belongs to a sample of the other.
        times_ours=Estimate.exactly(1.0) if peer is Ours else ratio(times_s, ours_s, in_rounds=False),
    )


def _figures(compared: list[Compared]) -> list[Figure]:
    """Against the cheapest that records the same columns; nothing where none of them is installed."""
    rivals = [one for one in compared[1:] if one.has_same_columns]
    ratios = [one.times_ours for one in rivals if one.times_ours is not None]
    if not ratios:
        return []
    return [
        Figure(
            name="times_cheaper_than_peers",
            title="cheaper than the cheapest peer with the same columns",
            unit=TIMES,
            estimate=min(ratios),
            target=TIMES_CHEAPER,
        )
    ]
