"""Where do two runs part? Everything that both recorded, side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import pyarrow as pa

from ava_pipeline.compare.columns import ColumnComparison
from ava_pipeline.compare.holdout import HoldoutComparison, compare_holdout
from ava_pipeline.compare.layers import LAYER_COLUMNS, LayersComparison, compare_layers
from ava_pipeline.compare.rows import Matched
from ava_pipeline.compare.settings import Setting, recorded_settings, training_settings
from ava_pipeline.compare.tables import TableComparison, compare_table, in_order
from ava_pipeline.compare.values import plain
from ava_pipeline.compare.weights import WeightsComparison, compare_weights, match_snapshots
from ava_pipeline.contract.builtin_tables import HOLDOUT, PER_LAYER_STATS
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.errors import AvaPipelineError, in_words
from ava_pipeline.many_runs.summary import settings_of
from ava_pipeline.read.run import Run, open_run
from ava_pipeline.read.snapshots import read_snapshots

Verdict = Literal["equal", "within noise", "different", "too few rows to tell", "incomplete", "nothing to compare"]
_Found = TypeVar("_Found")
_UNREADABLE = (AvaPipelineError, OSError, pa.ArrowException)


class ColumnOf(NamedTuple):
    """A column with the name of its table."""

    table: str
    column: ColumnComparison

    @property
    def name(self) -> str:
        """`learning_rates.lr_group_0`."""
        return f"{self.table}.{self.column.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two runs, side by side.

    Attributes:
        run_a: the directory of run A.
        run_b: the directory of run B.
        settings: the settings that differ: those of the training first, then of the recording and the environment.
        has_settings_a: whether run A has a config.yaml or a `run_info` that says anything.
        has_settings_b: whether run B has.
        tables: the tables with one row per batch that both have, learning rates first.
        tables_only_a: tables that only run A has.
        tables_only_b: tables that only run B has.
        tables_left_out: long tables of both runs that are not compared, because nothing is known about their rows.
        holdout: the held-out samples; None unless both recorded them.
        layers: the statistics of each layer; None unless both recorded them.
        weights: the snapshots; None if neither run has one.
        problems: what could not be read or compared, and what is missing from it.
    """

    run_a: Path
    run_b: Path
    settings: tuple[Setting, ...]
    has_settings_a: bool
    has_settings_b: bool
    tables: tuple[TableComparison, ...]
    tables_only_a: tuple[str, ...]
    tables_only_b: tuple[str, ...]
    tables_left_out: tuple[str, ...]
    holdout: HoldoutComparison | None
    layers: LayersComparison | None
    weights: WeightsComparison | None
    problems: tuple[Finding, ...]

    def columns(self) -> list[ColumnOf]:
        """Every shared column, in the order of the tables."""
        return [ColumnOf(table.name, column) for table in self.tables for column in table.columns]

    def parted(self) -> list[ColumnOf]:
        """The columns that differ beyond noise, the earliest first; at one batch, learning rates come first."""
        found = [(one.column.beyond_noise.batch_idx, one) for one in self.columns() if one.column.beyond_noise]
        return [one for _, one in sorted(found, key=lambda pair: pair[0])]

    def first_unequal(self) -> ColumnOf | None:
        """The column that is the first not to be equal bit for bit."""
        found = [(one.column.first_unequal.batch_idx, one) for one in self.columns() if one.column.first_unequal]
        return min(found, key=lambda pair: pair[0], default=(0, None))[1]

    @property
    def parting_batch(self) -> int | None:
        """The first batch from which a column differs beyond noise; None if none does, or it cannot be told."""
        parted = self.parted()
        beyond = parted[0].column.beyond_noise if parted else None
        return beyond.batch_idx if beyond else None

    @property
    def num_batches(self) -> int:
        """The shared batches of the table that has most of them."""
        return max((table.num_batches for table in self.tables), default=0)

    @property
    def verdict(self) -> Verdict:
        """The answer in short. Settings do not count: runs with other settings may be equal.

        `equal`: every shared value is equal bit for bit. `within noise`: no column differs by more than both scatter.
        `incomplete`: no difference beyond noise was found, but a part could not be read.
        """
        states = {one.column.state for one in self.columns()}
        rest = (self._holdout_differs, self._layers_differ, self._weights_differ)
        is_unequal = bool(states & {"within noise", "too few rows to tell"})
        if not self.has_compared:
            return "nothing to compare"
        if states & {"beyond noise", "measured in one run alone"} or (any(rest) and not is_unequal):
            return "different"
        if self._has_other_layers:
            return "different"
        if self.has_errors:
            return "incomplete"
        if "too few rows to tell" in states:
            return "too few rows to tell"
        return "within noise" if is_unequal else "equal"

    @property
    def has_errors(self) -> bool:
        """Whether a part of the runs could not be read or compared."""
        return any(problem.severity == "error" for problem in self.problems)

    @property
    def has_compared(self) -> bool:
        """Whether there was a value in both runs to compare."""
        return bool(
            any(one.column.num_measured for one in self.columns())
            or (self.holdout and self.holdout.batches)
            or (self.layers and self.layers.layers)
            or (self.weights and self.weights.snapshots)
        )

    @property
    def _holdout_differs(self) -> bool:
        return self.holdout is not None and self.holdout.first_unequal is not None

    @property
    def _layers_differ(self) -> bool:
        return self.layers is not None and any(one.first_unequal is not None for one in self.layers.layers)

    @property
    def _weights_differ(self) -> bool:
        return self.weights is not None and self.weights.first_unequal is not None

    @property
    def _has_other_layers(self) -> bool:
        """Whether the models have other tensors."""
        layers, snapshots = self.layers, self.weights.snapshots if self.weights else ()
        is_other = layers is not None and bool(
            layers.layers and (layers.only_a or layers.only_b or any(one.num_params for one in layers.layers))
        )
        return is_other or any(one.only_a or one.only_b or one.other_shape for one in snapshots)

    def to_json(self) -> dict[str, Any]:
        """Everything, as `ava-pipeline compare --json` prints it.

        Null means "not measured" or "not known"; a number that is not finite is the text nan, inf or -inf.
        """
        from ava_pipeline.compare.answers import answers  # noqa: PLC0415  # it reads comparisons

        found = {name: value for name, value in plain(self).items() if not name.startswith("_")}
        problems = [problem.to_json() for problem in self.problems]
        return {"answers": answers(self), **found, "problems": problems}


class _Side(NamedTuple):
    """One of the two runs; its manifest is None if it has none that can be read."""

    label: str
    run: Run
    manifest: Manifest | None


class _Reader:
    """Reads what it can, and keeps what it cannot read as problems."""

    def __init__(self) -> None:
        self.problems: list[Finding] = []

    def attempt(self, label: str, read: Callable[[], _Found]) -> _Found | None:
        """What `read` returns, or None after it could not be read."""
        try:
            return read()
        except _UNREADABLE as error:
            self.add("unreadable", "error", f"{label}: {in_words(error)}" if label else in_words(error))
            return None

    def add(self, name: str, severity: Literal["info", "warning", "error"], message: str) -> None:
        """Keep a problem once."""
        problem = Finding(id=name, severity=severity, message=message)
        if problem not in self.problems:
            self.problems.append(problem)


def compare_runs(a: Run | str | PathLike[str], b: Run | str | PathLike[str]) -> Comparison:
    """Compare two runs: settings, tables, held-out samples and weights, matched by batch.

    A part that cannot be read is a problem of the comparison, and the others are compared.

    Args:
        a: an opened run, or its directory. It may be running, finished or killed.
        b: the other one.

    Raises:
        NotARunError: a directory is not a run.
        DamagedFileError: a name in a run directory leads out of it.

    Example:
        >>> found = compare_runs("outputs/ava/one", "outputs/ava/other")  # doctest: +SKIP
        >>> found.verdict, found.parting_batch  # doctest: +SKIP
        ('different', 120)
    """
    reader = _Reader()
    runs = [one if isinstance(one, Run) else open_run(one) for one in (a, b)]
    one, other = (
        _Side(label, run, reader.attempt(label, partial(getattr, run, "manifest")))
        for label, run in zip("AB", runs, strict=True)
    )
    shared, only_a, only_b = _names_of_tables(one, other)
    tables = _tables(reader, one, other, [name for name in shared if not _is_long(one, other, name)])
    known = (HOLDOUT, PER_LAYER_STATS.name)
    return Comparison(
        run_a=one.run.layout.root,
        run_b=other.run.layout.root,
        settings=_settings(reader, one, other),
        has_settings_a=bool(reader.attempt("A", partial(settings_of, one.run))),
        has_settings_b=bool(reader.attempt("B", partial(settings_of, other.run))),
        tables=tables,
        tables_only_a=only_a,
        tables_only_b=only_b,
        tables_left_out=tuple(name for name in shared if name not in known and _is_long(one, other, name)),
        holdout=_holdout(reader, one, other) if HOLDOUT in shared else None,
        layers=_layers(reader, one, other) if PER_LAYER_STATS.name in shared else None,
        weights=_weights(reader, one, other),
        problems=tuple(reader.problems),
    )


def _names_of_tables(a: _Side, b: _Side) -> tuple[list[str], tuple[str, ...], tuple[str, ...]]:
    """Those of both in their order, those of A alone and those of B alone."""
    if a.manifest is None or b.manifest is None:
        return [], (), ()
    of_a, of_b = set(a.manifest.tables), set(b.manifest.tables)
    return in_order(of_a & of_b), tuple(sorted(of_a - of_b)), tuple(sorted(of_b - of_a))


def _is_long(a: _Side, b: _Side, name: str) -> bool:
    return any(side.manifest is not None and side.manifest.tables[name].declaration.table.is_long for side in (a, b))


def _settings(reader: _Reader, a: _Side, b: _Side) -> tuple[Setting, ...]:
    found = reader.attempt("", partial(training_settings, a.run, b.run)) or []
    if a.manifest is not None and b.manifest is not None:
        found += recorded_settings(a.manifest, b.manifest)
    return tuple(found)


def _read_both(
    reader: _Reader, a: _Side, b: _Side, name: str, columns: Sequence[str] | None = None
) -> tuple[pa.Table, pa.Table] | None:
    """A table of both runs; None if one cannot be read."""
    rows = [reader.attempt(side.label, partial(side.run.ordered, name, columns=columns)) for side in (a, b)]
    return None if rows[0] is None or rows[1] is None else (rows[0], rows[1])


def _tables(reader: _Reader, a: _Side, b: _Side, names: Sequence[str]) -> tuple[TableComparison, ...]:
    found: list[TableComparison] = []
    for name in names:
        rows = _read_both(reader, a, b, name)
        if rows is None:
            continue
        table, matched = compare_table(name, *rows, with_epoch=not found)
        _note_repeated(reader, name, matched)
        found.append(table)
    return tuple(found)


def _note_repeated(reader: _Reader, name: str, matched: Matched) -> None:
    for label, num in (("A", matched.num_twice_in_a), ("B", matched.num_twice_in_b)):
        if num:
            message = f"{label}: {num} rows of {name} repeat the batch of an earlier row and are left out."
            reader.add("repeated-rows", "error", f"{message} `ava-pipeline validate` lists them.")


def _holdout(reader: _Reader, a: _Side, b: _Side) -> HoldoutComparison | None:
    rows = _read_both(reader, a, b, HOLDOUT)
    if rows is None or a.manifest is None or b.manifest is None:
        return None
    declared = a.manifest.tables[HOLDOUT].declaration, b.manifest.tables[HOLDOUT].declaration
    return reader.attempt("", partial(compare_holdout, *rows, declared))


def _layers(reader: _Reader, a: _Side, b: _Side) -> LayersComparison | None:
    rows = _read_both(reader, a, b, PER_LAYER_STATS.name, LAYER_COLUMNS)
    return None if rows is None else compare_layers(*rows)


def _weights(reader: _Reader, a: _Side, b: _Side) -> WeightsComparison | None:
    of_a, of_b = (reader.attempt(side.label, partial(read_snapshots, side.run.layout)) or [] for side in (a, b))
    if not of_a and not of_b:
        return None
    pairs, only_a, only_b = match_snapshots(of_a, of_b)
    found = [reader.attempt("", partial(compare_weights, one.batch_idx, one.epoch, one, other)) for one, other in pairs]
    return WeightsComparison(snapshots=tuple(one for one in found if one is not None), only_a=only_a, only_b=only_b)
