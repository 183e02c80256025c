"""One column of two runs, row by row: from which batch on it differs, bit for bit and beyond noise."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ava_pipeline.compare.noise import WINDOW, first_departure
from ava_pipeline.compare.values import FINITE, NULL, Pair, kinds_of
from ava_pipeline.contract.arrays import Bools, Floats, Integers, bools, null_mask, numpy_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXACT_ROUNDING = 1e-9  # relative: other arithmetic for the same schedule of rates
_EXACT_ROUNDING_OF_LARGEST = 1e-15  # of the column's largest number: rates that end at 0

State = Literal[
    "equal", "within noise", "beyond noise", "too few rows to tell", "measured in one run alone", "not measured"
]


@dataclass(frozen=True, slots=True)
class Unequal:
    """The first shared batch at which two values are not equal bit for bit."""

    batch_idx: int
    values: Pair


@dataclass(frozen=True, slots=True)
class BeyondNoise:
    """From where on two runs differ by more than each of them scatters.

    Attributes:
        batch_idx: the first batch.
        values: of an exact column, and where only one value is a finite number, the values of this batch; else the
            medians of the window of rows in which this batch is.
        scatter: of the run that scatters more, in the column's unit; None if single values decide.
        is_at_end: whether they still differ so in their last shared rows.
    """

    batch_idx: int
    values: Pair
    scatter: float | None
    is_at_end: bool

    @property
    def times_scatter(self) -> float | None:
        """The distance of the medians, as a multiple of the scatter; None without a scatter above 0."""
        if not self.scatter or not isinstance(self.values.a, float) or not isinstance(self.values.b, float):
            return None
        return abs(self.values.a - self.values.b) / self.scatter


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnComparison:
    """One column in the batches that both runs recorded.

    Attributes:
        name: the column.
        is_exact: whether single values are compared, up to rounding, because the column does not scatter: learning
            rates, loss scales, integers, texts.
        num_rows: the shared batches.
        num_unequal: of them, those whose values are not equal bit for bit.
        num_measured: those in which at least one run measured a value.
        num_only_a: those in which only run A did.
        num_only_b: those in which only run B did.
        first_unequal: the first batch of `num_unequal`.
        beyond_noise: from where on the runs differ beyond noise; None if nowhere, or if it cannot be told.
        is_judged: whether there were enough rows to tell.
        last: the values of the last shared batch.
    """

    name: str
    is_exact: bool
    num_rows: int
    num_unequal: int
    num_measured: int
    num_only_a: int
    num_only_b: int
    first_unequal: Unequal | None
    beyond_noise: BeyondNoise | None
    is_judged: bool
    last: Pair | None

    @property
    def state(self) -> State:
        """The answer in short."""
        if self.beyond_noise is not None:
            return "beyond noise"
        if not self.num_unequal:
            return "equal" if self.num_measured else "not measured"
        if self.num_only_a + self.num_only_b == self.num_measured:
            return "measured in one run alone"
        return "within noise" if self.is_judged else "too few rows to tell"


class Side(NamedTuple):
    """A column of one run in the shared batches: numbers [rows], or codes of texts, and the kind of each."""

    column: "pa.ChunkedArray[Any]"
    numbers: "NDArray[Any]"
    kinds: "NDArray[np.int8]"

    def value(self, row: int) -> Any:
        """The value of one row, None for null."""
        return self.column[row].as_py()


def compare_column(name: str, batches: Integers, a: Any, b: Any, *, is_exact: bool) -> ColumnComparison:
    """Compare a column [rows] of two runs in the shared `batches` [rows].

    Args:
        name: the column.
        batches: the shared batches, in order.
        a: the Arrow column of run A in these batches: numbers, booleans or texts.
        b: that of run B.
        is_exact: compare single values, up to rounding; columns that are not floats are always exact.
    """
    is_exact = is_exact or not (pa.types.is_floating(a.type) and pa.types.is_floating(b.type))
    one, other = _sides(a, b)
    is_unequal = unequal(one, other)
    is_null_a, is_null_b = one.kinds == NULL, other.kinds == NULL
    beyond = _beyond_noise(batches, one, other, is_exact=is_exact)
    num_comparable = int(np.sum((one.kinds == FINITE) & (other.kinds == FINITE)))
    return ColumnComparison(
        name=name,
        is_exact=is_exact,
        num_rows=len(batches),
        num_unequal=int(np.sum(is_unequal)),
        num_measured=int(np.sum(~(is_null_a & is_null_b))),
        num_only_a=int(np.sum(~is_null_a & is_null_b)),
        num_only_b=int(np.sum(is_null_a & ~is_null_b)),
        first_unequal=_first_unequal(batches, one, other, is_unequal),
        beyond_noise=beyond,
        is_judged=num_comparable >= (1 if is_exact else WINDOW),
        last=Pair(one.value(-1), other.value(-1)) if len(batches) else None,
    )


def _sides(a: Any, b: Any) -> tuple[Side, Side]:
    if all(pa.types.is_floating(one.type) or pa.types.is_integer(one.type) for one in (a, b)):
        is_float = pa.types.is_floating(a.type) or pa.types.is_floating(b.type)
        dtype: Any = pa.float64() if is_float else pa.int64()
        return side_of(a.cast(dtype, safe=False)), side_of(b.cast(dtype, safe=False))
    if pa.types.is_boolean(a.type) and pa.types.is_boolean(b.type):
        return _of_codes(a, bools(a).astype(np.int64)), _of_codes(b, bools(b).astype(np.int64))
    texts = [one.cast(pa.string()) for one in (a, b)]
    is_same = numpy_values(pc.equal(*texts).cast(pa.uint8())) != 0
    zeros: Integers = np.zeros(len(a), np.int64)
    return _of_codes(texts[0], zeros), _of_codes(texts[1], np.where(is_same, 0, 1))


def side_of(column: Any) -> Side:
    """A column of numbers of one run, as float64 or int64, which hold each of them exactly."""
    numbers = numpy_values(column.cast(pa.float64() if pa.types.is_floating(column.type) else pa.int64()))
    return Side(column, numbers, kinds_of(numbers, null_mask(column)))


def _of_codes(column: Any, codes: Integers) -> Side:
    return Side(column, codes, kinds_of(codes, null_mask(column)))


def unequal(a: Side, b: Side) -> Bools:
    """Where values [rows] are not equal bit for bit. Null equals null alone, and nan equals nan alone."""
    one, other = (side.numbers.view(np.int64) for side in (a, b))
    both_finite = (a.kinds == FINITE) & (b.kinds == FINITE)
    return np.asarray((a.kinds != b.kinds) | (both_finite & (one != other)), dtype=np.bool_)


def _first_unequal(batches: Integers, a: Side, b: Side, is_unequal: Bools) -> Unequal | None:
    if not is_unequal.any():
        return None
    row = int(np.argmax(is_unequal))
    return Unequal(int(batches[row]), Pair(a.value(row), b.value(row)))


def _beyond_noise(batches: Integers, a: Side, b: Side, *, is_exact: bool) -> BeyondNoise | None:
    """The earlier of: one run has a finite number and the other nan or inf; finite numbers differ beyond noise."""
    both_measured = (a.kinds != NULL) & (b.kinds != NULL)
    is_other_kind = both_measured & (a.kinds != b.kinds)
    rows = np.flatnonzero((a.kinds == FINITE) & (b.kinds == FINITE))
    if is_exact:
        is_other_kind[rows] = _differ_beyond_rounding(a.numbers[rows], b.numbers[rows])
    single = None
    if is_other_kind.any():
        row = int(np.argmax(is_other_kind))
        last_measured = int(np.flatnonzero(both_measured)[-1])
        pair = Pair(a.value(row), b.value(row))
        single = BeyondNoise(int(batches[row]), pair, None, is_at_end=bool(is_other_kind[last_measured]))
    if is_exact:
        return single
    departure = first_departure(a.numbers[rows], b.numbers[rows])
    if departure is None:
        return single
    batch = int(batches[rows[departure.position]])
    if single is not None and single.batch_idx <= batch:
        return single
    return BeyondNoise(batch, Pair(departure.level_a, departure.level_b), departure.scatter, departure.is_at_end)


def _differ_beyond_rounding(a: "NDArray[Any]", b: "NDArray[Any]") -> Bools:
    if a.dtype.kind != "f":
        return np.asarray(a != b, dtype=np.bool_)
    largest: Floats = np.maximum(np.abs(a), np.abs(b))
    limit = EXACT_ROUNDING * largest + _EXACT_ROUNDING_OF_LARGEST * np.max(largest, initial=0.0)
    with np.errstate(over="ignore"):
        return np.asarray(np.abs(a - b) > limit, dtype=np.bool_)
