"""Images of a study whose logit is taken apart: which they are, by a rule, and the sum over latents of each."""

__all__ = ["choose_images", "explained_images", "explained_panels", "explained_rows", "with_ids"]

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pandas as pd
from torch import nn

from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.analysis.explaining import explain
from mammosae_plugin.analysis.localization import heatmap
from mammosae_plugin.config.explain import ExplainSettings
from mammosae_plugin.datasets import StudyDataset
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.latents.one_image import encode_image
from mammosae_plugin.latents.table import logit_error
from mammosae_plugin.measures.statistics import settled
from mammosae_plugin.progress import progress
from mammosae_plugin.schema.explained import RULES
from mammosae_plugin.schema.results import Results, Row, may_show_images, stated_role
from mammosae_plugin.study.images import TEST
from mammosae_plugin.visualization.explanation import ExplainedPanels

_OF_IMAGE = ("rule", "place", "n_images", "logit", "bias", "error", "gap", "n_firing", "others")
_OF_LATENT = ("latent", "contribution", "usual", "mean", "maximum")


def choose_images(table: LatentTable, concept: str, n: int, *, split: str = TEST) -> list[Row]:
    """The images that are explained: in turn one with the finding and one without, each of the highest logit.

    Of the images of either kind the one of the highest logit comes first, then that of another patient, and so on: no
    patient stands twice under one rule. With the finding and a logit above 0 it is a hit, without it a false alarm.

    Args:
        table: a latents table with a classifier of the concept.
        concept: a finding.
        n: how many images; there are fewer where patients are.
        split: the split they are from.

    Returns:
        For each image row (in `table.images`), rule (of `schema.explained.RULES`), place (by that rule, from 1) and
        n_images (from which the rule chose).
    """
    rows = table.rows(concept, split=split)
    logits = settled(table.logits(concept)[rows.image_rows, 0], logit_error(table, concept))
    chosen: list[list[Row]] = []
    for rule, label in zip(RULES, (1, 0), strict=True):
        own = np.flatnonzero(rows.labels == label)
        ranked = own[np.argsort(-logits[own], kind="stable")]
        _, first = np.unique(rows.patient_ids[ranked].astype(str), return_index=True)
        best = enumerate(rows.image_rows[ranked[np.sort(first)]].tolist(), start=1)
        chosen.append([{"row": row, "rule": rule, "place": place, "n_images": len(own)} for place, row in best])
    turns = [one for of_rule in chosen for one in of_rule]
    return sorted(turns, key=lambda one: (one["place"], RULES.index(one["rule"])))[:n]


def explained_images(
    table: LatentTable,
    concept: str,
    settings: ExplainSettings,
    *,
    model: HookedVisionModel,
    sae: Any,
    head: nn.Linear,
    images: StudyDataset,
    hook_name: str,
    device: str = "cpu",
) -> pd.DataFrame:
    """The sum over latents of each chosen image, with the maps that a figure of it needs.

    The network passes each image once more, so that the sum is held against the logit that it gives now.

    Args:
        table: a latents table whose logits are sums over latents.
        concept: a finding.
        settings: how many images and latents.
        model: the table's network.
        sae: the table's SAE.
        head: the concept's classifier.
        images: the study's images, preprocessed as the network wants them.
        hook_name: the layer.
        device: where the network runs.

    Returns:
        Of every image a row of all latents together (latent -1) and a row per latent that is shown: what `explain`
        says of the image, and map, (h * w,) activation, of all together activation times weight.

    Raises:
        RuntimeError: a sum is not the logit, by more than 1e-4 and rounding.
    """
    records: list[Row] = []
    weight = table.readout(concept).weight[:, 0]
    chosen = choose_images(table, concept, settings.images)
    for one in progress(chosen, description=f"explain {concept}", unit="image", leave=False):
        about: Any = table.images.iloc[one["row"]]
        image = images.select(image_ids=[about["image_id"]])[0]["image"]
        encoded = encode_image(model, sae, image, head, hook_name=hook_name, device=device)
        found = explain(table, encoded, head=concept, n=0, patient=str(about["patient_id"]))
        shown = pd.concat([found.strongest(settings.top, sign=sign) for sign in (1, -1)])
        of_image = {
            "image_id": str(about["image_id"]),
            **{name: one[name] for name in ("rule", "place", "n_images")},
            **{name: getattr(found, name) for name in ("logit", "bias", "error", "gap", "n_firing")},
            "others": float(found.latents["contribution"].sum() - shown["contribution"].sum()),
        }
        whole = {"latent": -1, "contribution": found.latents["contribution"].sum()}
        records.append({**of_image, **whole, "map": encoded.weighted_map(weight).ravel().tolist()})
        for row, own in zip(shown.to_dict("records"), encoded.maps(shown["latent"].to_numpy()), strict=True):
            records.append({**of_image, **{name: row[name] for name in _OF_LATENT}, "map": own.ravel().tolist()})
    return pd.DataFrame.from_records(records, columns=["image_id", *_OF_IMAGE, *_OF_LATENT, "map"])


def explained_rows(explained: pd.DataFrame, results: Row) -> list[Row]:
    """The images as `results.json` has them, without their ids, each latent with what the study calls it.

    Args:
        explained: rows of `explained_images` with columns model and concept.
        results: what else was found at the layer: named_latents and evidence.
    """
    roles = {
        (pair, row["latent"]): stated_role(row) for pair, named in results["named_latents"].items() for row in named
    }
    evidence = {(row["model"], row["concept"], row["latent"]): row for row in results["evidence"]}
    found = []
    for _, own in explained.groupby(["model", "concept", "rule", "place"], sort=False):
        first, *latents = own.to_dict("records")
        told = []
        for row in latents:
            known = evidence.get((row["model"], row["concept"], row["latent"]), {})
            told.append(
                {
                    **{name: row[name] for name in _OF_LATENT},
                    "role": roles.get((f"{row['model']}/{row['concept']}", row["latent"])),
                    "verdict": known.get("verdict"),
                    "reason": known.get("reason") or None,
                }
            )
        found.append({**{name: first[name] for name in ("model", "concept", *_OF_IMAGE)}, "latents": told})
    return found


def with_ids(results: Results, explained: pd.DataFrame) -> Results:
    """The results with the ids of explained images, where a report may show the images; else as they are.

    Args:
        results: of a layer.
        explained: rows of `explained_images` with columns model and concept.
    """
    if not may_show_images(results) or not results.get("explained"):
        return results
    key = ["model", "concept", "rule", "place"]
    ids = explained.drop_duplicates(key).set_index(key)["image_id"].to_dict()
    told = [{**row, "image_id": ids[tuple(row[name] for name in key)]} for row in results["explained"]]
    return cast(Results, {**results, "explained": told})


def explained_panels(
    explained: pd.DataFrame, images: StudyDataset, grid: dict[tuple[str, str], tuple[int, int]]
) -> Iterator[ExplainedPanels]:
    """What the figure of each image shows, one at a time.

    Args:
        explained: rows of `explained_images` with columns model and concept.
        images: the study's images.
        grid: rows and columns of positions, by model and concept.
    """
    for _, own in explained.groupby(["model", "concept", "rule", "place"], sort=False):
        first: Any = own.iloc[0]
        gray = images.select(image_ids=[first["image_id"]]).gray(0)
        positions, size = grid[first["model"], first["concept"]], (gray.shape[0], gray.shape[1])
        maps = [heatmap(np.asarray(values, dtype=np.float32).reshape(positions), size) for values in own["map"]]
        yield ExplainedPanels(
            **{name: first[name] for name in ("model", "concept", "rule", "place", "logit")},
            image=gray,
            whole=maps[0],
            latents=own["latent"].tolist()[1:],
            contributions=own["contribution"].tolist()[1:],
            maps=maps[1:],
        )
