"""The five sentences of the first page on a study of embeddings, each with its number, interval and chance."""

__all__ = ["embedding_headline", "leading_sae"]

import math
from typing import Any

import pandas as pd

from mammosae_plugin.datasets.concepts import PRESENT
from mammosae_plugin.findings.embeddings import EmbeddingFindings
from mammosae_plugin.schema.names import counted, readable
from mammosae_plugin.schema.results import Row
from mammosae_plugin.visualization.embeddings import METHOD_NAMES
from mammosae_plugin.visualization.tables import Estimate, PValue, estimate

_SIGNIFICANT = 0.05


def leading_sae(facts: Any) -> Row:
    """The SAE that the first page is about: the first of a model whose weights are not random; no result enters."""
    random = {one["model"] for one in facts["models"] if one["weights"] == "random"}
    first: Row = next((sae for sae in facts["saes"] if sae["model"] not in random), facts["saes"][0])
    return first


def embedding_headline(found: EmbeddingFindings, split: str, n: str, n_units: str) -> list[str]:
    """How well the codes give the vectors back, what they and one latent tell, whether latents mean something, and
    whether like images are found.

    Args:
        found: what the study found.
        split: the split that is judged.
        n: the images behind the numbers, in words.
        n_units: what probes tell apart, in words.
    """
    sae = leading_sae(found.facts)

    def own(name: str, **equal: Any) -> list[Row]:
        rows = found.tables[name]
        for column, value in {"model": sae["model"], "sae": sae["sae"], **equal}.items():
            rows = rows[rows[column] == value]
        return [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]

    which = f" (the first of {counted(len(found.facts['saes']), 'SAE')})" if len(found.facts["saes"]) > 1 else ""
    quality = own("quality", split=split)[-1]
    return [
        f"The SAE of model {sae['model']}{which} gives back {100 * quality['explained_variance']:.1f} % of the "
        f"variance of the vectors with {quality['l0']:.1f} latents per image, over all images of the split {split} and "
        f"so without an interval; {n}.",
        _probe(own("probes", arm="codes"), found.tables["probes"], sae["model"], n_units),
        _latent(own("aurocs")),
        _coherence(own("monosemanticity")),
        _retrieval(own("retrieval")),
    ]


def _probe(codes: list[Row], probes: pd.DataFrame, model: str, n: str) -> str:
    known = [row for row in codes if row["uses_all"] is True and math.isfinite(row["auroc"])]
    if not known:
        return "What the codes tell was not told for any label."
    best = max(known, key=lambda row: row["auroc"])
    beside = probes[(probes["model"] == model) & (probes["arm"] == "dense") & (probes["concept"] == best["concept"])]
    dense = beside[beside["class"] == best["class"]].to_dict("records")
    vectors = f", of one on the vectors {estimate(dict(dense[0]), 'auroc')}" if dense else ""
    told = _with_interval(estimate(best, "auroc"))
    verdict = "better than chance" if best["auroc_low"] > 0.5 else "not surely better than chance"
    of = f" of {counted(len(known), 'label')}" if len(known) > 1 else ""
    return (
        f"A probe on its codes tells {_label(best)}, the best{of}, with an AUROC of {told}{vectors}, on permuted "
        f"labels {Estimate(best['auroc_permuted'])}: {verdict}; {n}."
    )


def _latent(rows: list[Row]) -> str:
    known = [row for row in rows if math.isfinite(row["auroc"])]
    if not known:
        return "No single latent could be scored for any label."
    best = max(known, key=lambda row: abs(row["auroc"] - 0.5))
    p = PValue(best["p_family"])
    verdict = "beyond chance" if best["p_family"] < _SIGNIFICANT else "what the best of so many reaches by chance"
    return (
        f"Of {counted(len({row['latent'] for row in known}), 'latent')} the strongest for one label, latent "
        f"{best['latent']} for {_label(best)}, has an AUROC of {Estimate(best['auroc'])} without an interval, where "
        f"the best of them reaches {Estimate(best['best_by_chance'])} on permuted labels (p {p}): {verdict}."
    )


def _coherence(rows: list[Row]) -> str:
    scored = [row for row in rows if row["n"] == min(one["n"] for one in rows) and math.isfinite(row["q"])]
    if not scored:
        return "No latent could be scored by what its strongest images share: there are too few groups."
    n = sum(row["q"] < _SIGNIFICANT for row in scored)
    return (
        f"Of {counted(len(scored), 'latent')} that fire in {scored[0]['n']} groups or more, {n} have strongest images "
        f"more alike in their labels than chance (q < {_SIGNIFICANT:g}, so that at most 5 % of these {n} are expected "
        "to be there by chance); a count, without an interval."
    )


def _retrieval(rows: list[Row]) -> str:
    known = [row for row in rows if row["method"] != "random" and math.isfinite(row["precision"])]
    random = {(row["concept"], row["class"]): row["precision"] for row in rows if row["method"] == "random"}
    own = [row for row in known if row["method"] == "fingerprint"]
    if not own:
        return "Whether images like one are found by their codes was not told for any label."
    best = max(own, key=lambda row: row["precision"])
    vectors = [row for row in known if row["method"] == "dense" and _label(row) == _label(best)]
    beside = f", by the {METHOD_NAMES['dense']} {estimate(vectors[0], 'precision')}" if vectors else ""
    low = best["over_random_low"]
    verdict = "more than chance" if math.isfinite(low) and low > 0 else "not surely more than chance"
    chance = Estimate(random.get((best["concept"], best["class"]), math.nan))
    share = _with_interval(estimate(best, "precision"))
    return (
        f"Of the first images found by the five strongest latents, a share of {share} "
        f"has the label of the image that asked ({_label(best)}, the best of {counted(len(own), 'label')}){beside}, at "
        f"random {chance}: {verdict}; n = {counted(int(best['n_queries']), 'query', 'queries')}."
    )


def _with_interval(told: Estimate) -> str:
    return str(told) if told.interval else f"{told.point} (no interval)"


def _label(row: Row) -> str:
    concept, name = str(row["concept"]), str(row["class"])
    return readable(concept) if name == PRESENT else f"{readable(concept)}: {name}"
