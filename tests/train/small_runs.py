"""Training runs of a few seconds, and ways to end them at an exact batch."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console

from ava_pipeline.config.load import load_config
from ava_pipeline.config.models import RunConfig
from ava_pipeline.train.batch_step import BatchStep
from ava_pipeline.train.display import Display, Outcome
from ava_pipeline.train.job import train

# Five training batches of four images and two optimizer steps of three and two batches an epoch.
SMALL = """
output_dir: {folder}/run
data:
  labels: {folder}/data/AVA.txt
  images: {folder}/data/images
  split: {{train: 0.75, val: 0.25}}
  image_size: 32
  num_workers: 0
  sample: {{num_images: 28, seed: 1, image_size: 32}}
model: {{backbone: resnet18, weights: none, hidden_sizes: [8], dropout: 0.5}}
optim: {{name: sgd, base_lr: 1e-2, warmup_batches: 4}}
train: {{epochs: 2, batch_size: 4, accumulate: 3, clip_norm: 1.0}}
device: cpu
telemetry: {{collect_every_n: 1}}
"""
BATCHES_PER_EPOCH = 5


def config_file(folder: Path) -> Path:
    """Write the config of the small run."""
    path = folder / "small.yaml"
    path.write_text(SMALL.format(folder=folder))
    return path


def small_config(folder: Path, *overrides: str) -> RunConfig:
    """The config of the small run, with overrides."""
    return load_config(config_file(folder), overrides)


def run(folder: Path, *overrides: str, resume: bool = False, restart: bool = False) -> Outcome:
    """Train in this process, without output, on one thread: images this small gain nothing from more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(small_config(folder, *overrides), Display(Console(quiet=True)), resume=resume, restart=restart)
    finally:
        torch.set_num_threads(before)


def at_batch(monkeypatch: pytest.MonkeyPatch, batch: int, act: Callable[[], object]) -> None:
    """Call `act` in the middle of the process's n-th training batch, counted from 1."""
    observe, count = BatchStep.observe, [0]

    def counting(step: BatchStep, loss: torch.Tensor, **options: Any) -> None:
        observe(step, loss, **options)
        count[0] += 1
        if count[0] == batch:
            act()

    monkeypatch.setattr(BatchStep, "observe", counting)


def send_signal(signum: int) -> Callable[[], None]:
    """A function that sends this process a signal, as a scheduler or a terminal does."""
    return lambda: os.kill(os.getpid(), signum)


def command(
    folder: Path, *options: str, signum: int | None = None, batch: int = 0, times: int = 1
) -> subprocess.CompletedProcess[str]:
    """Train from the command line in another process, which can send itself a signal in its n-th batch."""
    script = (
        "import os, sys, torch\n"
        "torch.set_num_threads(1)\n"
        "from ava_pipeline.train.batch_step import BatchStep\n"
        "from ava_pipeline.cli import main\n"
        "observe, count = BatchStep.observe, [0]\n"
        "def counting(step, loss, **options):\n"
        "    observe(step, loss, **options)\n"
        "    count[0] += 1\n"
        f"    if count[0] == {batch}:\n"
        f"        for _ in range({times}): os.kill(os.getpid(), {signum})\n"
        "BatchStep.observe = counting\n"
        "main()\n"
    )
    arguments = ["train", str(config_file(folder)), *options]
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)


def differing_files(one: Path, other: Path) -> Sequence[str]:
    """The files in which two run directories differ, apart from times; empty if the runs are the same."""
    differences = [
        name for name in ("metrics.csv", "split.csv") if (one / name).read_bytes() != (other / name).read_bytes()
    ]
    for path in sorted((one / "telemetry").glob("*.csv")) + sorted((one / "predictions").glob("*.parquet")):
        name = path.relative_to(one)
        if path.name != "events.csv" and not _frame(path).equals(_frame(other / name)):
            differences.append(str(name))
    states = [torch.load(run / "checkpoints/last.pt", weights_only=True) for run in (one, other)]
    return [*differences, *_differing(*states)]


def _frame(path: Path) -> pd.DataFrame:
    frame = pd.read_csv(path, dtype=str) if path.suffix == ".csv" else pd.read_parquet(path)
    return frame.drop(columns="time_utc", errors="ignore")


def _differing(one: Any, other: Any, place: str = "checkpoint") -> list[str]:
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [place]
    if isinstance(one, dict):
        keys = [] if one.keys() == other.keys() else [f"{place} keys"]
        return keys + [found for key in one for found in _differing(one[key], other[key], f"{place}.{key}")]
    return [] if repr(one) == repr(other) else [place]
