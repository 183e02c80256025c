"""The columns that a followed run shows, by table: those of its files, and what is computed from them."""

import numpy as np

from ava_pipeline.contract.builtin_tables import HOLDOUT, WEIGHT_DELTAS, WEIGHT_NORMS
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.read.holdout import holdout_by_batch, holdout_columns
from ava_pipeline.signs.evidence import TableValues
from ava_pipeline.signs.weights import update_ratio_of
from ava_pipeline.watch.live_run import EVENTS_TABLE, METRICS_TABLE, Columns, LatestRows, LiveRun

_ROLES = ("backbone_last", "head")


def shown_columns(live_run: LiveRun) -> dict[str, Columns]:
    """By table, the columns in which something was measured.

    The update ratio of the backbone and the head takes the place of the tables of weights, and the means over the
    held-out samples that of their predictions.
    """
    shown = {name: latest.columns() for name, latest in live_run.tables.items() if name not in {EVENTS_TABLE, HOLDOUT}}
    norms, deltas = (live_run.tables.get(table.name) for table in (WEIGHT_NORMS, WEIGHT_DELTAS))
    if live_run.manifest is not None and norms is not None and deltas is not None:
        del shown[WEIGHT_NORMS.name]
        shown[WEIGHT_DELTAS.name] = _update_ratios(live_run.manifest, norms, deltas)
    if HOLDOUT in live_run.tables:
        shown[HOLDOUT] = _held_out(live_run.tables[HOLDOUT])
    measured = {
        table: {name: column for name, column in columns.items() if not column[1].all()}
        for table, columns in shown.items()
    }
    optional = {METRICS_TABLE, WEIGHT_DELTAS.name, HOLDOUT}  # most loops log no metrics
    return {table: columns for table, columns in measured.items() if columns or table not in optional}


def _update_ratios(manifest: Manifest, norms: LatestRows, deltas: LatestRows) -> Columns:
    """How far the backbone and the head moved since the row before, as a share of their norm."""
    if norms.rows is None or deltas.rows is None:
        return {}
    weights, moved = TableValues(norms.rows), TableValues(deltas.rows)
    of_role = [name for role in _ROLES for name, group in manifest.groups.items() if group.role == role]
    ratios = {name: update_ratio_of(weights, moved, name) for name in of_role or moved.values}
    return {name: (ratio.values, ratio.is_null) for name, ratio in ratios.items() if ratio is not None}


def _held_out(latest: LatestRows) -> Columns:
    if latest.rows is None:
        return {}
    wanted = holdout_columns(latest.rows.column_names)
    found = holdout_by_batch([latest.rows.select(wanted)]) if wanted else None
    if found is None:
        return {}
    return {name: (values, np.zeros(len(values), dtype=np.bool_)) for name, values in found.values.items()}
