"""The commit of the running code, read from git so that other processes cannot delay it."""

import os
import subprocess
from pathlib import Path

import pytest

from ava_pipeline.provenance import ask_git, versions

GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]


def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    """As git reports it."""
    subprocess.run([*GIT, "init", "-q", str(tmp_path)], check=True)  # fixed words and a folder
    assert ask_git(tmp_path, "rev-parse", "HEAD") is None
    subprocess.run([*GIT, "-C", str(tmp_path), "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    answer = ask_git(tmp_path, "rev-parse", "HEAD")
    assert answer is not None
    assert len(answer) == 40


def test_no_checkout_no_git_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case is unknown rather than an error."""
    assert ask_git(tmp_path, "rev-parse", "HEAD") is None
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nexec sleep 1000\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert ask_git(tmp_path, "rev-parse", "HEAD", timeout_s=0.01) is None
    monkeypatch.setenv("PATH", "")
    assert ask_git(tmp_path, "rev-parse", "HEAD") is None


def test_a_child_forked_meanwhile_does_not_hold_the_answer_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child keeps the pipe open as long as it lives."""
    pipe, held = os.pipe, []

    def inherited() -> tuple[int, int]:
        reading, writing = pipe()
        held.append(os.dup(writing))
        return reading, writing

    monkeypatch.setattr(os, "pipe", inherited)
    answer = ask_git(Path(__file__).parent, "--version")
    assert answer is not None
    assert answer.startswith("git version")
    assert ask_git(Path(__file__).parent, "no-such-command") is None
    assert len(held) == 2
    for descriptor in held:
        os.close(descriptor)


def test_versions_name_what_is_installed() -> None:
    """Packages that are not installed are left out."""
    assert set(versions(["torch", "no-such-distribution"])) == {"python", "torch"}
