"""Does a search by text find what it should? Planted latents, and latents that were trained.

    python benchmarks/search.py [--seeds 3] [--patients 3000] [--trained] [--folder searched]

*Planted*: a table of images that have every label which the two example files of queries ask for, independently. For
each value of a label two latents fire in a given share of the images that have it, and in 5 % of the others as
strongly, each on a scale of its own; as many fire at random. They are named by labels in the training split, and the
twelve queries of each example are judged in the test split, by text and by words, and with SAIL's cosine in place of
strengths.

*Nonsense*: how many queries of random words, and of everyday things, match any name at all.

*Trained* (with --trained): `names.py`'s phantoms, network and SAE, and an SAE of the same network with random weights;
queries of what phantoms are labelled with. Prints tables.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from names import FINDINGS, MAP, NAMES, phantoms, taught
from scipy.sparse import csr_array

from mammosae_plugin.activations import extract_activations
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.datasets.concepts import Concept, Vocabulary
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation import (
    ByText,
    ByWords,
    Queries,
    Query,
    load_queries,
    name_by_labels,
    search_scores,
)
from mammosae_plugin.interpretation.name_matching import match_names, named_latents
from mammosae_plugin.interpretation.search_quality import EACH, WHOLE
from mammosae_plugin.latents import encode_latents
from mammosae_plugin.training import SAETraining, train_sae
from mammosae_plugin.training.controls import untrained_like

EXAMPLES = Path(__file__).parent.parent / "examples"
HITS, ELSEWHERE = (1.0, 0.8, 0.6), 0.05
EVERYDAY = (
    "a bicycle", "a cat on a sofa", "a bowl of fruit", "a city street at night", "how to bake bread", "a tax return",
    "stock market crash", "a football match", "an aeroplane in the sky", "a page of printed text", "a mountain lake",
    "a wooden chair", "the weather in spring", "a concert for piano", "a train timetable", "a portrait of a king",
    "a chess opening", "a recipe for soup", "a satellite in orbit", "a broken window",
)  # fmt: skip
SOURCES = ("names", "random latents", "shuffled names", "random images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--patients", type=int, default=3000)
    parser.add_argument("--trained", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("searched"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    by_text, by_words = ByText(), ByWords()
    found = []
    for example in ("mammography", "ct_mri"):
        queries = load_queries(EXAMPLES / f"queries_{example}.yaml")
        for hits in HITS:
            for seed in range(options.seeds):
                table = planted(queries, options.patients, hits, seed)
                names = name_by_labels(table)
                for by, likeness in ((by_text, "strength"), (by_words, "strength"), (by_text, "cosine")):
                    scores = search_scores(
                        table, queries, names, by, likeness=likeness, split="test", n_draws=50, n_bootstrap=0
                    )
                    way = f"{by.name.split()[0]}{', cosine' if likeness == 'cosine' else ''}"
                    found += means(scores, {"queries": example, "fires in": f"{hits:.0%}", "by": way})
        nonsense(by_text, by_words, named_latents(names, queries.meanings), queries.meanings, example)
    print_means(found, ["queries", "fires in", "by"])
    if options.trained:
        trained(options.folder, options.seeds, by_text)


def planted(queries: Queries, n_patients: int, hits: float, seed: int) -> Any:
    """A table in memory with every label that the queries ask for, and of each value two latents."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), 2)
    images = pd.DataFrame({"patient_id": patient, "image_id": [f"{row}.png" for row in range(len(patient))]})
    images["split"] = np.where(patient < n_patients // 2, "training", "test")
    words = {name.partition("=")[0] for name in queries.meanings}
    levels = {
        column: [name.partition("=")[2] for name in queries.meanings if name.startswith(f"{column}=")]
        for column in dict.fromkeys(name.partition("=")[0] for name in queries.meanings)
    }
    concepts = []
    for column in dict.fromkeys(column for query in queries.queries for column in query.labels):
        if column == "age":
            images[column] = rng.integers(20, 90, n_patients)[patient].astype(float)
        elif column not in words:
            images[column] = (rng.random(len(patient)) < 0.3).astype(int)
            concepts.append(Concept(column))
        elif len(levels[column]) > 3:  # density and birads are concepts of the breast
            images[column] = rng.integers(len(levels[column]), size=n_patients)[patient]
            concepts.append(Concept(column, "graded", tuple(levels[column])))
        elif column in ("view", "slice_orientation", "modality"):
            images[column] = rng.choice(levels[column], len(patient))
        else:
            images[column] = rng.choice(levels[column], n_patients)[patient]
    has = {one.name: images[one.name] == 1 for one in concepts if one.is_binary}
    for one in concepts:
        if not one.is_binary:
            has |= {f"{one.name}={level}": images[one.name] == at for at, level in enumerate(one.classes)}
    known = {one.name for one in concepts}
    has |= {f"{c}={level}": images[c] == level for c in levels if c not in known for level in levels[c]}
    if "age" in images:
        has |= {"old": images["age"] >= 66, "young": images["age"] < 44}
    truth = np.repeat(np.stack([own.to_numpy() for own in has.values()], axis=1), 2, axis=1)
    fires = np.where(truth, rng.random(truth.shape) < hits, rng.random(truth.shape) < ELSEWHERE)
    at_random = rng.random(truth.shape) < 0.2
    scale = rng.lognormal(0, 1, 2 * truth.shape[1])
    codes = csr_array(np.hstack([fires, at_random]) * scale * rng.lognormal(0, 0.5, (len(images), len(scale))))
    vocabulary = Vocabulary(concepts)
    return SimpleNamespace(
        images=images, vocabulary=vocabulary, concepts=tuple(vocabulary), splits=("training", "test"),
        folder=Path("planted"), d_sae=codes.shape[1], max_latents=codes, mean_latents=codes,
        live_latents=lambda split: np.arange(codes.shape[1]),  # noqa: ARG005
    )  # fmt: skip


def nonsense(
    by_text: ByText, by_words: ByWords, named: pd.DataFrame, meanings: Mapping[str, str], example: str
) -> None:
    rng = np.random.default_rng(7)
    at_random = [" ".join(rng.choice(by_text.words, 4)) for _ in range(500)]
    for kind, asked in (("of random words", at_random), ("of everyday things", EVERYDAY)):
        for by in (by_text, by_words):
            share = np.mean([len(match_names(query, named, by, n_names=1, meanings=meanings)) > 0 for query in asked])
            names = f"{example}, {named['text'].nunique()} names, by {by.name}"
            print(f"{names}: {share:.1%} of {len(asked)} queries {kind} match one")


def means(scores: pd.DataFrame, about: dict[str, Any]) -> list[dict[str, Any]]:
    rows = scores[(scores["query"] == "") & scores["label"].isin([WHOLE, EACH])]
    return [{**about, **row} for row in rows.to_dict("records")]


def print_means(found: list[dict[str, Any]], by: list[str]) -> None:
    frame = pd.DataFrame(found)
    for label in (WHOLE, EACH):
        own = frame[frame["label"] == label]
        shown = own.pivot_table(index=by, columns="source", values=["precision", "average_precision"], sort=False)
        answered = own[own["source"] == "names"].groupby(by, sort=False)[["n_queries", "n_answered"]].mean()
        columns = [(measure, source) for measure in ("precision", "average_precision") for source in SOURCES]
        print(f"\n{label}: precision of the first 10, and mAP\n{shown[columns].round(3).to_string()}")
        print(answered.to_string())


QUERIES = Queries(
    (
        Query("a mass", {"Mass": 1}),
        Query("suspicious calcification", {"Suspicious_Calcification": 1}),
        Query("architectural distortion", {"Architectural_Distortion": 1}),
        Query("a mass with suspicious calcification", {"Mass": 1, "Suspicious_Calcification": 1}),
        Query("architectural distortion beside a mass", {"Mass": 1, "Architectural_Distortion": 1}),
        Query("calcification and distortion", {"Suspicious_Calcification": 1, "Architectural_Distortion": 1}),
    )
)


def trained(folder: Path, seeds: int, by: ByText) -> None:
    """Latents of a trained SAE and of one with random weights, on the same map of the same network."""
    found = []
    for seed in range(seeds):
        place = folder / str(seed)
        images = phantoms(place / "images", 400, 100 + seed, letters=True)
        network = taught(place, 400, 12, seed)
        with HookedVisionModel(network.network, [MAP]) as model:
            rows = extract_activations(
                model, images.select(split="training"), place / "rows", hook_name=MAP, batch_size=16
            )
            settings = SAETraining(
                epochs=2, batch_size=512, dead_feature_window=100, architecture="topk", k=4, d_sae=128, lr=2e-3
            )
            sae = train_sae(rows, place / "sae", settings)
            sample = rows.rows_of(range(100))
            for kind, one in (("trained", sae), ("random weights", untrained_like(sae, sample, seed=seed))):
                table = encode_latents(model, one, images, place / kind.split()[0], heads={}, batch_size=16, peaks=0)
                names = name_by_labels(table, [*FINDINGS], [])
                print(f"seed {seed}, {kind}: {names.n_named} of {len(names.latents)} latents have a name", flush=True)
                try:
                    scores = search_scores(table, QUERIES, names, by, split="test", n_draws=50, n_bootstrap=0)
                except InputError as error:
                    print(f"   {error}")
                    continue
                found += means(scores, {"SAE": kind})
    assert set(NAMES.values()) - {"marker"} == set(FINDINGS)
    print_means(found, ["SAE"])


if __name__ == "__main__":
    main()
