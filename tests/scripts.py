"""Run scripts in a process of their own with a hard deadline: one that hangs prints all stacks and ends."""

import os
import subprocess
import sys
from pathlib import Path

DEADLINE_S = 150
ROOT = Path(__file__).parents[1]

# An alarm instead of faulthandler's timer: in a forked child the timer's thread is missing, and its end waits for it.
DEADLINE = """
import faulthandler, signal
faulthandler.register(signal.SIGALRM, chain=True)
signal.alarm({deadline_s})
"""


def with_deadline(script: str, deadline_s: int = DEADLINE_S) -> str:
    """The script with a deadline, at which it prints the stack of every thread on stderr and ends."""
    return DEADLINE.format(deadline_s=deadline_s) + script


def run_script(
    script: str, *arguments: object, deadline_s: int = DEADLINE_S, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end.

    Args:
        script: Python.
        *arguments: `sys.argv[1:]` of the script.
        deadline_s: after which it prints all stacks and ends.
        code: the expected exit status; negative for a signal.
    """
    done = subprocess.run(
        [sys.executable, "-c", with_deadline(script, deadline_s), *map(str, arguments)],
        check=False,
        timeout=deadline_s + 10,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == code, done.stderr
    return done
