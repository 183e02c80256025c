"""The answers of a comparison in sentences, the most important first."""

from collections.abc import Iterator

from ava_pipeline.compare.compare import ColumnOf, Comparison
from ava_pipeline.compare.holdout import HoldoutComparison
from ava_pipeline.compare.layers import LayersComparison
from ava_pipeline.compare.noise import WINDOW
from ava_pipeline.compare.settings import Setting
from ava_pipeline.compare.weights import LayerDistance, WeightsComparison
from ava_pipeline.terminal import printable

_NUM_NAMED = 3


def answers(found: Comparison) -> list[str]:
    """Sentences for a person: where the runs part, in which settings, samples and weights, and what is not compared.

    Names are printable: characters that a terminal obeys are escaped.
    """
    return [
        *_parting(found),
        *_unequal(found),
        *_settings(found),
        *(_holdout(found.holdout) if found.holdout else ()),
        *(_weights(found.weights) if found.weights else ()),
        *(_layers(found.layers) if found.layers else ()),
        *_rows(found),
        *_only_tables("A", found.tables_only_a),
        *_only_tables("B", found.tables_only_b),
    ]


def _parting(found: Comparison) -> Iterator[str]:
    verdict = found.verdict
    parted = found.parted()
    if parted:
        yield _first_parted(parted)
    elif verdict == "nothing to compare" and found.has_errors:
        yield "Nothing could be compared, because parts of the runs could not be read; they are named below."
    elif verdict == "nothing to compare":
        yield "Nothing could be compared: the runs have no batch, sample or snapshot in common."
    elif verdict == "equal":
        yield f"No difference: every value that both runs have is equal bit for bit{_extent(found)}."
    elif verdict == "incomplete":
        yield "No difference beyond noise was found, but a part of the runs could not be read."
    elif verdict == "within noise":
        yield "The runs differ, but no column differs by more than each run itself scatters."
    elif verdict == "too few rows to tell":
        yield (
            "The runs differ; whether beyond noise cannot be told, because fewer than "
            f"{WINDOW} rows are measured in both."
        )
    else:
        yield "The runs differ, though no column that both measured differs beyond noise."


def _extent(found: Comparison) -> str:
    num = found.num_batches
    return f", in {num} batch{'es' * (num != 1)} of {_counted(len(found.tables), 'table')}" if num else ""


def _first_parted(parted: list[ColumnOf]) -> str:
    first = parted[0]
    beyond = first.column.beyond_noise
    assert beyond is not None  # noqa: S101  # parted() has no others
    at_once = sum(one.column.beyond_noise.batch_idx == beyond.batch_idx for one in parted if one.column.beyond_noise)
    a, b = beyond.values.texts()
    sentence = f"The runs part at batch {beyond.batch_idx}: {_name(first)} is "
    if beyond.scatter is None:
        sentence += f"{a} in A and {b} in B"
    else:
        times = beyond.times_scatter
        sentence += f"around {a} in A and {b} in B"
        sentence += f", {times:.3g} times its scatter apart" if times is not None else ", and does not scatter"
    more = f", with {_counted(at_once - 1, 'more column')} at this batch" if at_once > 1 else ""
    later = f"; {_counted(len(parted) - at_once, 'column')} later" if len(parted) > at_once else ""
    end = "" if beyond.is_at_end else " At the end they are together again."
    return f"{sentence}{more}{later}.{end}"


def _unequal(found: Comparison) -> Iterator[str]:
    first = found.first_unequal()
    if first is None or first.column.first_unequal is None:
        return
    unequal = first.column.first_unequal
    begins = [table.first_batch for table in found.tables if table.first_batch is not None]
    a, b = unequal.values.texts()
    relative = unequal.values.relative
    size = "" if relative is None else f", {relative:.2g} relative"
    place = f"{_name(first)} is {a} in A and {b} in B{size}"
    if unequal.batch_idx == min(begins):
        yield f"Values differ bit for bit from the first shared batch on, {unequal.batch_idx}: {place}."
    else:
        yield f"Before batch {unequal.batch_idx} every shared value is equal bit for bit; there {place}."


def _settings(found: Comparison) -> Iterator[str]:
    training = [one for one in found.settings if one.subject == "training"]
    recording = [one for one in found.settings if one.subject == "recording"]
    without = [label for label, has in (("A", found.has_settings_a), ("B", found.has_settings_b)) if not has]
    if without:
        yield (
            f"Settings of the training are not known of {' and '.join(without)}: "
            "expected a config.yaml, or run_info in the manifest."
        )
    elif training:
        yield f"{_counted(len(training), 'setting')} of the training {_verb(training)}: {_listed(training)}."
    else:
        yield "No setting of the training differs."
    if recording:
        yield f"{_counted(len(recording), 'setting')} of the recording {_verb(recording)}: {_listed(recording)}."


def _verb(settings: list[Setting]) -> str:
    return "differs" if len(settings) == 1 else "differ"


def _listed(settings: list[Setting]) -> str:
    texts = [f"{printable(one.name)} is {' in A and '.join(map(printable, one.texts()))} in B" for one in settings]
    more = len(texts) - _NUM_NAMED
    return "; ".join([*texts[:_NUM_NAMED], *([f"and {more} more"] if more > 0 else [])])


def _holdout(found: HoldoutComparison) -> Iterator[str]:
    if not found.batches or not found.num_samples:
        yield "Holdout: the runs have no held-out sample of a batch in common."
        return
    last = found.batches[-1]
    if found.first_unequal is None:
        yield f"Holdout: the outputs of {found.num_samples} samples are equal bit for bit."
    elif found.first_other_prediction is not None:
        first = found.first_other_prediction
        yield (
            f"Holdout: predictions differ first at batch {first.batch_idx}, of {first.num_other_prediction} of "
            f"{first.num_samples} samples; at batch {last.batch_idx}, of {last.num_other_prediction}."
        )
    else:
        also = "; no prediction differs" if last.num_other_prediction is not None else ""
        yield f"Holdout: outputs differ from batch {found.first_unequal} on{also}."
    if found.ids_only_a or found.ids_only_b:
        yield (
            f"Holdout: {_counted(len(found.ids_only_a), 'sample')} of A alone and "
            f"{_counted(len(found.ids_only_b), 'sample')} of B alone are not compared."
        )
    if found.num_other_label:
        yield f"Holdout: {_counted(found.num_other_label, 'sample')} have another label in each run."


def _weights(found: WeightsComparison) -> Iterator[str]:
    if not found.snapshots:
        yield "Weights: no snapshots of the same batch could be compared."
        return
    last = found.snapshots[-1]
    if found.first_unequal is None:
        yield f"Weights: {_counted(len(found.snapshots), 'snapshot')} are equal bit for bit."
    elif last.layers:
        first = next(one for one in found.snapshots if not one.is_equal)
        yield f"Weights: snapshots differ first at batch {first.batch_idx}, most in {_most(first.layers[0])}."
        if last is not first:
            yield f"Weights: at batch {last.batch_idx}, the most different layer is {_most(last.layers[0])}."
    if last.other_shape or last.only_a or last.only_b:
        yield (
            f"Weights: at batch {last.batch_idx}, {_counted(len(last.other_shape), 'layer')} of another shape"
            f"{_examples([one.name for one in last.other_shape])}, {len(last.only_a)} in A alone"
            f"{_examples(last.only_a)}, {len(last.only_b)} in B alone{_examples(last.only_b)}."
        )


def _most(layer: LayerDistance) -> str:
    size = "not finite" if layer.relative is None else f"relative distance {layer.relative:.3g}"
    return f"{printable(layer.name)} ({size})"


def _layers(found: LayersComparison) -> Iterator[str]:
    differing = [one for one in found.layers if one.first_unequal is not None]
    if not found.layers:
        yield "Layers: per_layer_stats has no layer of a batch in common."
    elif not differing:
        yield f"Layers: the statistics of {_counted(len(found.layers), 'layer')} are equal bit for bit."
    else:
        first = min(one.first_unequal or 0 for one in differing)
        top = differing[0]
        distance = "not comparable" if top.distance is None else f"relative distance {top.distance:.3g}"
        yield (
            f"Layers: {len(differing)} of {_counted(len(found.layers), 'layer')} differ, from batch {first} on; "
            f"at batch {top.batch_idx}, most of all {printable(top.name)} ({distance} of norm or spread)."
        )
    other_size = [one.name for one in found.layers if one.num_params is not None]
    if found.only_a or found.only_b or other_size:
        yield (
            f"Layers: {_counted(len(other_size), 'layer')} of another size{_examples(other_size)}, "
            f"{len(found.only_a)} in A alone{_examples(found.only_a)}, "
            f"{len(found.only_b)} in B alone{_examples(found.only_b)}."
        )


def _rows(found: Comparison) -> Iterator[str]:
    """One sentence about unmatched batches for all tables, which usually agree."""
    counts: dict[tuple[int, int], list[str]] = {}
    for table in found.tables:
        counts.setdefault((table.num_only_a, table.num_only_b), []).append(table.name)
    for (only_a, only_b), names in counts.items():
        if only_a or only_b:
            yield (
                f"Not compared in {', '.join(names)}: {_batches(only_a)} that only A recorded, "
                f"{_batches(only_b)} that only B recorded."
            )
    for table in found.tables:
        if table.num_other_distance:
            yield (
                f"Not compared in {table.name}: {_batches(table.num_other_distance)} "
                "up to which the weights moved over another number of batches."
            )


def _only_tables(label: str, names: tuple[str, ...]) -> Iterator[str]:
    """The tables that one run alone has."""
    if names:
        yield f"Only {label} has {', '.join(map(printable, names))}."


def _name(one: ColumnOf) -> str:
    return printable(one.name)


def _examples(names: tuple[str, ...] | list[str]) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > _NUM_NAMED else ""
    return f" ({', '.join(map(printable, names[:_NUM_NAMED]))}{more})"


def _counted(num: int, thing: str) -> str:
    return f"{num} {thing}{'s' * (num != 1)}"


def _batches(num: int) -> str:
    return f"{num} batch{'es' * (num != 1)}"
