"""The table of found, missed and false."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.diagnosis.judged import Judged

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def table(found: Sequence[Judged]) -> str:
    """In Markdown: by kind, for the half that thresholds were chosen on and for the half held out; then by sign."""
    halves = [[one for one in found if one.is_held_out is held_out] for held_out in (False, True)]
    lines = ["| training | tuned on: right | held out: right | said of the held-out ones |", "|---|---:|---:|---|"]
    for kind in dict.fromkeys(one.kind for one in found):
        said = sorted({sign for one in halves[1] if one.kind == kind for sign in one.signs})
        lines.append(f"| {kind} | {_right(halves[0], kind)} | {_right(halves[1], kind)} | {', '.join(said) or '-'} |")
    lines += ["", "| | tuned on | held out |", "|---|---:|---:|"]
    lines.append(f"| faults found | {_share(halves[0], is_well=False)} | {_share(halves[1], is_well=False)} |")
    lines.append(f"| healthy runs warned of | {_warned(halves[0])} | {_warned(halves[1])} |")
    lines.append(f"| healthy runs warned of on line | {_warned_on_line(halves[0])} | {_warned_on_line(halves[1])} |")
    return "\n".join(lines)


def into_docs(path: Path, found: Sequence[Judged]) -> None:
    """Put the table between the marks of a document."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{after}", encoding="utf-8")


def _right(found: Sequence[Judged], kind: str) -> str:
    of_kind = [one for one in found if one.kind == kind]
    return f"{sum(one.is_found for one in of_kind)} of {len(of_kind)}"


def _share(found: Sequence[Judged], *, is_well: bool) -> str:
    some = [one for one in found if one.is_well is is_well]
    return _percent(sum(one.is_found for one in some), len(some))


def _warned(found: Sequence[Judged]) -> str:
    well = [one for one in found if one.is_well]
    return _percent(sum(bool(one.signs) for one in well), len(well))


def _warned_on_line(found: Sequence[Judged]) -> str:
    well = [one for one in found if one.is_well]
    return _percent(sum(bool(one.on_line) for one in well), len(well))


def _percent(num: int, of: int) -> str:
    return f"{num} of {of} ({num / of:.0%})" if of else "-"
