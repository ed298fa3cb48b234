"""Names beside labels and readers: agreement with n, interval and chance, and what is too few for any."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from test_judging import KINDS, OF_RANDOM, a_table, called

from mammosae_plugin.errors import InputError
from mammosae_plugin.findings import agreement_with_notes
from mammosae_plugin.findings.name_agreement import _kappa
from mammosae_plugin.findings.notes import Note, cohen_kappa
from mammosae_plugin.interpretation import agreement_with_labels

SAME = "the balanced accuracy is the same in every resample"


@pytest.fixture(scope="module")
def table():
    found = a_table()
    found.vocabulary = {}
    return found


def test_agreement_with_labels_is_that_of_scikit_learn_with_intervals_over_patients(table):
    codes = table.max_latents.toarray()
    names = {0: KINDS[0], 1: "Finding  B", 2: "a dark rim", 3: "lump", 30: OF_RANDOM[30]}
    found = agreement_with_labels(called(names), table, labels=KINDS, metadata=[], same={"Lump": KINDS[3]})
    assert found["attribute"].tolist() == [KINDS[0], KINDS[1], "", KINDS[3], OF_RANDOM[30]]
    assert found["reason"].tolist() == [SAME, SAME, "the name is no attribute of the images", SAME, ""]
    test = (table.images["split"] == "test").to_numpy()
    for row in found[found["attribute"] != ""].to_dict("records"):
        has, activation = table.images[row["attribute"]].to_numpy()[test], codes[test, row["latent"]]
        assert row["n"] == test.sum() and row["n_with"] == has.sum()
        assert row["auroc"] == pytest.approx(roc_auc_score(has, activation))
        assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(has, activation > 0))
    right, random = found.iloc[0], found.iloc[4]
    assert (
        right["balanced_accuracy"] == right["auroc_high"] == 1 and right["auroc_low"] > 0.9 and np.isnan(right["low"])
    )
    assert random["low"] <= 0.5 <= random["high"] and random["auroc_low"] <= 0.5 <= random["auroc_high"]
    assert random["high"] - random["low"] > 0.02


def test_too_few_patients_have_no_interval_and_missing_labels_do_not_count(table):
    images = table.images.copy()
    images[KINDS[0]] = np.where(np.arange(len(images)) % 2, np.nan, images[KINDS[0]])
    with_few = np.flatnonzero((images["split"] == "test") & (images[KINDS[1]] == 1))[4:]
    images.loc[with_few, KINDS[1]] = 0
    images[KINDS[2]] = 0.0
    changed = type(table)(**{**vars(table), "images": images})
    names = called({latent: KINDS[latent] for latent in range(3)})
    found = agreement_with_labels(names, changed, labels=KINDS, metadata=[])
    assert found["n"].tolist() == [250, 500, 500]
    assert found["reason"].tolist() == [SAME, "too few for an interval: 3 groups have it", "no image has it"]
    assert found.loc[1, ["low", "high", "auroc_low", "auroc_high"]].isna().all() and 0 < found["auroc"][1] < 1
    with pytest.raises(InputError, match="made in split training"):
        agreement_with_labels(names, changed, split="training")


def note(latent: int, label: str | None, author: str = "A", concept: str | None = None, layer: str = "final") -> Note:
    return Note(author, layer, latent, "", None, concept, label, None, "2026-01-01T00:00:00+00:00", "sae")


def test_agreement_with_readers_is_cohens_kappa_with_an_interval():
    names = called({latent: KINDS[latent % 3] for latent in range(30)})
    said = [KINDS[latent % 3] if latent < 24 else KINDS[(latent + 1) % 3] for latent in range(30)]
    notes = [note(0, "wrong"), *(note(at, word.upper() + ".") for at, word in enumerate(said)), note(50, "clip")]
    notes += [note(at, None, "B", concept=KINDS[at]) for at in range(3)] + [note(60, "clip", "C")]
    found = agreement_with_notes(names, notes).set_index("reader")
    one = found.loc["A"]
    assert (one["n"], one["n_unnamed"], one["equal"]) == (30, 1, 0.8)
    assert one["kappa"] == pytest.approx(cohen_kappa(said, [KINDS[at % 3] for at in range(30)]))
    assert one["kappa_low"] < one["kappa"] < one["kappa_high"] and one["equal_low"] < 0.8 < one["equal_high"]
    assert one["chance"] == pytest.approx(1 / 3) and one["reason"] == ""
    assert found.loc["B", "equal"] == found.loc["B", "kappa"] == 1 and np.isnan(found.loc["B", "kappa_low"])
    assert found.loc["B", "reason"] == "too few for an interval: 3 latents, fewer than 10"
    assert found.loc["C", "reason"] == "no latent has a name and a word of this reader"
    worse = agreement_with_notes(names, notes, same={KINDS[0]: KINDS[1]}).set_index("reader")
    assert worse.loc["A", "equal"] > 0.8
    rng = np.random.default_rng(0)
    a, b = rng.choice(KINDS[:4], (2, 40))
    assert _kappa(a, b) == pytest.approx(cohen_kappa(a.tolist(), b.tolist()))


def test_names_are_of_one_layer():
    names, notes = called({0: KINDS[0]}), [note(0, "x"), note(0, "y", layer="inner")]
    with pytest.raises(InputError, match="on the layers final, inner"):
        agreement_with_notes(names, notes)
    assert agreement_with_notes(names, notes, layer="inner")["n"].tolist() == [1]
    with pytest.raises(InputError, match="no note to hold"):
        agreement_with_notes(names, notes, layer="other")
