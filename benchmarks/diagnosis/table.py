"""The table of faults found and missed, and of false warnings."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.diagnosis.faults import FAULTS
from benchmarks.diagnosis.judged import Judged

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def table(found: Sequence[Judged]) -> str:
    """Markdown tables: by kind of fault, for the tuning half and the held-out half, then by sign."""
    halves = [[one for one in found if one.is_held_out is held_out] for held_out in (False, True)]
    lines = ["| training | tuned on: right | held out: right | found in the held-out ones |", "|---|---:|---:|---|"]
    for kind in dict.fromkeys(one.kind for one in found):
        said = sorted({sign for one in halves[1] if one.kind == kind for sign in one.signs})
        lines.append(f"| {kind} | {_right(halves[0], kind)} | {_right(halves[1], kind)} | {', '.join(said) or '-'} |")
    lines += ["", "| | tuned on | held out |", "|---|---:|---:|"]
    for title, share in {
        "faults found": _found,
        "faults found while training": _found_while_training,
        "healthy runs warned of": _warned,
        "healthy runs warned of while training": _warned_while_training,
    }.items():
        lines.append(f"| {title} | {share(halves[0])} | {share(halves[1])} |")
    return "\n".join([*lines, "", *_by_rule(halves[1])])


def _by_rule(found: Sequence[Judged]) -> list[str]:
    """For the held-out half: how often each sign was found, by the label of the training.

    A fault that may show in several signs counts as missed only if none of them was found.
    """
    labels = {fault.name: fault.signs for fault in FAULTS}
    lines = ["| sign, held out | found | missed | false: found in a healthy run | found beside another fault |"]
    lines.append("|---|---:|---:|---:|---:|")
    for sign in sorted({sign for signs in labels.values() for sign in signs} | {s for one in found for s in one.signs}):
        runs = [one for one in found if sign in one.signs]
        num_found = sum(sign in labels.get(one.kind, ()) for one in runs)
        num_missed = sum(labels.get(one.kind) == (sign,) and sign not in one.signs for one in found)
        num_false = sum(one.is_well for one in runs)
        lines.append(f"| `{sign}` | {num_found} | {num_missed} | {num_false} | {len(runs) - num_found - num_false} |")
    return lines


def into_docs(path: Path, found: Sequence[Judged]) -> None:
    """Write the table between the markers of a document."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{after}", encoding="utf-8")


def _right(found: Sequence[Judged], kind: str) -> str:
    of_kind = [one for one in found if one.kind == kind]
    return f"{sum(one.is_found for one in of_kind)} of {len(of_kind)}"


def _found(runs: Sequence[Judged]) -> str:
    return _share([one.is_found for one in runs if not one.is_well])


def _found_while_training(runs: Sequence[Judged]) -> str:
    return _share([one.is_found_while_training for one in runs if not one.is_well])


def _warned(runs: Sequence[Judged]) -> str:
    return _share([bool(one.signs) for one in runs if one.is_well])


def _warned_while_training(runs: Sequence[Judged]) -> str:
    return _share([bool(one.while_training) for one in runs if one.is_well])


def _share(answers: Sequence[bool]) -> str:
    return f"{sum(answers)} of {len(answers)} ({sum(answers) / len(answers):.0%})" if answers else "-"
