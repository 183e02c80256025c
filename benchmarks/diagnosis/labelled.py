"""The labelled set of trainings, and how it is run."""

import logging
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.diagnosis.faults import FAULTS, HEALTHY, HEALTHY_HALF, HEALTHY_SEARCH, Fault
from benchmarks.diagnosis.judged import Judged, judge

ALL = (*FAULTS, HEALTHY, HEALTHY_HALF, HEALTHY_SEARCH)
SEEDS_A_FAULT = 4
SEEDS_HEALTHY = 36
SEEDS_HEALTHY_HALF = 4


def labelled() -> list[tuple[Fault, int]]:
    """Every training of the set: fault and seed; odd seeds are held out."""
    return [
        *((fault, seed) for fault in FAULTS for seed in range(SEEDS_A_FAULT)),
        *((HEALTHY, seed) for seed in range(SEEDS_HEALTHY)),
        *((fault, seed) for fault in (HEALTHY_HALF, HEALTHY_SEARCH) for seed in range(SEEDS_HEALTHY_HALF)),
    ]


def run(trainings: Sequence[tuple[Fault, int]], folder: Path, *, num_steps: int, num_processes: int) -> list[Judged]:
    """Train and judge each training in a process pool."""
    faults, seeds = zip(*trainings, strict=True)
    # A fault consists of functions, so only its name is sent.
    places = [ALL.index(fault) for fault in faults]
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn"), initializer=_be_one_of_many) as pool:
        return list(pool.map(_judge, places, seeds, repeat(folder), repeat(num_steps)))


def _be_one_of_many() -> None:
    """Use one core, and do not log the deliberate faults."""
    torch.set_num_threads(1)
    logging.getLogger("ava_pipeline").setLevel(logging.ERROR)


def _judge(place: int, seed: int, folder: Path, num_steps: int) -> Judged:
    return judge(ALL[place], seed, folder, num_steps)
