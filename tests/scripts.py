"""Scripts in a process of their own, with a hard deadline: one that hangs says where, in every thread, and ends."""

import os
import subprocess
import sys
from pathlib import Path

DEADLINE_S = 150
ROOT = Path(__file__).parents[1]

# An alarm, and not faulthandler's own timer: that one's thread is missing in a forked child, whose end waits for it.
DEADLINE = """
import faulthandler, signal
faulthandler.register(signal.SIGALRM, chain=True)
signal.alarm({deadline_s})
"""


def with_deadline(script: str, deadline_s: int = DEADLINE_S) -> str:
    """The script, ending with every thread's stack on stderr where it takes longer."""
    return DEADLINE.format(deadline_s=deadline_s) + script


def run_script(
    script: str, *arguments: object, deadline_s: int = DEADLINE_S, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end.

    Args:
        script: Python.
        *arguments: from `sys.argv[1]` on.
        deadline_s: when it is ended with all stacks dumped.
        code: the exit status expected; that of a signal is negative.
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
