"""Settings of many SAEs that differ in a few values, and their results side by side."""

__all__ = ["final_metrics_of", "grid", "published_grid"]

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path
from mammosae_plugin.training.matryoshka import MATRYOSHKA_INDEPENDENT
from mammosae_plugin.training.metrics import read_metrics
from mammosae_plugin.training.settings import SAETraining

_PUBLISHED_LEVELS = ((16, 64, 256, 1024), (32, 128, 512, 2048), (64, 256, 1024, 4096), (128, 512, 2048, 8192))
_PUBLISHED_K = (
    *((5,) * 4, (10,) * 4, (20,) * 4, (30,) * 4),
    *((5, 10, 20, 40), (10, 20, 40, 80), (20, 40, 80, 160), (30, 60, 120, 240)),
)
_COLUMNS = ("of", "rows", "explained_variance", "l0", "dead_share", "slope", "mse")


def grid(base: SAETraining, **values: Sequence[Any]) -> dict[str, SAETraining]:
    """Settings for every combination of values, such as `grid(base, k=[16, 32], seed=[0, 1])`, for `train_saes`.

    SAEs of several seeds read the rows in one order, that of the base.

    Args:
        base: What the others start from.
        **values: The values of each setting that differs.

    Returns:
        The settings by name, such as "k=16,seed=0".

    Raises:
        InputError: No value, or settings that do not go together.
    """
    for name, choices in values.items():
        if name not in SAETraining.model_fields:
            raise InputError(f"SAETraining has no setting {name!r}")
        if not choices:
            raise InputError(f"{name} has no value to try")
    same_order = {} if base.row_seed is not None else {"row_seed": base.seed}
    found = {}
    for combination in product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        name = ",".join(f"{key}={value}" for key, value in chosen.items())
        try:
            found[name] = SAETraining(**{**base.model_dump(), **same_order, **chosen})
        except ValueError as error:  # pydantic's too
            raise InputError(f"{name}: {' '.join(str(error).split())}") from error
    return found


def published_grid(base: SAETraining | None = None) -> dict[str, SAETraining]:
    """The 28 configurations of nested SAEs that SAIL compares (arXiv 2603.23794), for `train_saes`.

    Four levels of 16, 64, 256, 1024 to 128, 512, 2048, 8192 latents with eight rows of budgets, 5, 5, 5, 5 to 30, 60,
    120, 240, but those in which a level has more latents per row than latents.

    Args:
        base: What all share; its `d_sae`, `k` and levels are replaced. Of SAELens's "matryoshka_batchtopk" k is the
            budget of the last level, which is the only one there. None means SAIL's own settings as far as there are
            such here: "matryoshka_independent" with tied weights on rows of length 1, 100 epochs of batches of 2,048
            rows in bfloat16, learning rate 1e-4 after a tenth of the steps, at most 1,000, then by a cosine to 1e-6.

    Returns:
        The settings by SAIL's names of them, such as "D_16_64_256_1024_K_5_5_5_5".

    Raises:
        InputError: The base is of an architecture without nested levels.
    """
    if base is None:
        base = SAETraining(
            architecture=MATRYOSHKA_INDEPENDENT,
            architecture_settings={"tied_weights": True},
            k=_PUBLISHED_K[0][-1],
            normalize_activations="unit_l2",
            epochs=100,
            batch_size=2048,
            lr=1e-4,
            lr_warm_up_steps=1000,
            lr_warm_up_share=0.1,
            lr_schedule="cosine",
            lr_end=1e-6,
            autocast=True,
        )
    if not base.kind.takes("matryoshka_widths"):
        raise InputError(
            f"the published grid is of nested SAEs, which {base.architecture!r} is not; take matryoshka_independent or "
            "matryoshka_batchtopk"
        )
    found = {}
    for widths, budgets in product(_PUBLISHED_LEVELS, _PUBLISHED_K):
        if any(k > width for k, width in zip(budgets, widths, strict=True)):
            continue
        levels: dict[str, Any] = {"d_sae": widths[-1], "matryoshka_widths": widths, "k": budgets[-1]}
        if base.kind.takes("matryoshka_k"):
            levels["matryoshka_k"] = budgets
        name = f"D_{'_'.join(map(str, widths))}_K_{'_'.join(map(str, budgets))}"
        found[name] = SAETraining(**{**base.model_dump(), **levels})
    return found


def final_metrics_of(folder: str | Path) -> pd.DataFrame:
    """The last measures of every SAE that `train_saes` has finished in a folder: a row each, `name` first.

    Raises:
        InputError: There is none.
    """
    records = []
    for file in sorted(local_path(folder).glob("*/metrics.jsonl")):
        last = read_metrics(file)[-1:]
        if last and last[0].get("final"):
            records.append({"name": file.parent.name, **{key: last[0][key] for key in _COLUMNS}})
    if not records:
        raise InputError(f"{folder} holds no finished SAE")
    return pd.DataFrame.from_records(records)
