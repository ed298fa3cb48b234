"""The report of a study of embeddings: a short page with the rest folded, from its findings."""

__all__ = ["render_embedding_report", "write_embedding_report"]

import math
from pathlib import Path
from typing import Any

import pandas as pd

from mammosae_plugin.datasets.about import KNOWN, DatasetAbout
from mammosae_plugin.datasets.concepts import PRESENT
from mammosae_plugin.files import write_text
from mammosae_plugin.findings.embeddings import EmbeddingFindings
from mammosae_plugin.measures.units import EvaluationUnit
from mammosae_plugin.report.captions import figure
from mammosae_plugin.report.embedding_headline import embedding_headline
from mammosae_plugin.report.names import names_section
from mammosae_plugin.report.rendering import config_text, install_command, render
from mammosae_plugin.report.views import TableView, name_cell, named_column, table_view, whole_numbers
from mammosae_plugin.schema.embeddings import FIGURES
from mammosae_plugin.schema.names import FIGURES_FOLDER, REPORT_FILE, counted, readable
from mammosae_plugin.schema.names_of_latents import names_of_encoder
from mammosae_plugin.schema.results import Row
from mammosae_plugin.visualization.embeddings import METHOD_NAMES, METHODS, MOST_SERIES
from mammosae_plugin.visualization.tables import Estimate, estimate, heading

_TOLD = 4  # SAEs of which the summary speaks
_BEST = 12  # latents in the table of the purest
_SIGNIFICANT = 0.05


def write_embedding_report(found: EmbeddingFindings, results_folder: Path) -> Path:
    """Write `<results_folder>/report.html`, which shows the figures that lie in the folder; returns its path."""
    path = results_folder / REPORT_FILE
    write_text(path, render_embedding_report(found, results_folder / FIGURES_FOLDER))
    return path


def render_embedding_report(found: EmbeddingFindings, figures_folder: Path) -> str:
    """The report as HTML, with the figures found in `figures_folder`."""
    facts = found.facts
    split = facts["config"]["analysis"]["split"]
    data = KNOWN.get(facts["data_kind"]) or DatasetAbout(name=facts["data_kind"], title=facts["data_kind"])
    unit = _unit(facts)
    n, n_units = _n(facts, split), _n(facts, split, unit)
    return render(
        "embeddings.html.j2",
        scripts=("page.js",),
        title=facts["title"],
        facts=facts,
        split=split,
        data=data,
        n=n,
        n_all=f"n = {counted(sum(row['n_images'] for row in facts['data']['splits']), 'image')}",
        unit=unit,
        n_units=n_units,
        headline=embedding_headline(found, split, n, n_units),
        summary=_sentences(found, split),
        splits=table_view(pd.DataFrame(facts["data"]["splits"]).rename(columns={"n_units": unit.plural})),
        prevalence=table_view(_prevalence(facts), n_labels=3),
        models=table_view(pd.DataFrame(facts["models"]).drop(columns="manifest")),
        saes=table_view(_saes(facts)),
        told_of=_TOLD,
        most_series=MOST_SERIES if len(facts["saes"]) > MOST_SERIES else None,
        quality=table_view(_quality(found.tables["quality"]), n_labels=3),
        told=_with_names(_told(found), found, "best_latent", 3),
        reasons=_reasons(found.tables["probes"]),
        recovery=table_view(whole_numbers(found.tables["recovery"], "k_"), n_labels=3),
        purest=_purest(found),
        names=names_section(_names(found), facts["config"], ["encoder", "sae"], split=split,
                            where="results/findings/names.parquet"),
        sizes=sorted(set(found.tables["monosemanticity"]["n"])),
        retrieval=table_view(_retrieval(found.tables["retrieval"]), n_labels=3),
        figures={name: figure(figures_folder, file, alt) for name, (file, alt) in FIGURES.items()},
        install=install_command(facts["provenance"]["packages"]),
        config=config_text(facts["config"]),
    )  # fmt: skip


def _unit(facts: Any) -> EvaluationUnit:
    """What probes and single latents tell apart; of studies that do not say it, images."""
    return EvaluationUnit.named(facts["data"].get("unit", "image"))


def _n(facts: Any, split: str, unit: EvaluationUnit | None = None) -> str:
    """How many images of a split there are, or units if one is given."""
    rows = [row for row in facts["data"]["splits"] if row["split"] == split]
    several = unit is not None and unit.has_several_images
    column, nouns = ("n_units", unit.plural) if unit is not None and several else ("n_images", "images")
    each = [
        f"{row[column]:,} {nouns} of {row['n_groups']:,} groups"
        + (f" (model {row['model']})" if "model" in row else "")
        for row in rows
    ]
    return f"n = {', '.join(each)}" if each else "n = 0"


def _of_sae(rows: pd.DataFrame, sae: Any) -> pd.DataFrame:
    own: pd.DataFrame = rows[(rows["model"] == sae["model"]) & (rows["sae"] == sae["sae"])]
    return own


def _strongest(aurocs: pd.DataFrame) -> Row | None:
    """The row whose AUROC is farthest from 0.5."""
    rows = _records(aurocs)
    return max(rows, key=lambda row: abs(row["auroc"] - 0.5)) if rows else None


def _name(sae: Any, facts: Any) -> str:
    own = [one for one in facts["saes"] if one["model"] == sae["model"]]
    return f"The SAE of model {sae['model']}" if len(own) == 1 else f"The SAE {sae['sae']} of model {sae['model']}"


def _sentences(found: EmbeddingFindings, split: str) -> list[str]:
    """What the study found, each sentence with its number and what it stands beside."""
    facts, tables = found.facts, found.tables
    n_models, n_saes = len(facts["models"]), len(facts["saes"])
    said = [
        f"{n_saes} sparse autoencoder{'s' if n_saes > 1 else ''} on the vectors of {n_models} "
        f"model{'s' if n_models > 1 else ''}, judged on {_n(facts, split).removeprefix('n = ')} of the split {split}."
    ]
    unit = _unit(facts)
    if unit.has_several_images:
        said.append(
            f"Probes and single latents tell {unit.plural} apart: each has the {unit.scores} over its images as its "
            "code and vector. How well vectors are given back, what a latent's strongest images share, and retrieval "
            "are of images."
        )
    if any("model" in row for row in facts["data"]["splits"]):
        said.append("The models have different images or labels: their numbers are not to be compared with each other.")
    for sae in facts["saes"][:_TOLD]:
        quality = _of_sae(tables["quality"], sae)
        whole = quality[(quality["split"] == split)].iloc[-1]
        probes = tables["probes"]
        codes = _of_sae(probes, sae)
        codes = codes[(codes["arm"] == "codes") & codes["uses_all"].astype("boolean").fillna(False)]
        known = codes[codes["auroc"].notna()]
        better, without = int((known["auroc_low"] > 0.5).sum()), int(known["auroc_low"].isna().sum())
        dense = probes[(probes["model"] == sae["model"]) & (probes["arm"] == "dense") & probes["auroc"].notna()]
        words = (
            f"{_name(sae, facts)} gives back {100 * whole['explained_variance']:.0f} % of the vectors' variance with "
            f"{whole['l0']:.1f} latents per image."
        )
        if len(known):
            words += (
                f" Of {len(known)} labels its codes tell {better} better than chance (interval above 0.5"
                f"{f'; {without} of too few groups have no interval' if without else ''}); mean AUROC "
                f"{known['auroc'].mean():.3f}, of the vectors themselves {dense['auroc'].mean():.3f}, on permuted "
                f"labels {known['auroc_permuted'].mean():.3f}."
            )
        pure = _of_sae(tables["monosemanticity"], sae)
        if len(pure):
            size = int(pure["n"].min())
            scored = pure[(pure["n"] == size) & pure["q"].notna()]
            n = int((scored["q"] < _SIGNIFICANT).sum())
            words += (
                f" Of {len(scored)} latents that fire in {size} groups or more, {n} have strongest images more alike "
                f"in their labels than chance (q < {_SIGNIFICANT:g})."
            )
        (model,) = [one for one in facts["models"] if one["model"] == sae["model"]]
        if model["weights"] == "random":
            words += " The model's weights are random: what its codes tell, no training has put there."
        said.append(words)
    return said


def _saes(facts: Any) -> pd.DataFrame:
    rows = []
    for sae in facts["saes"]:
        training = sae["training"] or {}
        rows.append(
            {
                "model": sae["model"],
                "sae": sae["sae"],
                "architecture": training.get("architecture", sae["architecture"]),
                "levels": ", ".join(f"{level:,}" for level in sae["levels"]),
                "source": "trained here" if sae["training"] else sae["file"],
            }
        )
    return pd.DataFrame(rows)


def _quality(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[["model", "sae", "split", "level", "l0", "explained_variance", "mse", "dead_share"]]


def _told(found: EmbeddingFindings) -> pd.DataFrame:
    """A row per label and SAE: the best latent beside what the best reaches by chance, probes on codes and vectors."""
    facts, tables, rows = found.facts, found.tables, []
    probes, aurocs = tables["probes"], tables["aurocs"]
    for sae in facts["saes"]:
        codes = _of_sae(probes, sae)
        for (concept, name), own in codes.groupby(["concept", "class"], sort=False):
            single = _of_sae(aurocs, sae)
            single = single[(single["concept"] == concept) & (single["class"] == name)]
            row: dict[str, Any] = {"concept": concept, "class": name, "model": sae["model"]}
            if len({one["sae"] for one in facts["saes"]}) > 1:
                row["sae"] = sae["sae"]
            best = _strongest(single)
            row["best_latent"] = None if best is None else int(best["latent"])
            row["AUROC, best latent"] = math.nan if best is None else best["auroc"]
            row["p"] = math.nan if best is None else best["p_family"]
            few = own[~own["uses_all"].astype("boolean").fillna(True)]
            for _, one in few[few["k"].isin([1, 5, 10])].iterrows():
                row[f"{int(one['k'])} latents"] = one["auroc"]
            whole = _records(own[own["uses_all"].astype("boolean").fillna(False)])
            row["all latents"] = estimate(whole[0], "auroc") if whole else Estimate(math.nan)
            row["permuted"] = whole[0]["auroc_permuted"] if whole else math.nan
            beside = probes[(probes["model"] == sae["model"]) & (probes["concept"] == concept)]
            beside = beside[beside["class"] == name].set_index("arm")
            for arm, words in (("dense", "vectors"), ("pca", "components"), ("kmeans", "clusters")):
                row[words] = float(beside["auroc"].get(arm, math.nan))
            rows.append(row)
    if not rows:
        return pd.DataFrame()
    order = list(dict.fromkeys((row["concept"], row["class"]) for row in rows))
    rows.sort(key=lambda row: order.index((row["concept"], row["class"])))
    return whole_numbers(pd.DataFrame(rows), "best_latent")


def _reasons(probes: pd.DataFrame) -> list[str]:
    told = probes[(probes["reason"].fillna("") != "") & probes["auroc"].isna()]
    return sorted({f"{_label(row['concept'], row['class'])}: {row['reason']}" for row in _records(told)})


def _purest(found: EmbeddingFindings) -> TableView | None:
    """The latents whose strongest images are most alike in their labels, and the label that each tells best."""
    rows = found.tables["monosemanticity"]
    if not len(rows):
        return None
    size = int(rows["n"].min())
    shown = []
    for sae in found.facts["saes"][:MOST_SERIES]:
        own = _of_sae(rows, sae)
        own = own[own["n"] == size].dropna(subset=["monosemanticity"])
        aurocs = _of_sae(found.tables["aurocs"], sae)
        for row in own.sort_values("monosemanticity", ascending=False, kind="stable").head(_BEST).to_dict("records"):
            single = aurocs[aurocs["latent"] == row["latent"]]
            best = _strongest(single)
            shown.append(
                {
                    "model": sae["model"],
                    **({"sae": sae["sae"]} if len({one["sae"] for one in found.facts["saes"]}) > 1 else {}),
                    "latent": row["latent"],
                    "images": row["n_images"],
                    "coherence": row["coherence"],
                    "by_chance": row["null"],
                    "monosemanticity": row["monosemanticity"],
                    "q": row["q"],
                    "tells_best": None if best is None else _label(best["concept"], best["class"]),
                    "AUROC": math.nan if best is None else best["auroc"],
                }
            )
    return _with_names(pd.DataFrame(shown), found, "latent", 2)


def _names(found: EmbeddingFindings) -> list[Row]:
    """The names of latents, with None for what is missing."""
    names = found.tables["names"]
    return _records(names.astype(object).where(names.notna(), None))


def _with_names(rows: pd.DataFrame, found: EmbeddingFindings, column: str, n_labels: int) -> TableView | None:
    """The table with the names of latents behind the column that has their numbers."""
    names: dict[tuple[str, str], list[Row]] = {}
    for row in _names(found):
        names.setdefault((row["encoder"], row["sae"]), []).append(row)
    known = {key: names_of_encoder(own, key[0]) for key, own in names.items()}
    first = {sae["model"]: sae["sae"] for sae in reversed(found.facts["saes"])}
    cells = [
        name_cell(known.get((row["model"], row.get("sae", first[row["model"]])), {}), row[column])
        for row in _records(rows)
    ]
    view = table_view(rows, n_labels=n_labels)
    return view and named_column(view, cells, heading(column))


def _prevalence(facts: Any) -> pd.DataFrame:
    rows = pd.DataFrame(facts["data"]["prevalence"])
    labels = rows["concept"] + "\n" + rows["class"]
    rows = rows.iloc[labels.map(list(labels.unique()).index).argsort(kind="stable")]
    told = ["concept", "class", "model", "split", "labelled", "n_positive", "n_positive_groups"]
    rows = rows.rename(columns={"n_labelled": "labelled"})
    return rows[[name for name in told if name in rows]]


def _retrieval(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per label and SAE, precision by method side by side."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    several = rows["sae"].nunique() > 1
    for row in _records(rows[rows["method"].isin(METHODS)]):
        key = (row["concept"], row["class"], row["model"], *([row["sae"]] if several else []))
        cells = found.setdefault(key, dict(zip(("concept", "class", "model", "sae"), key, strict=False)))
        cells[METHOD_NAMES.get(str(row["method"]), str(row["method"]))] = estimate(row, "precision")
        cells["n_queries"] = None if pd.isna(row["n_queries"]) else int(row["n_queries"])
    frame = pd.DataFrame(list(found.values()))
    order = list(dict.fromkeys(row[:2] for row in found))
    by_label = [order.index((row["concept"], row["class"])) for row in found.values()]
    frame = frame.iloc[sorted(range(len(frame)), key=by_label.__getitem__)]
    return frame[[*(name for name in frame if name != "n_queries"), "n_queries"]]


def _records(rows: pd.DataFrame) -> list[Row]:
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]


def _label(concept: str, name: str) -> str:
    return readable(concept) if name == PRESENT else f"{readable(concept)}: {name}"
