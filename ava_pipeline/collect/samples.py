"""Held-out samples: the first ones of the user's batches, with their labels and ids, on the model's device."""

import copy
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ava_pipeline.collect.predictions import as_ids, check_distributions
from ava_pipeline.collect.undisturbed import same_random_states
from ava_pipeline.contract.builtin_tables import NUM_SCORES, HoldoutKind
from ava_pipeline.contract.columns import shown
from ava_pipeline.errors import MisuseError, PredictionsError

Key: TypeAlias = str | int | Callable[[Any], Any]  # a name in a batch, a position, or a function of the batch
Forward: TypeAlias = Callable[[Any, Any], Tensor]

MAX_IDS = 2  # of a sample: a pair of images
_ONE_PER_SAMPLE = "give one for each sample of the batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutQuestion:
    """What `set_holdout` was asked: how a batch is evaluated, and where its labels and ids are.

    Raises:
        MisuseError: an argument is of a wrong type.
    """

    forward: Forward
    labels: Key
    ids: Sequence[Key]
    kind: HoldoutKind

    @classmethod
    def of(cls, *, forward: Forward, labels: Key, ids: Key | Sequence[Key], kind: HoldoutKind) -> "HoldoutQuestion":
        """Check the arguments, of which one id may come without a sequence around it."""
        if not callable(forward):
            raise MisuseError(f"forward is {shown(forward)}: give a function of the model and a batch.")
        if kind not in get_args(HoldoutKind):
            raise MisuseError(f"kind is {shown(kind)}: give 'classes' or 'scores'.")
        keys = tuple(ids) if isinstance(ids, list | tuple) else (ids,)
        if not 1 <= len(keys) <= MAX_IDS:
            raise MisuseError(f"ids are {shown(ids)}: give one key, or the two of a pair of images.")
        for name, key in (("labels", labels), *(("ids", key) for key in keys)):
            if isinstance(key, bool) or not (isinstance(key, str | int) or callable(key)):
                raise MisuseError(f"{name} is {shown(key)}: give a name, a position or a function of the batch.")
        return cls(forward=forward, labels=labels, ids=keys, kind=kind)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Held-out samples.

    Attributes:
        batches: as the user's, the last of them cut; tensors are copies on one device.
        sizes: the number of samples in each batch.
        labels: [samples] classes as int64, or [samples, 10] votes or shares of scores as float64.
        ids: of each sample one id, or the two of a pair; all of them integers, or all of them texts.
        kind: what the labels are.
    """

    batches: list[Any]
    sizes: list[int]
    labels: NDArray[Any]
    ids: tuple[tuple[int | str, ...], ...]
    kind: HoldoutKind

    @property
    def has_integer_ids(self) -> bool:
        """Whether the ids are integers."""
        return isinstance(self.ids[0][0], int)

    def to(self, device: torch.device) -> None:
        """Move the batches to another device."""
        self.batches[:] = [moved(batch, device) for batch in self.batches]


def read_samples(batches: Iterable[Any], size: int, question: HoldoutQuestion, device: torch.device) -> Samples:
    """Copy the first `size` samples to a device.

    The random states that the batches may take numbers from are the same afterwards: torch's, Python's and NumPy's, and
    those of a DataLoader's own generators.

    Raises:
        MisuseError: these are not batches, a label, an id or a batch has a wrong shape or type, or an id comes twice.
    """
    if isinstance(batches, Tensor | Mapping | str | bytes) or not isinstance(batches, Iterable):
        raise MisuseError(f"batches is a {type(batches).__name__}: give a DataLoader, or a list of batches.")
    generators = _generators(batches)
    states = [generator.get_state() for generator in generators]
    try:
        with same_random_states([device]):
            return _read(batches, size, question, device)
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _read(batches: Iterable[Any], size: int, question: HoldoutQuestion, device: torch.device) -> Samples:
    kept: list[Any] = []
    sizes: list[int] = []
    labels: list[NDArray[Any]] = []
    ids: list[tuple[int | str, ...]] = []
    for batch in batches:
        its_labels = _labels(_at(batch, question.labels, "labels"), question.kind)
        num = len(its_labels)
        its_ids = [_ids(_at(batch, key, "ids"), num) for key in question.ids]
        num_taken = min(num, size - sum(sizes))
        kept.append(moved(cut(batch, num, num_taken), device))
        sizes.append(num_taken)
        labels.append(its_labels[:num_taken])
        ids += list(zip(*its_ids, strict=True))[:num_taken]
        if sum(sizes) == size:
            break
    if not ids:
        raise MisuseError("the batches have no samples: give a DataLoader, or a list of batches.")
    is_integer = all(isinstance(one, int) for sample in ids for one in sample)
    stored = tuple(tuple(one if is_integer else str(one) for one in sample) for sample in ids)
    _check_ids(stored)
    of_samples = np.concatenate(labels)
    _check_labels(of_samples, stored, question.kind)
    return Samples(batches=kept, sizes=sizes, labels=of_samples, ids=stored, kind=question.kind)


def _generators(batches: object) -> list[torch.Generator]:
    """The generators of a DataLoader and of its samplers."""
    batch_sampler = getattr(batches, "batch_sampler", None)
    holders = (batches, getattr(batches, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    return [one for one in dict.fromkeys(found) if isinstance(one, torch.Generator)]


def _at(batch: Any, key: Key, what: str) -> Any:
    """What a key finds in a batch; a function's own errors are raised as they are."""
    if callable(key):
        return key(batch)
    try:
        if isinstance(key, str) and not isinstance(batch, Mapping) and hasattr(batch, key):
            return getattr(batch, key)
        return batch[key]
    except (LookupError, TypeError, AttributeError) as error:
        raise MisuseError(
            f"{what} is {key!r}, which a batch does not have: it is {_described(batch)}. "
            "Give a name or a position in it, or a function of the batch."
        ) from error


def _described(batch: object) -> str:
    kind = type(batch).__name__
    if isinstance(batch, Mapping):
        return f"a {kind} of {', '.join(map(repr, batch))}"
    return f"a {kind} of {len(batch)}" if isinstance(batch, list | tuple) else f"a {kind}"


def _labels(given: Any, kind: HoldoutKind) -> NDArray[Any]:
    """The labels of a batch: [samples] int64 of classes, [samples, 10] float64 of scores."""
    expected = "whole numbers from 0, one per sample" if kind == "classes" else "votes or shares, (samples, 10)"
    try:
        labels = torch.as_tensor(given, device="cpu")  # named, because the user may have set another default device
    except (TypeError, ValueError, RuntimeError) as error:
        raise MisuseError(f"labels of kind={kind!r} are {shown(given)}: give {expected}.") from error
    is_whole = not (labels.is_floating_point() or labels.is_complex())
    if kind == "classes" and labels.ndim == 1 and is_whole:
        return labels.detach().to(torch.int64).numpy()
    if kind == "scores" and labels.ndim == 2 and labels.shape[1] == NUM_SCORES and not labels.is_complex():  # noqa: PLR2004  # rows and columns
        return labels.detach().to(torch.float64).numpy()
    raise MisuseError(
        f"labels of kind={kind!r} are {labels.dtype} of shape {tuple(labels.shape)}: give {expected}, "
        "for instance by a function of the batch."
    )


def _ids(given: Any, num: int) -> list[int | str]:
    found = as_ids(given)
    ids: list[int | str] = found.tolist() if isinstance(found, Tensor) else found
    if len(ids) != num:
        raise MisuseError(f"a batch has {num} labels and {len(ids)} ids: {_ONE_PER_SAMPLE}.")
    return ids


def _check_ids(ids: Sequence[tuple[int | str, ...]]) -> None:
    """Raise MisuseError for ids that files could not hold, or that do not tell the samples apart."""
    for one in (one for sample in ids for one in sample if isinstance(one, str)):
        is_utf8 = one.encode("utf-8", "replace").decode() == one
        if one.splitlines() != [one] or not is_utf8:
            raise MisuseError(f"the id {one!r} cannot be stored: give ids on one line of text in UTF-8, or integers.")
    known: set[Hashable] = set()
    for sample in ids:
        if sample in known:
            raise MisuseError(
                f"the sample {named(sample)} comes twice among those held out: ids tell the samples apart, so give "
                "each one once, and each its own id."
            )
        known.add(sample)


def _check_labels(labels: NDArray[Any], ids: Sequence[tuple[int | str, ...]], kind: HoldoutKind) -> None:
    if kind == "classes":
        negative = np.flatnonzero(labels < 0)
        if len(negative):
            first = int(negative[0])
            raise MisuseError(f"the label of {named(ids[first])} is {labels[first]}: give classes from 0.")
        return
    try:
        check_distributions([named(sample) for sample in ids], labels, "true", "Give votes.", allows_votes=True)
    except PredictionsError as error:
        raise MisuseError(f"labels: {error}") from error


def named(sample: tuple[int | str, ...]) -> str:
    """A sample's ids as messages show them."""
    return " and ".join(map(repr, sample))


def cut(batch: Any, size: int, num: int) -> Any:
    """The first `num` of the `size` samples of a batch.

    Tensors and arrays with a row for each sample are cut, and so are lists with an item for each. A list is rather a
    part of the batch's structure if any of its items has a row for each sample.
    """
    return batch if num == size else _rebuilt(batch, lambda part: _cut_part(part, size, num))


def _cut_part(part: Any, size: int, num: int) -> Any:
    is_structure = isinstance(part, list | tuple) and (
        hasattr(part, "_fields") or any(_length(item) == size for item in part)
    )
    return part if is_structure or _length(part) != size else part[:num]


def _length(part: object) -> int | None:
    if isinstance(part, Tensor | np.ndarray):
        return len(part) if part.ndim else None
    return len(part) if isinstance(part, list | tuple) else None


def moved(batch: Any, device: torch.device) -> Any:
    """A copy of a batch whose tensors are on a device."""

    def move(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part.detach().to(device, copy=True)
        is_plain = isinstance(part, Mapping | list) or not callable(getattr(part, "to", None))
        return part if is_plain else part.to(device)

    return _rebuilt(batch, move)


def copied(batch: Any) -> Any:
    """A copy of a batch that may be changed."""
    return _rebuilt(batch, lambda part: part.clone() if isinstance(part, Tensor) else part)


def _rebuilt(value: Any, change: Callable[[Any], Any], *, is_batch: bool = True) -> Any:
    """A batch with its parts changed: mappings, sequences and dataclasses are made anew around what they hold."""
    new = change(value)
    if new is not value:
        return new
    if isinstance(value, Mapping):
        parts = {key: _rebuilt(part, change, is_batch=False) for key, part in value.items()}
        if type(value) is dict:
            return parts
        made: Any = copy.copy(value)
        made.update(parts)
        return made
    if isinstance(value, list | tuple):
        items = (_rebuilt(item, change, is_batch=False) for item in value)
        make: Any = type(value)
        return make(*items) if hasattr(value, "_fields") else make(items)
    names = _attributes(value, is_batch=is_batch)
    if not names:
        return value
    made = copy.copy(value)
    for name in names:
        object.__setattr__(made, name, _rebuilt(getattr(value, name), change, is_batch=False))  # also if it is frozen
    return made


def _attributes(value: Any, *, is_batch: bool) -> list[str]:
    """The attributes of a dataclass, and of a batch that is an object of another class."""
    if isinstance(value, Tensor | type | nn.Module):
        return []
    if is_dataclass(value):
        return [field.name for field in fields(value)]
    return list(getattr(value, "__dict__", ())) if is_batch else []
