"""The split into training, validation and test images: by a stable hash or from lists of ids; saved in the run."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from ava_pipeline.contract.arrays import Floats, Integers
from ava_pipeline.contract.files import written_aside
from ava_pipeline.errors import ConfigError, SplitError

_log = logging.getLogger("ava_pipeline")

UInt64Array = npt.NDArray[np.uint64]

_NUM_SHOWN = 20
_MASK = (1 << 64) - 1


@dataclass(frozen=True, eq=False)
class Split:
    """Three sets of image ids, each int64, ascending; raise SplitError if sets overlap or `train` or `val` is empty."""

    train: Integers
    val: Integers
    test: Integers  # may be empty

    def __post_init__(self) -> None:
        sets = {field.name: np.unique(getattr(self, field.name)).astype(np.int64) for field in fields(self)}
        _refuse_overlap(sets)
        _refuse_empty(sets)
        for name, ids in sets.items():
            object.__setattr__(self, name, ids)

    def save(self, path: str | Path) -> None:
        """Write the split as CSV, `image_id,set`. The file appears complete or not at all."""
        sets = {field.name: getattr(self, field.name) for field in fields(self)}
        names = np.repeat(list(sets), [len(ids) for ids in sets.values()])
        frame = pd.DataFrame({"image_id": np.concatenate(list(sets.values())), "set": names})
        with written_aside(Path(path)) as file:
            frame.to_csv(file, index=False, lineterminator="\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a split that `save` wrote; raise SplitError if the file is missing or has another format."""
        try:
            frame = pd.read_csv(path, dtype={"image_id": np.int64, "set": str}, keep_default_na=False)
            known = frame["set"].isin([field.name for field in fields(cls)]).all()
        except (OSError, ValueError, KeyError) as error:
            raise SplitError(
                f"{path}: the saved split cannot be read ({error}). Start the run over to have it written."
            ) from error
        if not known:
            raise SplitError(f"{path}: expected only the sets train, val and test. Start the run over.")
        return cls(*(frame.loc[frame["set"] == field.name, "image_id"].to_numpy() for field in fields(cls)))

    def check_usable(self, path: Path, usable_ids: npt.ArrayLike, reasons: Mapping[int, str]) -> None:
        """Raise SplitError, naming images and `reasons`, unless `usable_ids` hold all for training and validation."""
        gone = np.setdiff1d(np.union1d(self.train, self.val), np.asarray(usable_ids, dtype=np.int64)).tolist()
        if gone:
            named = _shown(f"{image_id} ({reasons.get(image_id, 'no labels')})" for image_id in gone)
            raise SplitError(
                f"{path}: {len(gone)} of the images with which this run started cannot be used any more: {named}. "
                "Restore them to continue with --resume, or start over without them: --restart."
            )


def split_by_hash(image_ids: npt.ArrayLike, *, fractions: Sequence[float], seed: int) -> Split:
    """Assign each image to a set by a hash of its id and the seed; `fractions`, of train, val and test, sum to 1.

    The set of an image depends on nothing else: not on the order or number of other images, the machine or library
    versions. If images are added, existing images stay in their sets. Raise SplitError if the fractions are invalid, or
    `train` or `val` would be empty.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (3,) or not (shares >= 0).all() or not np.isclose(shares.sum(), 1):
        raise SplitError(
            f"The split's fractions are {list(fractions)}; expected three fractions for train, val and test, not "
            "negative, that sum to 1, such as 0.8, 0.1, 0.1."
        )
    ids = np.asarray(image_ids, dtype=np.int64)
    place = _uniform(ids, seed)
    to_val, to_test = shares[0], 1 - shares[2]
    return Split(ids[place < to_val], ids[(to_val <= place) & (place < to_test)], ids[place >= to_test])


def _uniform(ids: Integers, seed: int) -> Floats:
    """Return a number in [0, 1) for each id, float64[N], from the upper 53 bits of its hash with the seed."""
    key = _splitmix64(np.array([seed & _MASK], dtype=np.uint64))
    bits: UInt64Array = _splitmix64(ids.astype(np.uint64) ^ key) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def _splitmix64(state: UInt64Array) -> UInt64Array:
    """Return SplitMix64's output at each state, uint64[N]; https://prng.di.unimi.it/splitmix64.c. Overflow wraps."""
    mixed = state + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def split_from_files(paths: Mapping[str, str | Path], known_ids: npt.ArrayLike) -> Split:
    """Read each set from a list of image ids: one per line, with or without `.jpg`, comments after `#`.

    `paths` maps `train`, `val` and, if wanted, `test` to files. Ids that are not among `known_ids`, int64[N], are
    skipped, with one warning per file. Raise ConfigError if a file cannot be read, and SplitError if lines are not ids,
    sets share ids, or `train` or `val` is missing or empty.
    """
    names = [field.name for field in fields(Split)]
    if not {"train", "val"} <= paths.keys() <= set(names):
        raise SplitError(f"Id lists are given for {sorted(paths)}; give train, val and, if wanted, test.")
    known = np.asarray(known_ids, dtype=np.int64)
    listed = {name: _read_ids(Path(paths[name])) if name in paths else np.array([], np.int64) for name in names}
    _refuse_overlap(listed)
    return Split(**{name: _only_known(paths.get(name), ids, known) for name, ids in listed.items()})


def listed_ids(paths: Mapping[str, str | Path]) -> Integers:
    """Return every id in the lists; raise ConfigError if a file cannot be read, SplitError if a line is not an id."""
    return np.concatenate([np.array([], np.int64), *(_read_ids(Path(path)) for path in paths.values())])


def _read_ids(path: Path) -> Integers:
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise ConfigError(
            f"Id list {path} cannot be read: {error.strerror}. Give a text file with one image id per line."
        ) from error
    entries = [(number, line.partition("#")[0].strip()) for number, line in enumerate(lines, start=1)]
    ids = [(number, entry, entry.lower().removesuffix(".jpg")) for number, entry in entries if entry]
    bad = [f"line {number}: {entry[:40]!r}" for number, entry, word in ids if not _is_id(word)]
    if bad:
        raise SplitError(
            f"{path}: expected image ids, got {_shown(bad)}. Give one id per line, such as 953619 or 953619.jpg."
        )
    return np.array([int(word) for _, _, word in ids], dtype=np.int64)


def _is_id(word: str) -> bool:
    return word.isascii() and word.isdecimal() and len(word) <= len("953619000000000000")


def _only_known(path: str | Path | None, ids: Integers, known: Integers) -> Integers:
    """Return the known ids, and warn of the others."""
    unknown = ids[~np.isin(ids, known)]
    if len(unknown):
        _log.warning(
            "%s: %d of %d ids have no labels or no usable image and are skipped: %s",
            path,
            len(unknown),
            len(ids),
            _shown(unknown.tolist()),
        )
    return ids[np.isin(ids, known)]


def _refuse_overlap(sets: Mapping[str, Integers]) -> None:
    for (one, ids), (other, others) in combinations(sets.items(), 2):
        shared = np.intersect1d(ids, others)
        if len(shared):
            raise SplitError(
                f"{len(shared)} images are in both {one} and {other}: {_shown(shared.tolist())}. Remove them from "
                "one: metrics of images used for training are meaningless."
            )


def _refuse_empty(sets: Mapping[str, Integers]) -> None:
    empty = [name for name in ("train", "val") if not len(sets[name])]
    if empty:
        counts = ", ".join(f"{name} {len(ids)}" for name, ids in sets.items())
        raise SplitError(
            f"No images for {' and '.join(empty)} ({counts}). Give more images or a larger fraction, or an id list "
            "whose images have labels."
        )


def _shown(items: Iterable[object]) -> str:
    """Return the first items and the number of the others."""
    texts = [str(item) for item in items]
    rest = len(texts) - _NUM_SHOWN
    return ", ".join(texts[:_NUM_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
