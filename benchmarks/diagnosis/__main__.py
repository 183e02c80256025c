"""python -m benchmarks.diagnosis: train the labelled set, diagnose it, and write the table into docs/diagnosis.md."""

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.diagnosis.labelled import labelled, run
from benchmarks.diagnosis.settings import NUM_STEPS
from benchmarks.diagnosis.table import into_docs, table


def main() -> None:
    """Run all trainings, or one half, or one kind of fault."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnosis", description=__doc__)
    parser.add_argument("--half", choices=["tuning", "held-out", "both"], default="both")
    parser.add_argument("--kind", help="only kinds whose name contains this text")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write every training with the signs that were found")
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder, and skip those that exist already")
    parser.add_argument("--docs", type=Path, help="write the table into this file, between its markers")
    options = parser.parse_args()
    halves = {"tuning": {0}, "held-out": {1}, "both": {0, 1}}[options.half]
    trainings = [(one, seed) for one, seed in labelled() if seed % 2 in halves and (options.kind or "") in one.name]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = run(trainings, options.keep or Path(folder), num_steps=NUM_STEPS, num_processes=options.processes)
    print(f"{len(found)} trainings in {time.monotonic() - begin:.0f} s\n")
    print(table(found))
    for one in found:
        if not one.is_found:
            print(f"missed or false: {one.kind}, seed {one.seed}: {', '.join(one.signs) or 'nothing found'}")
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1), encoding="utf-8")
    if options.docs:
        into_docs(options.docs, found)


if __name__ == "__main__":
    main()
