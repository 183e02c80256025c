"""Build files of predictions like those of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.builtin_tables import GT_COLUMNS, PRED_COLUMNS, predictions_schema
from ava_pipeline.contract.parquet import write_parquet
from ava_pipeline.metrics import mean_scores


def predictions_file(
    path: Path, image_ids: Sequence[int] | Sequence[str], *, noise: float = 0.3, seed: int = 0, ties: bool = False
) -> Path:
    """Write predictions that are the true distributions with noise.

    Args:
        path: of the Parquet file.
        image_ids: the truth of an image depends on its id only.
        noise: share of noise in the predictions.
        seed: of the random generator of the noise.
        ties: whether mean scores are rounded, so that many are equal.
    """
    truth = np.stack([np.random.default_rng(int(image)).dirichlet(np.ones(10)) for image in image_ids])
    guess = np.random.default_rng(seed).dirichlet(np.ones(10), len(image_ids))
    pred = (1 - noise) * truth + noise * guess
    means = [mean_scores(side).round(1) if ties else mean_scores(side) for side in (pred, truth)]
    columns: dict[str, Any] = {
        "image_id": list(image_ids),
        "pred_mean": means[0],
        "gt_mean": means[1],
        **{name: pred[:, index].astype(np.float32) for index, name in enumerate(PRED_COLUMNS)},
        **{name: truth[:, index].astype(np.float32) for index, name in enumerate(GT_COLUMNS)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = predictions_schema(integer_ids=isinstance(image_ids[0], int))
    write_parquet(path, pa.table(columns, schema=schema))
    return path
